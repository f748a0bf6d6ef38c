"""Somebody who has a directory of an overlay in use while something happens to it."""

import json
import platform
import subprocess
import sys
from typing import Self


class Holder:
    """A process of its own that holds a directory in every way, and looks at it when it is told to."""

    PROGRAM = """
import ctypes, json, mmap, os, sys
os.chdir(os.fsencode(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
here = os.open(".", os.O_RDONLY)
file = os.open("f0001", os.O_RDONLY)
mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ)
content, names = mapped[:], sorted(os.listdir("."))
buffer = ctypes.create_string_buffer(400)
def some():
    size = libc.syscall(int(sys.argv[2]), here, buffer, len(buffer))
    at, found = 0, []
    while at < size:
        length = int.from_bytes(buffer.raw[at + 16:at + 18], "little")
        found.append(buffer.raw[at + 19:at + length].split(b"\\0")[0])
        at += length
    return found
seen = some()
assert seen
print("there", flush=True)
for line in sys.stdin:
    if line == "look\\n":
        assert mapped[:] == content == open("f0001", "rb").read() == os.pread(file, 100, 0)
        assert sorted(os.listdir(".")) == names == sorted(os.listdir(os.open(".", os.O_RDONLY)))
        for name in names:
            assert os.lstat(name).st_mode == os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
        print("same", flush=True)
    else:
        while more := some():
            seen += more
        assert len(seen) == len(set(seen))
        print(json.dumps([name.hex() for name in seen]), flush=True)
"""
    GETDENTS64 = {"x86_64": "217", "aarch64": "61"}[platform.machine()]

    def __init__(self, directory: bytes) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, self._directory, self.GETDENTS64],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._line() == b"there\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def look(self) -> None:
        """All is as it was, in every way."""
        self._say(b"look\n")
        assert self._line() == b"same\n"

    def rest_of_names(self) -> set[bytes]:
        """The names that a reading gives which began before everything else."""
        self._say(b"rest\n")
        return {bytes.fromhex(name) for name in json.loads(self._line())} - {b".", b".."}

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()
