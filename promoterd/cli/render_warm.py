"""What came of warming, for people."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import RenderableType
from rich.text import Text

_MOST: Final = 20
"""Lines of one kind; --json has all of them."""
_WORDS: Final = {
    "complete": "{} completed now",
    "already": "{} complete already",
    "observed": "{} would be promoted (the backend changes nothing)",
    "primed": "{} read; the daemon keeps on while they are hot",
    "would": "{} would be promoted",
    "gone": "{} gone",
    "forbidden": "{} not allowed by policy",
    "refused": "{} refused",
    "failed": "{} failed",
    "left": "{} left",
    "pinned": "{} pinned by processes until these end",
}
_STATUS: Final = {
    "waiting": "waiting",
    "failed": "failed",
    "gone": "gone",
    "forbidden": "not allowed by policy",
}


def facts(warming: Mapping[str, Any] | None) -> Iterator[tuple[str, Text]]:
    """How far the lists of a mount's policy are, for ``status``."""
    if warming is None:
        return
    if warming["begins_at"] is not None:
        clock = time.strftime("%T", time.localtime(warming["begins_at"]))
        yield "warming", Text(f"{warming['directories']:,} directories, from {clock} on (limits.start_spread)")
    else:
        said = [f"{warming[key]:,} {words}" for key, words in _STATUS.items() if warming[key]]
        rest = f" ({', '.join(said)})" if said else ""
        many = f"{warming['complete']:,} of {warming['directories']:,} directories{rest}"
        yield "warming" if warming["waiting"] else "warmed", Text(many)
    for problem in warming["problems"]:
        yield "list", Text(problem, "red")


def warmed(answer: Mapping[str, Any], *, dry_run: bool, failures: str | None) -> Iterator[RenderableType]:
    """Each mount of the lists, then what failed or was left out and why."""
    if not answer["mounts"]:
        yield Text("The lists name no directory, or none on the mounts that were asked for.")
    for mount in answer["mounts"]:
        said = [words.format(f"{mount[key]:,}") for key, words in _WORDS.items() if mount.get(key)]
        many = "1 directory" if mount["directories"] == 1 else f"{mount['directories']:,} directories"
        yield Text(f"{mount['mountpoint']}: {many}: {', '.join(said) or 'nothing to do'}")
        if mount["problem"] is not None:
            yield Text(f"  {mount['problem']}", "red")
        yield from _reasons(mount["failures"], "red")
        yield from _reasons(mount["skipped"], "yellow")
    if failures is not None and not dry_run and any(mount["failures"] for mount in answer["mounts"]):
        yield Text(f"`promoterd warm --retry {failures}` tries again what failed.")


def _reasons(found: list[Mapping[str, Any]], style: str) -> Iterator[RenderableType]:
    for one in found[:_MOST]:
        yield Text("  ").append(one["outcome"], style).append(f" {one['path']}: {one['reason']}")
    if len(found) > _MOST:
        yield Text(f"  … and {len(found) - _MOST:,} more")
