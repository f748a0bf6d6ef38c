"""Which backend a mount gets: what each registered one says of it, and what ``auto`` makes of that."""

from collections.abc import Sequence
from dataclasses import dataclass

from promoterd.backends import base
from promoterd.errors import PromoterdError, UnfitMount
from promoterd.overlay.fitness import Facts, Finding, Severity, is_fit
from promoterd.overlay.mounts import Overlay
from promoterd.paths import display
from promoterd.payback import COPY_UP
from promoterd.policy import Expected

AUTO = "auto"
PREFERENCE = ("finalize", "layer", "opaque", "prime", "observe")
"""What ``auto`` takes, best first; the last one is always fit.

``opaque`` is passed over on NFS unless it pays there, ``prime`` everywhere else. A backend of another package is taken
only where policy names it.
"""
_NOTHING_KNOWN = Expected()


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


def opaque_pays(misses: float, found: float, entries: float = 1.0) -> bool:
    """Whether ``opaque`` saves an NFS server more requests than it costs.

    It saves each lookup of a name that does not exist (``misses``), costs :data:`COPY_UP` requests for each of the
    ``entries``, once, and one more for each lookup of a name that does exist (``found``).
    """
    return misses > COPY_UP * entries + found


def best(
    verdicts_found: Sequence[Verdict], *, on_nfs: bool = False, expected: Expected = _NOTHING_KNOWN
) -> tuple[str, str]:
    """What ``auto`` takes, and why. ``on_nfs``: whether a lower layer is known to lie on NFS."""
    by_name = {verdict.backend: verdict for verdict in verdicts_found}
    passed_over: list[str] = []
    for name in PREFERENCE:
        if name not in by_name:
            continue
        against = f"is unfit ({by_name[name].refused})" if not by_name[name].fit else _against(name, on_nfs, expected)
        if against is None:
            return name, ", ".join(passed_over) or "it is the best that there is"
        passed_over.append(f"{name} {against}")
    return PREFERENCE[-1], ", ".join(passed_over)


def _against(name: str, on_nfs: bool, expected: Expected) -> str | None:
    """Why ``auto`` does not take a backend that the mount is fit for; None where it does."""
    if name == "prime" and not on_nfs:
        return "is for NFS"
    misses, found = expected.misses_per_entry, expected.found_per_entry
    if name != "opaque" or not on_nfs or opaque_pays(misses, found):
        return None
    known = (
        f"{misses:g} misses per entry are expected, not more than {COPY_UP} and {found:g} that are found"
        if misses
        else "how many names are looked up in vain is not known"
    )
    return (
        f"is not worth its price on NFS ({known}: `expect` in the policy tells more, `backend: opaque` takes it all "
        "the same)"
    )


def backend_for(
    configured: str, overlay: Overlay, facts: Facts, expected: Expected = _NOTHING_KNOWN
) -> type[base.Backend]:
    """The backend that policy names, or what ``auto`` takes. Raises UnfitMount, UsageError."""
    if configured == AUTO:
        chosen, _ = best(verdicts(overlay, facts), on_nfs=bool(facts.nfs), expected=expected)
        return base.load(chosen)
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
