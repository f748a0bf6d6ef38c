"""What to mount instead: one command, with every option right, that a person can paste into a shell."""

import os
import shlex
from collections.abc import Iterator

from promoterd.overlay.escapes import escape_option
from promoterd.overlay.facts import Facts
from promoterd.overlay.mounts import Overlay

_NEW_UPPER, _NEW_WORK = b"/LOCAL-DISK/upper", b"/LOCAL-DISK/work"
_ABSOLUTE = b"/ABSOLUTE-PATH-OF/"
_NOT_FOR_MOUNTING = {b"seclabel"}
_DEFAULT_FLAGS = {"rw", "ro", "relatime"}


def suggested_mount(overlay: Overlay, facts: Facts) -> str:
    """The command that mounts the same layers fit for marking.

    Capital letters stand for what only the admin knows: an upper layer where there is none, or where this one cannot
    be kept, and the absolute paths of relative layers.
    """
    options = b",".join(_options(overlay, new_upper=overlay.userxattr or bool(facts.second_users)))
    words = (b"mount", b"-t", b"overlay", overlay.source or b"overlay", b"-o", options, overlay.mountpoint)
    return f"umount {shell_word(overlay.mountpoint)} && {' '.join(shell_word(word) for word in words)}"


def layout_command(overlay: Overlay, facts: Facts) -> str:
    """The command that prints how to mount the same server's layers and the same upper layer below a metadata layer.

    Capital letters stand for what only the admin knows: an export that is not mounted here from NFS.
    """
    words = [b"promoterd", b"layout"]
    for export in facts.exports or (b"SERVER:/EXPORT",) * len(overlay.lowers):
        words += [b"--lower", export]
    words += [b"--mountpoint", overlay.mountpoint]
    if overlay.upper is not None and overlay.work is not None and not overlay.userxattr:
        state = os.path.dirname(overlay.upper)
        usual = (overlay.upper, overlay.work) == (state + b"/upper", state + b"/work")
        words += [b"--state", state] if usual else [b"--upper", overlay.upper, b"--work", overlay.work]
    return " ".join(shell_word(word) for word in words)


def _options(overlay: Overlay, *, new_upper: bool) -> Iterator[bytes]:
    for flag in overlay.mount_options:
        if flag not in _DEFAULT_FLAGS:
            yield flag.encode()
    layers = b":".join(_path(layer) for layer in (*overlay.metadata, *overlay.lowers))
    yield b"lowerdir=" + layers + b"".join(b"::" + _path(layer) for layer in overlay.data_only)
    kept = None if new_upper else overlay.upper
    yield b"upperdir=" + _path(kept or _NEW_UPPER)
    yield b"workdir=" + _path(overlay.work if kept and overlay.work else _NEW_WORK)
    yield from (b"redirect_dir=on", b"metacopy=on", b"xino=off")
    if overlay.index or overlay.metadata:
        yield b"index=off" if overlay.metadata else b"index=on"
    if overlay.nfs_export:
        yield b"nfs_export=off"
    if overlay.verity != "off":
        yield b"verity=" + (b"off" if overlay.metadata else overlay.verity.encode())
    yield from (option for option in overlay.other_options if option not in _NOT_FOR_MOUNTING)


def _path(layer: bytes) -> bytes:
    path = layer if layer.startswith(b"/") else _ABSOLUTE + layer
    # mount(8) takes two commas in a row for one; a path with a double quote in it is beyond it
    return escape_option(path) + (b"/" if path.endswith(b",") else b"")


def shell_word(word: bytes) -> str:
    r"""One word for a shell; bytes that a terminal cannot show are spelled as in bash's ``$'\xff'``."""
    text = word.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return shlex.quote(text)
    spelled = "".join(
        f"\\x{byte:02x}" if byte < ord(" ") or byte > ord("~") else {"'": "\\'", "\\": "\\\\"}.get(chr(byte), chr(byte))
        for byte in word
    )
    return f"$'{spelled}'"
