"""What ``promoterd layout`` prints, installs and tries out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promoterd.cli.output import say, say_json, warn
from promoterd.cli.privilege import require_privilege
from promoterd.cli.progress import sign_of_life
from promoterd.errors import UsageError
from promoterd.layout import install, texts
from promoterd.layout.check import check
from promoterd.layout.plan import Layout, Wanted, plan
from promoterd.layout.survey import survey
from promoterd.overlay import mountinfo, probe
from promoterd.paths import display


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be done with the layout. ``form``: units, fstab or commands."""

    form: str
    check: bool
    write: bool
    root: str
    force: bool


def lay_out(  # noqa: PLR0913 - one parameter for each option
    asked: Asked,
    *,
    lowers: Sequence[str],
    mountpoint: str,
    state: str | None,
    upper: str | None,
    work: str | None,
    lower_mountpoints: Sequence[str],
    data_mountpoints: Sequence[str],
    nfs_options: str,
    as_json: bool,
) -> None:
    """Plan, look, try out if asked to, and print or install. Raises PromoterdError."""
    root = _root(asked)
    for lower in lowers:
        _refuse_mounted(os.fsencode(lower))
    layout = plan(
        Wanted(
            [os.fsencode(lower) for lower in lowers],
            os.fsencode(mountpoint),
            _bytes(state),
            _bytes(upper),
            _bytes(work),
            [os.fsencode(path) for path in lower_mountpoints],
            [os.fsencode(path) for path in data_mountpoints],
            os.fsencode(nfs_options),
        )
    )
    text = _texts(layout, asked.form)
    warnings = survey(layout, root)
    answer = _described(layout, asked.form, text, warnings)
    if asked.check:
        require_privilege()
        with sign_of_life("mounting it where nobody sees it …", wanted=not as_json):
            answer["checked"] = {"read": check(layout, probe.host().trial).read or None}
    if asked.write:
        done = _install(layout, text, asked, root)
        answer["installed"] = {
            name: [display(path) for path in paths]
            for name, paths in (("made", done.made), ("written", done.written), ("unchanged", done.unchanged))
        }
        answer["next"] = texts.steps(layout, fstab=asked.form == "fstab")
    if as_json:
        say_json(answer)
        return
    for warning in warnings:
        warn(f"warning: {warning}")
    if asked.check:
        warn(_verdict(answer["checked"]["read"]))
    say(_report(answer) if asked.write else _printed(layout, asked.form, text))


def _bytes(typed: str | None) -> bytes | None:
    return None if typed is None else os.fsencode(typed)


def _root(asked: Asked) -> bytes:
    root = os.path.abspath(os.fsencode(asked.root))
    if not asked.write and (asked.force or root != b"/"):
        raise UsageError(
            f"{'--force' if asked.force else '--root'} goes with --write only", hint="add --write, or leave it out"
        )
    if asked.write and asked.form == "commands":
        raise UsageError(
            "--write installs nothing as commands: they are there to be run",
            hint="say --format units or --format fstab; or run them: promoterd layout … --format commands | bash -e",
        )
    if not os.path.isdir(root):
        raise UsageError(f"--root {display(root)} is no directory", hint="make it first")
    return os.path.realpath(root)


def _refuse_mounted(lower: bytes) -> None:
    """Raise UsageError for a path, with the export that is mounted there, if one is."""
    if not lower.startswith(b"/"):
        return
    mount = mountinfo.MountTree(mountinfo.read()).at(os.path.normpath(lower))
    if mount is None or not mount.fstype.startswith("nfs"):
        raise UsageError(
            f"--lower {display(lower)} is a path, and no NFS is mounted there",
            hint="name what a server exports, as SERVER:/PATH; what is not on NFS needs no layout",
        )
    source, place = display(mount.source), display(mount.mountpoint)
    raise UsageError(
        f"--lower {display(lower)} is a path, on the mount of {source}",
        hint=f"say --lower {source}, and --lower-mountpoint {place} to keep that mount",
    )


def _texts(layout: Layout, form: str) -> dict[str, str]:
    """What is printed or installed, by the name of the unit or, for lines, of their form."""
    if form == "units":
        return texts.units(layout)
    lines = texts.fstab(layout) if form == "fstab" else texts.commands(layout)
    return {form: "".join(f"{line}\n" for line in lines)}


def _install(layout: Layout, text: dict[str, str], asked: Asked, root: bytes) -> install.Installed:
    if asked.form == "units":
        return install.install_units(layout, text, root, force=asked.force)
    return install.install_fstab(layout, text["fstab"].splitlines(), root, force=asked.force)


def _described(layout: Layout, form: str, text: dict[str, str], warnings: list[str]) -> dict[str, Any]:
    return {
        "mountpoint": display(layout.mountpoint),
        "lower": [
            {
                "export": display(export.source),
                "mountpoint": display(export.lower),
                "data_mountpoint": display(export.data),
            }
            for export in layout.exports
        ],
        "nfs_options": display(layout.nfs_options),
        "upper": display(layout.upper),
        "work": display(layout.work),
        "layer": display(layout.home),
        "options": display(layout.overlay_options),
        form: text if form == "units" else text[form].splitlines(),
        "once": list(texts.directories(layout)),
        "warnings": warnings,
    }


def _printed(layout: Layout, form: str, text: dict[str, str]) -> str:
    if form == "commands":
        return text[form]
    once = "".join(f"#   {command}\n" for command in texts.directories(layout))
    once = f"# Once, when the server is mounted and before the overlay is:\n{once}"
    if form == "fstab":
        return text[form] + once
    where = install.UNITS.decode()
    return "\n".join([*(f"# {where}/{name}\n{unit}" for name, unit in text.items()), once])


def _report(answer: dict[str, Any]) -> str:
    installed, words = answer["installed"], {"made": "made", "written": "wrote", "unchanged": "is there already"}
    lines = [f"{words[name]}: {path}" for name in words for path in installed[name]]
    return "".join(f"{line}\n" for line in [*lines, "Next:", *(f"  {step}" for step in answer["next"])])


def _verdict(read: str | None) -> str:
    how = f"{read} was read through it" if read else "the server had no file to read through it"
    return f"checked: kernel and server take it, and {how}"
