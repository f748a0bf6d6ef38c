"""Killing work between two system calls: a child is traced, and ended where it is about to change something."""

import contextlib
import ctypes
import os
import platform
import signal
import struct
import warnings
from collections.abc import Callable

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_O_TRACESYSGOOD, _O_EXITKILL = 0x1, 0x100000
_ENTRY = 1
_INFO = struct.Struct("=B3xIQQQ6Q")  # struct ptrace_syscall_info with its entry, include/uapi/linux/ptrace.h

# what changes a file system: the tables of arch/x86/entry/syscalls and include/uapi/asm-generic/unistd.h
# fmt: off
_NUMBERS = {
    "x86_64": {
        1: "write", 82: "rename", 83: "mkdir", 84: "unlink", 86: "link", 87: "unlink", 88: "symlink", 90: "chmod",
        91: "chmod", 92: "chown", 93: "chown", 94: "chown", 133: "mknod", 165: "mount", 188: "setxattr",
        189: "setxattr", 190: "setxattr", 197: "removexattr", 198: "removexattr", 199: "removexattr",
        257: "create", 258: "mkdir", 259: "mknod", 260: "chown", 263: "unlink", 264: "rename", 265: "link",
        268: "chmod", 280: "utimens", 306: "syncfs", 316: "rename", 431: "fsconfig",
    },
    "aarch64": {
        5: "setxattr", 6: "setxattr", 7: "setxattr", 14: "removexattr", 15: "removexattr", 16: "removexattr",
        33: "mknod", 34: "mkdir", 35: "unlink", 37: "link", 38: "rename", 40: "mount", 52: "chmod",
        53: "chmod", 54: "chown", 55: "chown", 56: "create", 64: "write", 88: "utimens", 267: "syncfs",
        276: "rename", 431: "fsconfig",
    },
}
# fmt: on
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def run_and_kill(work: Callable[[], object], after: int | Callable[[], bool] | None) -> list[str]:
    """Do the work in a child, and kill it (SIGKILL) at its next change once it has made ``after``; None: let it end.

    Instead of a number, it may be what is to be so at that moment.

    Returns the names of the system calls that it made to change something. The one that it is killed in is not done.
    """
    with warnings.catch_warnings():
        # threads that other tests left waiting are none of the child's business (from Python 3.12 on it is warned of)
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        os._exit(code)
    made: list[str] = []
    try:
        os.waitpid(child, 0)
        _ptrace(_SETOPTIONS, child, 0, _O_TRACESYSGOOD | _O_EXITKILL)
        while (name := _next_change(child)) is not None:
            if after() if callable(after) else len(made) == after:
                break
            made.append(name)
        else:
            return made
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return made


def _next_change(child: int) -> str | None:
    """Go on to the entry into the next system call that changes something; None when the child has ended well."""
    numbers = _NUMBERS[platform.machine()]
    forward = 0
    while True:
        _ptrace(_SYSCALL, child, 0, forward)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work failed"
            return None
        assert os.WIFSTOPPED(status), f"the child was killed by signal {os.WTERMSIG(status)}"
        stopped_by = os.WSTOPSIG(status)
        forward = 0 if stopped_by & 0x80 else stopped_by
        if forward:
            continue
        buffer = ctypes.create_string_buffer(128)
        _ptrace(_GET_SYSCALL_INFO, child, len(buffer), ctypes.addressof(buffer))
        op, _, _, _, number, *arguments = _INFO.unpack_from(buffer)
        name = numbers.get(number) if op == _ENTRY else None
        if name is not None and (name != "create" or arguments[2] & os.O_CREAT):
            return name


def _ptrace(request: int, child: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, child, address, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace: {os.strerror(code)}")
