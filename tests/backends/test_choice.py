from dataclasses import replace

import pytest

from promoterd.backends import base
from promoterd.backends.choice import Verdict, backend_for, best, opaque_pays, verdicts
from promoterd.errors import UnfitMount, UsageError
from promoterd.overlay.fitness import Facts, Finding, Severity
from promoterd.overlay.nfs import Lifetimes, Lookups, NfsLayer
from promoterd.payback import COPY_UP
from promoterd.policy import Expected
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
    assert why == "finalize is unfit (kernel), layer is unfit (layout)"


def test_a_kernel_that_marks_by_itself_is_preferred() -> None:
    assert best(verdicts(GOOD, facts(finalizes=True))) == ("finalize", "it is the best that there is")


def test_an_unfit_mount_is_only_observed() -> None:
    chosen, why = best(verdicts(BAD, facts()))
    assert chosen == "observe"
    assert "opaque is unfit (metacopy)" in why


def test_every_registered_backend_is_asked() -> None:
    found = verdicts(GOOD, facts())
    assert [verdict.backend for verdict in found[:5]] == ["finalize", "layer", "opaque", "prime", "observe"]
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


@pytest.mark.parametrize(
    ("misses", "found", "entries", "pays"),
    [
        (0, 0, 0, False),
        (7, 0, 1, False),
        (7.5, 0, 1, True),
        (8, 1, 1, False),
        (9, 1, 1, True),
        (70_000, 5_000, 10_000, False),
        (75_001, 5_000, 10_000, True),
    ],
)
def test_when_opaque_pays(misses: float, found: float, entries: float, pays: bool) -> None:
    assert opaque_pays(misses, found, entries) is pays


ON_NFS = replace(facts(), nfs=(NfsLayer(b"/l", Lifetimes(), None, Lookups(1000, 900)),))


class TestOnNfs:
    def test_where_nothing_is_known_of_misses_it_primes_and_says_how_to_choose(self) -> None:
        chosen, why = best(verdicts(GOOD, ON_NFS), on_nfs=True)
        assert chosen == "prime"
        assert "opaque is not worth its price on NFS" in why
        assert "is not known" in why
        assert "`expect`" in why
        assert "`backend: opaque`" in why
        assert backend_for("auto", GOOD, ON_NFS).name == "prime"
        assert backend_for("opaque", GOOD, ON_NFS).name == "opaque", "whoever names it gets it"

    def test_it_marks_where_enough_is_missed(self) -> None:
        expected = Expected(misses_per_entry=COPY_UP + 1.5)
        assert best(verdicts(GOOD, ON_NFS), on_nfs=True, expected=expected)[0] == "opaque"
        assert backend_for("auto", GOOD, ON_NFS, expected).name == "opaque"

    def test_more_that_is_found_needs_more_misses(self) -> None:
        expected = Expected(misses_per_entry=COPY_UP + 1.5, found_per_entry=2)
        chosen, why = best(verdicts(GOOD, ON_NFS), on_nfs=True, expected=expected)
        assert chosen == "prime"
        assert "8.5 misses per entry are expected, not more than 7 and 2 that are found" in why

    def test_a_mount_that_is_unfit_for_marks_is_primed(self) -> None:
        assert best(verdicts(BAD, ON_NFS), on_nfs=True)[0] == "prime"

    def test_a_client_that_keeps_nothing_is_only_observed(self) -> None:
        deaf = replace(facts(), nfs=(NfsLayer(b"/l", Lifetimes(0, 0), "noac"),))
        chosen, why = best(verdicts(GOOD, deaf), on_nfs=True)
        assert chosen == "observe"
        assert "prime is unfit (noac)" in why

    def test_a_better_backend_needs_no_misses(self) -> None:
        found = [Verdict("opaque", ()), Verdict("layer", ()), Verdict("prime", ()), Verdict("observe", ())]
        assert best(found, on_nfs=True) == ("layer", "it is the best that there is")

    def test_what_was_counted_is_said(self) -> None:
        (opaque,) = (verdict for verdict in verdicts(GOOD, ON_NFS) if verdict.backend == "opaque")
        (price,) = (finding for finding in opaque.findings if "on NFS" in finding.message)
        assert "of 1000 lookups since it was mounted, 900 found no such name" in price.message
        assert "`expect`" in price.remedy


def test_what_is_not_on_nfs_is_never_primed_by_itself() -> None:
    assert best(verdicts(GOOD, facts()))[0] == "opaque"
    chosen, why = best(verdicts(BAD, facts()))
    assert chosen == "observe"
    assert "prime is for NFS" in why
