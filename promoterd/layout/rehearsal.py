"""Mounting a layout where nobody sees it: the servers for real, above them an overlay with layers that are thrown away.

It runs as ``python -m promoterd.layout.rehearsal`` in a process of its own, whose mount namespace is private, reads
what to mount as JSON, and prints what came of it as JSON; :mod:`.check` starts it.
"""

import json
import os
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from promoterd.layout.plan import Layout, overlay_options
from promoterd.overlay import syscalls, xattrs
from promoterd.overlay.mountinfo import is_at_or_below
from promoterd.paths import ancestors, display, join, parent

_PLACES = (b"/mnt", b"/srv", b"/tmp")
"""Directories that mount.nfs(8) needs nothing from; the first that the thrown-away layers are not in is mounted on."""
_STUB_MODE = 0o751
"""A mode that next to no file has: who sees it has asked the layer."""
_SAMPLE = 4096
_MOST_DIRECTORIES = 20
_MOST_FILES = 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of it. ``failed`` is what could not be mounted, empty where all could, and ``reason`` says why.

    ``read``: the file of the server that was read through the layer; empty where none was found that can be read.
    """

    failed: str = ""
    reason: str = ""
    read: str = ""


def main() -> None:
    """The child process."""
    asked = json.load(sys.stdin)
    try:
        seen = _rehearse(asked["servers"], os.fsencode(asked["scratch"]))
    except OSError as error:
        seen = Seen("the test mount", f"{error.strerror}" + (f": {error.filename!r}" if error.filename else ""))
    json.dump(asdict(seen), sys.stdout)


def _rehearse(servers: Sequence[Sequence[Sequence[str]]], scratch: bytes) -> Seen:
    syscalls.unshare_mounts()
    base = next((place for place in _PLACES if os.path.isdir(place) and not is_at_or_below(scratch, place)), None)
    if base is None:
        return Seen("the test mount", "there is none of the directories /mnt, /srv and /tmp to mount on")
    syscalls.mount(b"promoterd-check", base, b"tmpfs", 0, b"size=1m,mode=700")
    trees = []
    for number, pair in enumerate(servers):
        tree = (b"%s/lower%d" % (base, number), b"%s/data%d" % (base, number))
        for at, (source, options) in zip(tree, pair, strict=True):
            os.mkdir(at)
            reason = _mount("nfs", source, f"{options},retry=0", at)
            if reason:
                return Seen(f"{display(os.fsencode(source))} with {options}", reason)
        trees.append(tree)
    os.mkdir(base + b"/view")
    return try_layers(trees, scratch, base + b"/view")


def try_layers(trees: Sequence[tuple[bytes, bytes]], scratch: bytes, view: bytes) -> Seen:
    """Mount an overlay with a metadata layer in ``scratch`` over these trees, each with its data tree, at ``view``.

    One file of the server gets a stub in a complete directory of the layer, and is read. Raises OSError.
    """
    layout = Layout((), view, scratch + b"/upper", scratch + b"/work", scratch + b"/layer", b"")
    for directory in (layout.upper, layout.work, *layout.layer):
        os.makedirs(directory)
    path, start = next(_samples(trees[0][0]), (b"", b""))
    if path:
        _build(layout, path, os.stat(trees[0][0] + b"/" + path).st_size)
    options = os.fsdecode(overlay_options(layout, trees))
    reason = _mount("overlay", "overlay", options, view)
    if reason:
        return Seen("the overlay", reason)
    seen = Seen(read=display(path))
    if path:
        difference = _difference(view, path, start)
        if difference:
            seen = replace(seen, failed=f"the file {display(path)}", reason=difference)
    syscalls.umount(view)
    return seen


def _mount(fstype: str, source: str, options: str, at: bytes) -> str:
    """Mount as mount(8) does, which notes nothing down (``-n``); why it failed, or nothing."""
    command: list[str | bytes] = ["mount", "-n", "-t", fstype, "-o", options, source, at]
    # mount(2) takes longer values than fsconfig(2), and the paths of the test are not those of the layout
    done = subprocess.run(
        command, capture_output=True, check=False, env=os.environ | {"LIBMOUNT_FORCE_MOUNT2": "always", "LC_ALL": "C"}
    )
    if not done.returncode:
        return ""
    said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return said[0] if said else f"mount(8) ended with {done.returncode}"


def _samples(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Regular files that are not empty, those in directories first, with the first bytes of what they hold."""
    pending, found = deque([b""]), deque[bytes]()
    for _ in range(_MOST_DIRECTORIES):
        if not pending:
            break
        directory = pending.popleft()
        with suppress(OSError), os.scandir(join(root, directory) if directory else root) as entries:
            for entry in entries:
                path = join(directory, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size:
                    (found.appendleft if directory else found.append)(path)
        if len(found) > _MOST_FILES and parent(found[0]):
            break
    for path in found:
        with suppress(OSError), open(root + b"/" + path, "rb") as file:
            yield path, file.read(_SAMPLE)


def _build(layout: Layout, path: bytes, size: int) -> None:
    files, rest = layout.layer[:2]
    directory = parent(path)
    for half in (files, rest):
        os.makedirs(half + b"/" + directory, exist_ok=True)
    stub = files + b"/" + path
    with open(stub, "wb") as file:
        file.truncate(size)
    os.chmod(stub, _STUB_MODE)
    os.setxattr(stub, xattrs.METACOPY, b"")
    os.setxattr(stub, xattrs.REDIRECT, b"/" + path)
    if directory:
        for above in (*ancestors(directory), directory):
            os.setxattr(rest + b"/" + above, xattrs.REDIRECT, b"/" + above)
        os.setxattr(rest + b"/" + directory, xattrs.OPAQUE, xattrs.OPAQUE_YES)


def _difference(view: bytes, path: bytes, start: bytes) -> str:
    try:
        status = os.stat(view + b"/" + path)
        with open(view + b"/" + path, "rb") as file:
            data = file.read(_SAMPLE)
    except OSError as error:
        return f"through the layer it cannot be read: {error.strerror}"
    if stat.S_IMODE(status.st_mode) != _STUB_MODE:
        return "its attributes do not come from the layer"
    if data != start:
        return "through the layer it has other data than on the server"
    return ""


if __name__ == "__main__":
    main()
