"""``promoterd heat``, and heat lists as the command line shows them."""

from dataclasses import dataclass
from typing import Any

from promoterd.cli.asking import Daemon
from promoterd.cli.output import say, say_json, warn
from promoterd.cli.typed import absolute
from promoterd.control.protocol import Request, text_to_path
from promoterd.heatlist import HeatList, Uses, names, read_list, write_list
from promoterd.heatlist.files import STANDARD
from promoterd.heatlist.model import KINDS
from promoterd.heatlist.text import VERSION, dumps
from promoterd.paths import display


@dataclass(frozen=True, slots=True)
class Cut:
    """What of a list is wanted, and which kind of use counts for that."""

    min_count: int = 0
    top: int | None = None
    by: str | None = None

    def of(self, heat: HeatList) -> HeatList:
        """The list, cut."""
        return heat.cut(min_count=self.min_count, top=self.top, by=self.by)


def merge_lists(lists: list[str], output: str, *, cut: Cut, as_json: bool) -> None:
    """Write the merged list. Raises HeatListError."""
    _put_out(cut.of(read_list(lists)), output, as_json=as_json)


def dump_heat(daemon: Daemon, mount: str | None, output: str, *, cut: Cut, as_json: bool) -> None:
    """Write what the daemon knows of heat now. Raises DaemonUnreachable, HeatListError."""
    answer = daemon.ask(Request(command="heat", path=None if mount is None else absolute(mount)))
    heat = HeatList(runs=1)
    for found in answer["mounts"]:
        mountpoint = text_to_path(found["mountpoint"])
        heat.mounts[mountpoint] = {}
        for directory in found["directories"]:
            for kind, count in directory["uses"].items():
                heat.add(mountpoint, text_to_path(directory["path"]), Uses.of(kind, count))
    _put_out(cut.of(heat), output, as_json=as_json)


def _put_out(heat: HeatList, output: str, *, as_json: bool) -> None:
    if output != STANDARD:
        write_list(heat, output)
        if as_json:
            say_json({"written": output, **summary(heat)})
        else:
            warn(f"promoterd: {describe(heat)}, written to {display(output.encode('utf-8', 'surrogateescape'))}")
    elif as_json:
        say_json(as_plain(heat))
    else:
        say(dumps(heat))


def as_plain(heat: HeatList) -> dict[str, Any]:
    """A list as JSON has it, which is a list as well."""
    return {
        "promoterd-heat": VERSION,
        "runs": heat.runs,
        "mounts": [
            {
                "mountpoint": names.encode(mountpoint),
                "directories": [
                    {"path": names.encode(path) or names.ROOT}
                    | {kind: count for kind, count in zip(KINDS, uses, strict=True) if count}
                    for path, uses in sorted(directories.items())
                ],
            }
            for mountpoint, directories in sorted(heat.mounts.items())
        ],
    }


def summary(heat: HeatList) -> dict[str, Any]:
    """A list in numbers."""
    totals = [sum(uses[at] for found in heat.mounts.values() for uses in found.values()) for at in range(len(KINDS))]
    return {"runs": heat.runs, "directories": len(heat), "uses": dict(zip(KINDS, totals, strict=True))}


def describe(heat: HeatList) -> str:
    """A list in words."""
    numbers = summary(heat)
    uses = sum(numbers["uses"].values())
    mounts = ", ".join(display(mountpoint) for mountpoint in sorted(heat.mounts)) or "no mount"
    directories = f"{len(heat):,} {'directory' if len(heat) == 1 else 'directories'}"
    return f"{directories} on {mounts}, {uses:,} {'use' if uses == 1 else 'uses'} ({numbers['uses']['miss']:,} in vain)"
