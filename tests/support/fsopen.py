"""Mounting an overlay through fsopen(2), as newer tools do: one option at a time, layers by path or by descriptor."""

import ctypes
import os
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_FSOPEN, _FSCONFIG, _FSMOUNT, _MOVE_MOUNT = 430, 431, 432, 429
_SET_STRING, _SET_FD, _CMD_CREATE = 1, 5, 6
_AT_FDCWD, _MOVE_MOUNT_F_EMPTY_PATH = -100, 4


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def mount_overlay(target: bytes, options: Sequence[tuple[bytes, bytes | int]]) -> None:
    """Mount an overlay at ``target``; a value that is a number is a descriptor."""
    context = _call(_FSOPEN, b"overlay", 0)
    try:
        for name, value in options:
            if isinstance(value, int):
                _call(_FSCONFIG, context, _SET_FD, name, None, value)
            else:
                _call(_FSCONFIG, context, _SET_STRING, name, value, 0)
        _call(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        mounted = _call(_FSMOUNT, context, 0, 0)
    finally:
        os.close(context)
    try:
        _call(_MOVE_MOUNT, mounted, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(mounted)
