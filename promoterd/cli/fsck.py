"""``promoterd fsck``: on a mounted overlay, and in layers that are not mounted."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from promoterd.cli.direct import log_errors_only, work_on
from promoterd.cli.output import console_for_stdout, say, say_json, text_of
from promoterd.cli.privilege import require_privilege
from promoterd.cli.progress import progress_bar
from promoterd.cli.reopening import refuse_offline_options as refuse_options
from promoterd.cli.settings import DEFAULT_CONFIG, mount_for, policy_for_acting, read_policy, state_directory
from promoterd.cli.typed import absolute
from promoterd.errors import MountNotFound, PromoterdError, UsageError
from promoterd.fsck.findings import KEPT_IN_UPPER, Report, Row
from promoterd.fsck.run import Checked, check
from promoterd.fsck.session import opened_session, unmounted
from promoterd.mounted import Mounted
from promoterd.overlay.mounts import Overlay, overlay_at
from promoterd.overlay.scratch import DEFAULT_NAME
from promoterd.paths import display
from promoterd.policy import MountPolicy, Policy
from promoterd.reopen import reopen_wanted

_STYLES = {"error": "red", "corrected": "green", "information": "cyan"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be checked, and how: ``rate`` in entries a second, 0 for no limit."""

    mount: str | None
    repair: bool = False
    rate: float = 0.0


def refuse_offline_options(*, upper: str | None, lower: Sequence[str] | None) -> None:
    """Raise UsageError for an option that means nothing on a mounted overlay."""
    refuse_options(upper=upper, lower=lower, deferred=False)


def check_mounted(wanted: Wanted, config: str | None, *, as_json: bool) -> int:
    """Check a mounted overlay; the exit code is one of fsck(8). Raises PromoterdError."""
    if wanted.mount is None:
        raise UsageError("nothing to check", hint="name a mount point, or say --offline")
    require_privilege()
    log_errors_only()
    mountpoint = absolute(wanted.mount)
    overlay = overlay_at(mountpoint)
    policy = policy_for_acting(config) if wanted.repair else _policy_if_any(config)
    configured = _configured(policy, overlay) if policy is not None else None
    if wanted.repair and configured is None:
        raise MountNotFound(
            f"the policy does not name {display(overlay.mountpoint)}",
            hint="nothing is changed that no policy allows: add it to `mounts`, or check without --repair",
        )
    os.chdir("/")  # our own working directory must not be what pins a directory
    scratch = DEFAULT_NAME if configured is None else configured.scratch_bytes
    state = policy.state_dir if policy is not None else state_directory(None)
    checked = _check(overlay, wanted, state, scratch, mounted=True, as_json=as_json)
    if policy is not None and configured is not None:
        checked.report.add(_reopened(policy, configured, checked))
    return _say(checked.report, display(overlay.mountpoint), as_json=as_json)


def check_offline(
    wanted: Wanted, upper: str | None, lower: Sequence[str] | None, config: str | None, *, as_json: bool
) -> int:
    """Check layers that are not mounted; the exit code is one of fsck(8). Raises PromoterdError."""
    if upper is None:
        raise UsageError("--offline needs --upper", hint="the upper layer: `upperdir` of the mount that there was")
    require_privilege()
    log_errors_only()
    policy, state = _policy_if_any(config), state_directory(config)
    place = os.path.realpath(os.fsencode(upper))
    overlay = unmounted(place, [os.path.realpath(os.fsencode(directory)) for directory in lower or ()], state)
    scratch = DEFAULT_NAME
    if policy is not None and wanted.mount is not None:
        scratch = mount_for(policy, absolute(wanted.mount))[0].scratch_bytes
    checked = _check(overlay, wanted, state, scratch, mounted=False, as_json=as_json)
    return _say(checked.report, display(place), as_json=as_json)


def _check(overlay: Overlay, wanted: Wanted, state: str, scratch: bytes, *, mounted: bool, as_json: bool) -> Checked:
    with (
        progress_bar(display(overlay.mountpoint or overlay.upper or b"/"), wanted=not as_json) as advance,
        opened_session(
            overlay, mounted=mounted, repairing=wanted.repair, state_directory=state, scratch=scratch
        ) as session,
    ):
        return check(session, rate=wanted.rate, advance=advance)


def _policy_if_any(config: str | None) -> Policy | None:
    """The policy; None where none was named and there is none. Raises PolicyError."""
    return None if config is None and not os.path.exists(DEFAULT_CONFIG) else read_policy(config)


def _configured(policy: Policy, overlay: Overlay) -> MountPolicy | None:
    return next((mount for mount in policy.mounts if mount.mountpoint_bytes == overlay.mountpoint), None)


def _reopened(policy: Policy, configured: MountPolicy, checked: Checked) -> Iterator[Row]:
    """What has to be reopened on the live mount, as `promoterd reopen` does it: only where that is safe."""
    done: set[bytes] = set()
    for path, rows in checked.to_reopen.items():

        async def work(mount: Mounted, path: bytes = path) -> list[bytes]:
            return await reopen_wanted(mount, path)

        note = ""
        if path not in done:
            try:
                done.update(work_on(policy, configured, work))
            except PromoterdError as error:
                note = str(error)
        for row in rows:
            if not row.finding.is_error or row.finding.kind in KEPT_IN_UPPER:
                yield row
            else:
                yield replace(row, corrected=not note, note=note or "reopened")


def _say(report: Report, where: str, *, as_json: bool) -> int:
    if as_json:
        say_json({"checked": where, **report.to_dict()})
    else:
        console = console_for_stdout()
        for line in _lines(report):
            console.print(line, soft_wrap=True)  # a line for each finding, however long
        say(text_of(console))
    return report.exit_code


def _lines(report: Report) -> Iterator[Text]:
    """A line for each finding, and a last one that sums up."""
    for row in report.rows:
        yield _line(row)
    checked = f"{_count(report.directories, 'directory', 'directories')} checked, {report.entries} entries"
    verdict = [
        f"{number} {what}" for number, what in ((report.corrected, "corrected"), (report.uncorrected, "left")) if number
    ]
    yield Text(f"{checked}: {', '.join(verdict) or 'clean'}")
    if report.writer and report.uncorrected:
        yield Text(
            f"{report.writer} works there: what the server changed it sees to at its next recheck; "
            "stop it for --repair. What is lying about was not looked for."
        )


def _line(row: Row) -> Text:
    finding = row.finding
    word = "corrected" if row.corrected else "error" if finding.is_error else "information"
    said = row.note or (finding.way_out if finding.is_error else "")
    text = f" {finding.area.value} {finding.where}: {finding.detail}{f' ({said})' if said else ''}"
    more = f"; and {row.more} more there" if row.more else ""
    return Text.assemble(Text(word, _STYLES[word]), Text(text + more))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
