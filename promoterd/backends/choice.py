"""Which backend a mount gets: what each registered one says of it, and what ``auto`` makes of that."""

from collections.abc import Sequence
from dataclasses import dataclass

from promoterd.backends import base
from promoterd.errors import PromoterdError, UnfitMount
from promoterd.overlay.fitness import Facts, Finding, Severity, is_fit
from promoterd.overlay.mounts import Overlay
from promoterd.paths import display

AUTO = "auto"
PREFERENCE = ("finalize", "layer", "opaque", "observe")
"""What ``auto`` takes, best first: a kernel that marks by itself, a metadata layer if the mount has one, our own mark
in upper, and the dry run that is always fit.

A backend of another package is taken only where policy names it.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a backend says of a mount."""

    backend: str
    findings: tuple[Finding, ...]

    @property
    def fit(self) -> bool:
        """Whether the mount is fit for the backend."""
        return is_fit(self.findings)

    @property
    def refused(self) -> str:
        """The options that are refused, each once."""
        refused = [finding.option for finding in self.findings if finding.severity is Severity.REFUSE]
        return ", ".join(dict.fromkeys(refused))

    @property
    def reason(self) -> str:
        """The first refusal; empty where there is none."""
        return next((finding.message for finding in self.findings if finding.severity is Severity.REFUSE), "")


def verdicts(overlay: Overlay, facts: Facts) -> list[Verdict]:
    """Every registered backend's, the preferred ones first; one that cannot be loaded is unfit, with the reason."""
    order = {name: place for place, name in enumerate(PREFERENCE)}
    names = sorted(base.names(), key=lambda name: (order.get(name, len(order)), name))
    return [_verdict(name, overlay, facts) for name in names]


def best(found: Sequence[Verdict]) -> tuple[str, str]:
    """What ``auto`` takes, and why."""
    by_name = {verdict.backend: verdict for verdict in found}
    better = [name for name in PREFERENCE if name in by_name]
    chosen = next((name for name in better if by_name[name].fit), PREFERENCE[-1])
    passed_over = [f"{name} is unfit ({by_name[name].refused})" for name in better[: better.index(chosen)]]
    return chosen, ", ".join(passed_over) or "it is the best that there is"


def backend_for(configured: str, overlay: Overlay, facts: Facts) -> type[base.Backend]:
    """The backend that policy names, or what ``auto`` takes. Raises UnfitMount, UsageError."""
    if configured == AUTO:
        return base.load(best(verdicts(overlay, facts))[0])
    found = base.load(configured)
    verdict = Verdict(configured, tuple(found.findings(overlay, facts)))
    if not verdict.fit:
        raise UnfitMount(mountpoint=display(overlay.mountpoint), backend=configured, reason=verdict.reason)
    return found


def _verdict(name: str, overlay: Overlay, facts: Facts) -> Verdict:
    try:
        return Verdict(name, tuple(base.load(name).findings(overlay, facts)))
    except PromoterdError as error:
        return Verdict(name, (Finding(Severity.REFUSE, "backend", error.message, error.hint or ""),))
