"""``promoterd doctor``: for each overlay and each backend, whether the mount is fit, and what to mount instead."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

from rich import filesize
from rich.console import Console
from rich.table import Table
from rich.text import Text

from promoterd.backends.choice import Verdict, best, verdicts
from promoterd.heat.choice import AUTO, Choice, choose
from promoterd.heat.combined import lacks, lower_of
from promoterd.overlay import probe
from promoterd.overlay.facts import Facts, Host
from promoterd.overlay.fitness import Finding, Severity
from promoterd.overlay.mounts import Overlay, overlay_at, read_overlays
from promoterd.overlay.remedy import layout_command, suggested_mount
from promoterd.paths import display
from promoterd.policy import Expected, MountPolicy

_STYLES = {Severity.REFUSE: "red", Severity.WARN: "yellow", Severity.INFO: "dim"}
_LAYER_OPTIONS = frozenset(
    {
        *("upperdir", "workdir", "lowerdir", "userxattr", "metacopy", "redirect_dir", "nfs_export", "xino", "volatile"),
        *("ro", "index", "verity"),
    }
)
"""Options that a mount on the same layers can have otherwise."""
_LAYERED_ONLY = frozenset({"index", "verity"})
"""Those of them that only a metadata layer excludes: no reason to mount an overlay without one otherwise."""


@dataclass(frozen=True)
class OverlayReport:
    """One overlay: what the backends say of it, what ``auto`` takes and why, and what to mount instead, if anything.

    ``layout``: the command that prints how to give it a metadata layer, where it has none and the kernel could.
    """

    overlay: Overlay
    facts: Facts
    verdicts: tuple[Verdict, ...]
    auto: str
    why: str
    instead: str | None
    layout: str | None = None
    heat_source: str = AUTO
    """What the policy names, or would without saying so."""
    heat: Choice = field(default_factory=Choice)
    """What comes of it here."""

    @property
    def findings(self) -> list[Finding]:
        """Every finding once, refusals first."""
        every = dict.fromkeys(finding for verdict in self.verdicts for finding in verdict.findings)
        return sorted(every, key=lambda finding: list(Severity).index(finding.severity))

    def to_dict(self) -> dict[str, object]:
        """For ``--json``; paths as :func:`promoterd.paths.display` writes them."""
        overlay = self.overlay
        return {
            "mountpoint": display(overlay.mountpoint),
            "upper": None if overlay.upper is None else display(overlay.upper),
            "work": None if overlay.work is None else display(overlay.work),
            "layer": [display(half) for half in overlay.metadata],
            "lower": [display(layer) for layer in overlay.lowers],
            "data_only": [display(layer) for layer in overlay.data_only],
            "options": dict(_options(overlay)),
            "upper_file_system": self.facts.upper_fstype or None,
            "upper_space": None if self.facts.upper_space is None else asdict(self.facts.upper_space),
            "writer": self.facts.writer or None,
            "backends": {
                verdict.backend: {
                    "fit": verdict.fit,
                    "findings": [asdict(finding) for finding in verdict.findings],
                }
                for verdict in self.verdicts
            },
            "auto": {"backend": self.auto, "why": self.why},
            "heat": {"source": self.heat_source, "taken": self.heat.taken, "left": self.heat.left},
            "mount_instead": self.instead,
            "layout": self.layout,
        }


@dataclass(frozen=True)
class Report:
    """What the doctor found. ``heat_sources``: why this machine cannot have each of them, None where it can."""

    host: Host
    overlays: list[OverlayReport] = field(default_factory=list)
    heat_sources: dict[str, str | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        host = asdict(self.host)
        host["capabilities"] = sorted(self.host.capabilities)
        return {
            "host": host,
            "heat_sources": {
                name: {"fit": reason is None, "reason": reason} for name, reason in self.heat_sources.items()
            },
            "overlays": [report.to_dict() for report in self.overlays],
        }


def examine(mountpoint: bytes | None = None, known: Mapping[bytes, MountPolicy] = MappingProxyType({})) -> Report:
    """Look at one overlay, or at all of this mount namespace. Raises MountNotFound.

    ``known`` is what a policy says of mount points: what it expects of the lookups there, for what ``auto`` takes, and
    where heat is to come from.
    """
    overlays = read_overlays() if mountpoint is None else [overlay_at(mountpoint)]
    sources = lacks()
    return Report(
        probe.host(), [_examine(overlay, known.get(overlay.mountpoint), sources) for overlay in overlays], sources
    )


def _examine(overlay: Overlay, policy: MountPolicy | None, sources: Mapping[str, str | None]) -> OverlayReport:
    facts = probe.gather(overlay)
    found = tuple(verdicts(overlay, facts))
    expected = Expected() if policy is None else policy.expect
    auto, why = best(found, on_nfs=bool(facts.nfs), expected=expected)
    refused = {
        finding.option
        for verdict in found
        for finding in verdict.findings
        if finding.severity is Severity.REFUSE and (overlay.metadata or finding.option not in _LAYERED_ONLY)
    }
    instead = suggested_mount(overlay, facts) if refused & _LAYER_OPTIONS else None
    source = AUTO if policy is None else policy.heat.source
    lower = lower_of(overlay.lowers)
    heat = choose(source, sources, lower)
    return OverlayReport(overlay, facts, found, auto, why, instead, _layout(overlay, facts), source, heat)


def _layout(overlay: Overlay, facts: Facts) -> str | None:
    laid_out = overlay.metadata and len(overlay.data_only) == len(overlay.lowers)
    return None if laid_out or not facts.host.trial.lazy_data else layout_command(overlay, facts)


def render(report: Report, console: Console) -> None:
    """For people."""
    console.print(_host_table(report))
    if not report.overlays:
        console.print("No overlay is mounted here.")
    for overlay in report.overlays:
        _render_overlay(overlay, console)


def _host_table(report: Report) -> Table:
    table = _table("This machine")
    host, trial = report.host, report.host.trial
    works = {
        "metadata-only copy-up": trial.metacopy,
        "absolute redirects": trial.absolute_redirect,
        "marks take effect live": trial.opaque_takes_effect,
        "data-only layers": trial.data_only_layers,
        "metadata layers": trial.lazy_data and trial.layer_answers_misses,
        "marks by itself (finalize)": trial.finalizes,
    }
    table.add_row("kernel", _plain(host.kernel))
    if trial.error:
        table.add_row("test mount", _plain(f"failed: {trial.error}", "red"))
    else:
        table.add_row("test mount", _plain(", ".join(f"{what}: {_yes(does)}" for what, does in works.items())))
        table.add_row("activation", _plain(trial.reconfigure or "none"))
    table.add_row("capabilities", _plain(", ".join(sorted(host.capabilities)) or "none"))
    table.add_row("redirect_max", _plain(f"{host.redirect_max} bytes"))
    table.add_row("inotify limits", _plain(f"{host.inotify_watches} watches, {host.inotify_instances} instances"))
    for name, reason in report.heat_sources.items():
        table.add_row(_plain(f"heat source {name}"), _plain("fit", "green") if reason is None else _no_source(reason))
    return table


def _no_source(reason: str) -> Text:
    return _plain(f"unfit: {reason}; name another in the policy (`heat: source`), or promote by hand", "red")


def _render_overlay(report: OverlayReport, console: Console) -> None:
    overlay = report.overlay
    console.print()
    table = _table(f"Overlay {display(overlay.mountpoint)}")
    for half, what in zip(overlay.metadata, ("files", "the rest"), strict=False):
        table.add_row("layer", _plain(f"{display(half)} ({what}{_on(report)})"))
    if not overlay.metadata:
        table.add_row("layer", _plain("none: lookups, stat and listings of what exists ask the server"))
    for layer in overlay.lowers:
        table.add_row("lower", _plain(display(layer)))
    for layer in overlay.data_only:
        table.add_row("data-only", _plain(display(layer)))
    table.add_row("upper", _plain(_upper(report)))
    table.add_row("options", _plain(", ".join(f"{name}={value}" for name, value in _options(overlay))))
    for verdict in report.verdicts:
        fit = _plain("fit", "green") if verdict.fit else _plain(f"unfit: {verdict.refused}", "red")
        table.add_row(_plain(verdict.backend), fit)
    table.add_row("auto takes", _plain(f"{report.auto} ({report.why})"))
    _add_heat(table, report.heat)
    console.print(table)
    if report.findings:
        found = Table("", "backends", "option", "finding", "way out", show_edge=False, pad_edge=False)
        for finding in report.findings:
            concerned = [verdict.backend for verdict in report.verdicts if finding in verdict.findings]
            found.add_row(
                _plain(finding.severity, _STYLES[finding.severity]),
                _plain(", ".join(concerned)),
                _plain(finding.option),
                _plain(finding.message),
                _plain(finding.remedy),
            )
        console.print(found)
    if report.instead is not None:
        console.print(_plain("Mount instead:", "bold"))
        console.print(_plain(report.instead), soft_wrap=True)
    if report.layout is not None:
        console.print(_plain("To give it a metadata layer, say how with:", "bold"))
        console.print(_plain(report.layout), soft_wrap=True)


def _add_heat(table: Table, heat: Choice) -> None:
    for name, why in heat.taken.items():
        table.add_row("heat from", _plain(f"{name} ({why})"))
    for name, why in heat.left.items():
        table.add_row("and not from", _plain(f"{name} ({why})"))
    if not heat.taken:
        table.add_row("heat from", _plain("nothing: name another source in the policy, or promote by hand", "red"))


def _table(title: str) -> Table:
    return Table(title=_plain(title, "bold"), show_header=False, show_edge=False, pad_edge=False, title_justify="left")


def _plain(text: str, style: str = "") -> Text:
    """Text that rich does not look for markup in: paths may hold brackets."""
    return Text(text, style, overflow="fold")


def _yes(does: bool) -> str:
    return "yes" if does else "no"


def _upper(report: OverlayReport) -> str:
    if report.overlay.upper is None:
        return "none"
    facts = report.facts
    free = f", {filesize.decimal(facts.upper_space.free_bytes)} free" if facts.upper_space is not None else ""
    return f"{display(report.overlay.upper)} ({facts.upper_fstype or 'unknown file system'}{free})"


def _on(report: OverlayReport) -> str:
    layer = report.facts.layer
    return f", on {layer.fstype}" if layer is not None and layer.fstype else ""


def _options(overlay: Overlay) -> Iterator[tuple[str, str]]:
    """The options that matter here, as they are in effect."""
    yield "metacopy", "on" if overlay.metacopy else "off"
    yield "redirect_dir", overlay.redirect_dir
    yield "index", "on" if overlay.index else "off"
    yield "xino", overlay.xino
    yield "nfs_export", "on" if overlay.nfs_export else "off"
    yield "userxattr", "on" if overlay.userxattr else "off"
    yield "volatile", "on" if overlay.volatile else "off"
    yield "mode", "ro" if overlay.read_only or overlay.mount_read_only else "rw"
