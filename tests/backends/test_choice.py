from dataclasses import replace

import pytest

from promoterd.backends import base
from promoterd.backends.choice import Verdict, backend_for, best, verdicts
from promoterd.errors import UnfitMount, UsageError
from promoterd.overlay.fitness import Facts, Finding, Severity
from support.facts import GOOD_FACTS, GOOD_HOST, GOOD_TRIAL, described

REFUSAL = Finding(Severity.REFUSE, "metacopy", "no metacopy at /mnt", "mount it with metacopy=on")
NOTE = Finding(Severity.INFO, "index", "index is off", "turn it on")


def facts(*, finalizes: bool = False) -> Facts:
    return replace(GOOD_FACTS, host=replace(GOOD_HOST, trial=replace(GOOD_TRIAL, finalizes=finalizes)))


GOOD = described(b"redirect_dir=on,metacopy=on")
BAD = described(b"redirect_dir=on")


def test_a_stock_kernel_marks_with_opaque() -> None:
    chosen, why = best(verdicts(GOOD, facts()))
    assert chosen == "opaque"
    assert why == "finalize is unfit (kernel), layer is unfit (lowerdir)"


def test_a_kernel_that_marks_by_itself_is_preferred() -> None:
    assert best(verdicts(GOOD, facts(finalizes=True))) == ("finalize", "it is the best that there is")


def test_an_unfit_mount_is_only_observed() -> None:
    chosen, why = best(verdicts(BAD, facts()))
    assert chosen == "observe"
    assert "opaque is unfit (metacopy)" in why


def test_every_registered_backend_is_asked() -> None:
    found = verdicts(GOOD, facts())
    assert [verdict.backend for verdict in found[:4]] == ["finalize", "layer", "opaque", "observe"]
    assert {verdict.backend for verdict in found} == set(base.names())


def test_a_backend_that_cannot_be_loaded_is_unfit_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> type[base.Backend]:
        if name == "opaque":
            raise UsageError("the backend opaque (x:Y) cannot be loaded: no module x", hint="reinstall it")
        return real(name)

    real = base.load
    monkeypatch.setattr(base, "load", load)
    found = {verdict.backend: verdict for verdict in verdicts(GOOD, facts())}
    assert "no module x" in found["opaque"].reason
    assert best(list(found.values()))[0] == "observe"


def test_another_packages_backend_is_never_chosen_by_itself() -> None:
    found = [Verdict("theirs", ()), Verdict("opaque", (REFUSAL,)), Verdict("observe", ())]
    assert best(found)[0] == "observe"


def test_a_verdict() -> None:
    verdict = Verdict("opaque", (REFUSAL, replace(REFUSAL, option="xino"), REFUSAL, NOTE))
    assert not verdict.fit
    assert verdict.refused == "metacopy, xino"
    assert verdict.reason == REFUSAL.message
    assert Verdict("opaque", (NOTE,)).fit
    assert Verdict("opaque", (NOTE,)).reason == ""


def test_the_backend_that_policy_names() -> None:
    assert backend_for("opaque", GOOD, facts()).name == "opaque"
    assert backend_for("auto", GOOD, facts()).name == "opaque"
    assert backend_for("auto", BAD, facts()).name == "observe"
    assert backend_for("observe", BAD, facts()).name == "observe"


def test_a_named_backend_that_the_mount_is_unfit_for() -> None:
    with pytest.raises(UnfitMount, match="backend opaque") as caught:
        backend_for("opaque", BAD, facts())
    assert "metacopy" in str(caught.value)
    assert "doctor" in str(caught.value)


def test_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match="opake"):
        backend_for("opake", GOOD, facts())
