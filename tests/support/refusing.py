"""Processes to which the kernel refuses fanotify, as one without it or without groups left would."""

import platform
from pathlib import Path

_FANOTIFY_INIT = {"x86_64": 300, "aarch64": 262}[platform.machine()]


def refusing_fanotify(error: int) -> str:
    """Python text after which fanotify_init(2) ends with this errno, in this process and those that it starts.

    A seccomp filter (seccomp(2)): the limits of fanotify are those of a user, and taking all would disturb others.
    """
    return f"""
import ctypes, struct
code = b"".join(struct.pack("=HBBI", *one) for one in (
    (0x20, 0, 0, 0), (0x15, 0, 1, {_FANOTIFY_INIT}), (0x06, 0, 0, 0x50000 | {error}), (0x06, 0, 0, 0x7FFF0000),
))
buffer = ctypes.create_string_buffer(code, len(code))
program = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.create_string_buffer(program, 16)) == 0
"""


def environment_refusing_fanotify(directory: Path, error: int) -> dict[str, str]:
    """An environment for Python programs that are to be refused it."""
    (directory / "sitecustomize.py").write_text(refusing_fanotify(error))
    return {"PYTHONPATH": str(directory)}
