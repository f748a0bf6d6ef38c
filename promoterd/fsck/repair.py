"""Repairing a directory of the layer: only what is safe for whoever reads in it.

The mark goes first, so that the server answers again for what is missing; what is wrong goes when that was seen to have
taken effect. The provenance stays: the daemon brings such a directory in line, and makes it complete again.
"""

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

from promoterd.fsck.findings import ENTRY, Finding, Kind
from promoterd.fsck.judging import Facts
from promoterd.fsck.layer import FILES, REST, LayerView, entry_problems
from promoterd.fsck.reading import lstat
from promoterd.fsck.session import Session
from promoterd.overlay import activation, beneath, xattrs
from promoterd.overlay.listing import Stamp
from promoterd.paths import join, parent
from promoterd.provenance import Provenance

_BATCH = 512
_HELD = "the server answers again, but a process holds the directory: check again when that is gone"
_NOT_HERE = frozenset({Kind.GHOST, Kind.TWIN, Kind.OTHER_LOWER, Kind.BAD_PROVENANCE, Kind.UNREADABLE, Kind.CHANGING})
"""Kinds of which nothing here tells what would be right; a directory that has one is left as it is."""


def repair_layer_directory(session: Session, path: bytes, findings: Iterable[Finding]) -> str:
    """Repair what was found in a directory; what keeps it from being so, in words, empty where nothing does.

    Whether it is right now is told by another look. Raises Refused, OSError.
    """
    kinds = {finding.kind for finding in findings if finding.is_error}
    if Kind.TWIN in kinds and not session.mounted:
        return _take_out(session, path)
    if kinds & _NOT_HERE:
        return "nothing here tells what would be right"
    entries = any(finding.name is not None or finding.kind is Kind.NO_PROVENANCE for finding in findings)
    with LayerView(session.layers, path, session.identities) as view:
        if path:
            _repair_directory(view)
        if not entries:
            session.sync()
            session.activate()
            return ""
        took_effect = True
        if view.holds_shadows:
            _open(session, view)
            took_effect = _in_effect(session, path)
    if not took_effect:
        return _HELD
    with LayerView(session.layers, path, session.identities) as view:
        for names in _batches(_wrong_names(view)):
            for name in names:
                _remove(view, name)
        if path:
            _follow(view)
    session.sync()
    session.activate()
    return ""


def _repair_directory(view: LayerView) -> None:
    """What the directory itself carries, in both halves."""
    files, rest = view.halves
    own = b"/" + view.path
    if xattrs.get(xattrs.descriptor(rest), xattrs.REDIRECT) != own:
        xattrs.put(xattrs.descriptor(rest), xattrs.REDIRECT, own)
    if files >= 0:
        for attribute in (xattrs.OPAQUE, xattrs.REDIRECT):
            xattrs.remove(xattrs.descriptor(files), attribute)
    _follow(view)


def _open(session: Session, view: LayerView) -> None:
    """Take the mark away, with provenance beside it that says that it is to be brought in line; both durable."""
    itself = xattrs.descriptor(view.halves[REST])
    if view.mark is None:
        return
    if view.provenance is None:
        never = Stamp(0, 0, 0, (0, 0))
        record = Provenance.of("layer", view.path, session.identities[:1], [never], time.time_ns(), 0)
        xattrs.put(itself, xattrs.PROVENANCE, record.encode())
        session.sync()
    xattrs.remove(itself, xattrs.OPAQUE)
    session.sync()


def _in_effect(session: Session, path: bytes) -> bool:
    """Let go of what the kernel knows of the directory; False where somebody holds it.

    Its inode number is drawn anew when its overlay inode is made (ovl_map_dev_ino, fs/overlayfs/inode.c).
    """
    if not session.mounted:
        return True
    before = _shown(session, path)

    def is_made_anew(path: bytes) -> bool:
        return before is None or _shown(session, path) != before

    return not activation.reconfigure_until(session.overlay, [path], is_made_anew)


def _shown(session: Session, path: bytes) -> int | None:
    try:
        with beneath.opened(session.layers.root, path) as directory:
            return os.fstat(directory).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _wrong_names(view: LayerView) -> Iterator[str]:
    """Every entry that a reader must not see; not only those that were told one by one."""
    if view.holds_shadows:
        for finding in entry_problems(view, lambda: None):
            if finding.name is not None and finding.kind in ENTRY:
                yield finding.name
        return
    for half in view.halves:
        if half >= 0:
            with os.scandir(half) as found:
                yield from (item.name for item in found if not item.is_dir(follow_symlinks=False))


def _batches(names: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(names, _BATCH)):
        yield batch


def _remove(view: LayerView, name: str) -> None:
    """An entry that is no directory, from either half: who has it open keeps it, and the next one gets the server's."""
    for half in view.halves:
        facts = lstat(half, name)
        if facts is not None and not stat.S_ISDIR(facts.mode):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=half)


def _follow(view: LayerView) -> None:
    """Owner, mode and times as the server has them, in both halves."""
    if view.lower is None:
        return
    wanted = view.lower.facts
    for half in (FILES, REST):
        directory = view.halves[half]
        if directory < 0:
            continue
        itself, there = xattrs.descriptor(directory), Facts.of(os.fstat(directory))
        if (there.uid, there.gid) != (wanted.uid, wanted.gid):
            os.chown(itself, wanted.uid, wanted.gid)
        if stat.S_IMODE(os.fstat(directory).st_mode) != stat.S_IMODE(wanted.mode):
            os.chmod(itself, stat.S_IMODE(wanted.mode))
        if there.mtime_ns != wanted.mtime_ns or os.fstat(directory).st_mtime_ns != wanted.mtime_ns:
            os.utime(itself, ns=(os.fstat(directory).st_atime_ns, wanted.mtime_ns))


def _take_out(session: Session, path: bytes) -> str:
    """Remove a directory of the files half whose twin never came, from layers that nobody has mounted."""
    files = session.layers.metadata[FILES]
    with beneath.opened(files, parent(path)) as above:
        status = os.stat(above)
        _remove_tree(files, path)
        os.utime(xattrs.descriptor(above), ns=(status.st_atime_ns, status.st_mtime_ns))
    session.sync()
    return ""


def _remove_tree(root: int, path: bytes) -> None:
    """A tree of one half, of any depth."""
    waiting = [(path, False)]
    while waiting:
        directory, emptied = waiting.pop()
        if emptied:
            with beneath.opened(root, parent(directory)) as above:
                os.rmdir(directory.rpartition(b"/")[2], dir_fd=above)
            continue
        waiting.append((directory, True))
        with beneath.opened(root, directory, beneath.READ_DIRECTORY) as opened, os.scandir(opened) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    waiting.append((join(directory, os.fsencode(item.name)), False))
                else:
                    os.unlink(item.name, dir_fd=opened)
