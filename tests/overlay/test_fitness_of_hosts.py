from dataclasses import replace
from typing import Any

import pytest

from promoterd.overlay.fitness import Finding, Severity, Trial, finalize_findings, is_fit, marking_findings
from support.facts import GOOD_FACTS, GOOD_HOST, GOOD_TRIAL, described


def refusals(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.option: finding for finding in findings if finding.severity is Severity.REFUSE}


@pytest.mark.parametrize("capability", ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN"])
def test_a_missing_capability(capability: str) -> None:
    host = replace(GOOD_HOST, capabilities=GOOD_HOST.capabilities - {capability})
    found = refusals(marking_findings(described(), replace(GOOD_FACTS, host=host)))
    assert set(found) == {capability}
    assert capability in found[capability].message
    assert "/mnt/app" in found[capability].message


def test_a_capability_that_only_helps() -> None:
    host = replace(GOOD_HOST, capabilities=GOOD_HOST.capabilities - {"CAP_SYS_PTRACE"})
    findings = marking_findings(described(), replace(GOOD_FACTS, host=host))
    assert is_fit(findings)
    assert findings[0].option == "CAP_SYS_PTRACE"
    assert "/mnt/app" in findings[0].message
    assert "a watched directory that is not known to be is promoted" in findings[0].message


@pytest.mark.parametrize(
    ("lacking", "remedy"), [(set(), "security module"), ({"CAP_SYS_PTRACE"}, "run it as root, with CAP_SYS_PTRACE")]
)
def test_processes_that_may_not_be_looked_into(lacking: set[str], remedy: str) -> None:
    host = replace(GOOD_HOST, capabilities=GOOD_HOST.capabilities - lacking, hidden_processes=7)
    findings = marking_findings(described(), replace(GOOD_FACTS, host=host))
    assert is_fit(findings)
    (found,) = [finding for finding in findings if finding.option == "watched"]
    assert found.severity is Severity.WARN
    assert "looked into: 7; a directory below /mnt/app that one of them watches" in found.message
    assert remedy in found.remedy


def test_a_user_namespace() -> None:
    host = replace(GOOD_HOST, initial_user_namespace=False)
    assert set(refusals(marking_findings(described(), replace(GOOD_FACTS, host=host)))) == {"user namespace"}


def test_no_openat2() -> None:
    host = replace(GOOD_HOST, openat2=False, kernel="5.4.0")
    found = refusals(marking_findings(described(), replace(GOOD_FACTS, host=host)))
    assert "5.4.0 lacks openat2" in found["kernel"].message


@pytest.mark.parametrize(
    ("lacking", "text"),
    [
        ({"metacopy": False}, "metacopy=on"),
        ({"absolute_redirect": False}, "redirect_dir=on"),
        ({"opaque_takes_effect": False}, "take effect"),
    ],
)
def test_a_kernel_that_the_trial_found_wanting(lacking: dict[str, Any], text: str) -> None:
    host = replace(GOOD_HOST, trial=replace(GOOD_TRIAL, **lacking))
    found = refusals(marking_findings(described(), replace(GOOD_FACTS, host=host)))
    assert text in found["kernel"].message


def test_no_trial_at_all() -> None:
    host = replace(GOOD_HOST, trial=Trial(error="Operation not permitted (EPERM)"))
    found = refusals(marking_findings(described(), replace(GOOD_FACTS, host=host)))
    assert "EPERM" in found["kernel"].message
    # of finalize nothing is known then
    assert len(refusals(finalize_findings(described(), replace(GOOD_FACTS, host=host)))) == 1


def test_activation_by_remount_is_said() -> None:
    host = replace(GOOD_HOST, trial=replace(GOOD_TRIAL, reconfigure="remount"))
    findings = marking_findings(described(), replace(GOOD_FACTS, host=host))
    assert is_fit(findings)
    assert any("remount" in finding.message for finding in findings)
