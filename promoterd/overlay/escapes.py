r"""Spelling of paths in ``/proc/self/mountinfo`` and in overlayfs' mount options.

Two layers of escapes meet there. seq_escape() (fs/seq_file.c) writes blanks, tabs, newlines, backslashes and, in option
values, commas as ``\ooo``. Below it, ``lowerdir=``, ``upperdir=`` and ``workdir=`` keep the mounter's own ``\:``,
``\,`` and ``\\``, while ``lowerdir+=``, ``datadir+=`` and layers given by descriptor are shown as they are
(ovl_show_options, fs/overlayfs/params.c; checked on Linux 6.18).
"""

import re

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_TOKEN = re.compile(rb"\\[0-3][0-7]{2}|.", re.DOTALL)
_SPECIAL = re.compile(rb"([\\:,])")


def unescape_octal(raw: bytes) -> bytes:
    r"""A field of mountinfo as it is: ``\040`` becomes a blank."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), raw)


def unescape_option(value: bytes) -> bytes:
    r"""A layer path as overlayfs reads it from an option: ``\`` takes the next character literally (ovl_unescape)."""
    return re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL)


def escape_option(path: bytes) -> bytes:
    r"""A layer path for ``lowerdir=``, ``upperdir=`` or ``workdir=``: a ``\`` goes before ``\``, ``:`` and ``,``."""
    return _SPECIAL.sub(rb"\\\1", path)


def split_lowerdir(raw: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    r"""The regular and the data-only layers in the value of ``lowerdir=`` as mountinfo shows it, topmost first.

    ``:`` parts layers and ``::`` stands before a data-only one. A colon that seq_escape() wrote (``\072``, in 6.5 and
    early 6.6) is part of a name, as one after a backslash is.
    """
    layers: list[bytearray] = [bytearray()]
    data_from: int | None = None
    literal = False
    for match in _TOKEN.finditer(raw):
        token = match[0]
        char = unescape_octal(token)
        if literal:
            layers[-1] += char
            literal = False
        elif char == b"\\":
            literal = True
        elif token == b":":
            if layers[-1]:
                layers.append(bytearray())
            elif data_from is None:
                data_from = len(layers) - 1
        else:
            layers[-1] += char
    names = [bytes(layer) for layer in layers if layer]
    cut = len(names) if data_from is None else data_from
    return tuple(names[:cut]), tuple(names[cut:])
