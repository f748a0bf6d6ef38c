"""Writing a layout down where systemd or mount(8) reads it, and making its directories."""

import os
import tempfile
from dataclasses import dataclass, field

from promoterd.errors import Refused
from promoterd.layout.plan import Layout
from promoterd.layout.spelling import fstab_field
from promoterd.layout.survey import at
from promoterd.paths import display

UNITS, FSTAB = b"/etc/systemd/system", b"/etc/fstab"
_DIRECTORY_MODE, _FILE_MODE, _PRIVATE = 0o755, 0o644, 0o700
_AGAIN = "say --force to write it anew"


@dataclass
class Installed:
    """What was made, what was written, and what was there already; paths as seen from here."""

    made: list[bytes] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)
    unchanged: list[bytes] = field(default_factory=list)


def install_units(layout: Layout, units: dict[str, str], root: bytes, *, force: bool) -> Installed:
    """Write the units and make the directories. Raises Refused, before anything is changed, where another unit is."""
    files = {at(root, UNITS) + b"/" + name.encode(): text.encode() for name, text in units.items()}
    return _install(layout, files, root, force=force)


def install_fstab(layout: Layout, lines: list[str], root: bytes, *, force: bool) -> Installed:
    """Put the lines between two marks into fstab, and make the directories.

    Raises Refused, before anything is changed, where other lines are between the marks, or a line outside of them has
    one of the mount points.
    """
    path = at(root, FSTAB)
    before = _read(path) or b""
    name = fstab_field(layout.mountpoint)
    begin, end = f"# promoterd layout {name}: begin", f"# promoterd layout {name}: end"
    block = "".join(f"{line}\n" for line in (begin, *lines, end)).encode()
    head, found, rest = before.partition(begin.encode() + b"\n")
    old, closed, tail = rest.partition(end.encode() + b"\n")
    if found and not closed:
        raise Refused(
            path=display(path),
            reason=f"there is a line {begin!r} and none {end!r}",
            hint="remove what belongs to it by hand",
        )
    _check_other_lines(path, head + tail, layout)
    if found and found + old + closed != block and not force:
        raise Refused(path=display(path), reason=f"it has other lines for {name}", hint=_AGAIN)
    if not found and head and not head.endswith(b"\n"):
        head += b"\n"
    return _install(layout, {path: head + block + tail}, root, force=True)


def _check_other_lines(path: bytes, text: bytes, layout: Layout) -> None:
    ours = {fstab_field(place).encode() for place in layout.mountpoints}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if len(fields) > 1 and not line.lstrip().startswith(b"#") and fields[1] in ours:
            raise Refused(
                path=display(path),
                reason=f"line {number} (of those that are not ours) mounts something at {display(fields[1])} already",
                hint="remove that line, or choose another mount point",
            )


def _install(layout: Layout, files: dict[bytes, bytes], root: bytes, *, force: bool) -> Installed:
    done = Installed()
    for path, content in files.items():
        there = _read(path)
        if there == content:
            done.unchanged.append(path)
        elif there is not None and not force:
            raise Refused(path=display(path), reason="it is there already, and says something else", hint=_AGAIN)
    for path in (*layout.mountpoints, layout.work):
        _make(at(root, path), done)
    _make(at(root, layout.home), done, _PRIVATE)
    for path in layout.layer:
        _make(at(root, path), done)
    for path, content in files.items():
        if path not in done.unchanged:
            _write(path, content)
            done.written.append(path)
    return done


def _make(path: bytes, done: Installed, mode: int = _DIRECTORY_MODE) -> None:
    if os.path.isdir(path):
        return
    os.makedirs(os.path.dirname(path), _DIRECTORY_MODE, exist_ok=True)
    os.mkdir(path)
    os.chmod(path, mode)  # whatever the umask is
    done.made.append(path)


def _write(path: bytes, content: bytes) -> None:
    """Either as it was or whole, also after a power loss."""
    directory = os.path.dirname(path)
    os.makedirs(directory, _DIRECTORY_MODE, exist_ok=True)
    mode = os.stat(path).st_mode & 0o7777 if os.path.exists(path) else _FILE_MODE
    descriptor, name = tempfile.mkstemp(prefix=b".promoterd-", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _read(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
