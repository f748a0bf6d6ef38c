"""The read-only passthrough file system behind :mod:`promoterd.demo.countfs`.

With timeouts of 0 the kernel asks again for every component of every path; every request is counted, held for the
latency that is set in the shared page (:mod:`promoterd.demo.counters`), and then answered from the source. Requests are
served concurrently; nothing is cached here.

An inode is known by a descriptor that pins it in the source, so that its number is not given to another file while the
kernel still knows it by that number.
"""

# ruff: noqa: ARG002, D102 - the handlers' signatures and meanings are pyfuse3's

import contextlib
import errno
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import pyfuse3
import trio

from promoterd.demo.counters import Counters, Op, Word
from promoterd.paths import display

_HANG_POLL = 0.01
_WORKERS = 64
_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME


@dataclass(slots=True)
class Node:
    """An inode of the source that the kernel knows ``lookups`` times."""

    descriptor: int
    lookups: int

    @property
    def magic(self) -> str:
        """The path by which the inode can be opened again and its extended attributes read, whatever its name is."""
        return f"/proc/self/fd/{self.descriptor}"


@dataclass(slots=True)
class Listing:
    """An open directory: the names as they were when reading began."""

    node: int
    names: list[bytes]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for which the kernel may believe an answer."""

    entry: float
    attr: float
    negative: float


class CountFS(pyfuse3.Operations):
    """The request handlers; every one counts, waits, and then answers from the source."""

    supports_dot_lookup = False

    def __init__(
        self, source: str, counters: Counters, timeouts: Timeouts, *, xattrs: bool, log: TextIO | None
    ) -> None:
        super().__init__()
        self.enable_acl = xattrs
        self.stopping = False
        self._words = counters.words
        self._timeouts = timeouts
        self._xattrs = xattrs
        self._log = log
        descriptor = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        root = os.fstat(descriptor)
        self._root_ino = root.st_ino
        self._devices = {root.st_dev: 0}
        self._nodes = {int(pyfuse3.ROOT_INODE): Node(descriptor, 1)}
        self._listings: dict[int, Listing] = {}
        self._next_handle = 1

    def init(self) -> None:
        self._words[Word.READY] = 1

    async def _arrive(self, op: Op, node: Node, name: bytes = b"") -> None:
        words = self._words
        words[op] += 1
        if self._log is not None:
            place = os.fsencode(os.readlink(node.magic)) + (b"/" + name if name else b"")
            self._log.write(f"{op.name} {display(place)}\n")
        if latency := words[Word.LATENCY]:
            await trio.sleep(latency / 1e6)
        while words[Word.HANG] and not self.stopping:  # noqa: ASYNC110 - another process sets the word
            await trio.sleep(_HANG_POLL)
        if failure := words[Word.FAIL]:
            raise pyfuse3.FUSEError(failure)

    def _number(self, status: os.stat_result) -> int:
        """The node id: the inode number, moved out of the way on other devices that are mounted in the source."""
        device = self._devices.setdefault(status.st_dev, len(self._devices))
        return status.st_ino if not device else status.st_ino ^ device << 48

    def _attributes(self, number: int, status: os.stat_result) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = number
        entry.generation = 1
        entry.entry_timeout = self._timeouts.entry
        entry.attr_timeout = self._timeouts.attr
        entry.st_mode = status.st_mode
        entry.st_nlink = status.st_nlink
        entry.st_uid = status.st_uid
        entry.st_gid = status.st_gid
        entry.st_rdev = status.st_rdev
        entry.st_size = status.st_size
        entry.st_blksize = status.st_blksize
        entry.st_blocks = status.st_blocks
        entry.st_atime_ns = status.st_atime_ns
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = status.st_ctime_ns
        return entry

    def _remember(self, descriptor: int) -> pyfuse3.EntryAttributes:
        """The attributes of an inode that is about to be reported as looked up; takes over the descriptor."""
        status = os.fstat(descriptor)
        number = self._number(status)
        known = self._nodes.get(number)
        if known is None:
            self._nodes[number] = Node(descriptor, 1)
        else:
            os.close(descriptor)
            known.lookups += 1
        return self._attributes(number, status)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._nodes[parent_inode]
        if name in (b".", b".."):
            await self._arrive(Op.OTHER, parent, name)
            raise pyfuse3.FUSEError(errno.ESTALE)
        try:
            descriptor = os.open(name, _O_PATH, dir_fd=parent.descriptor)
        except OSError as error:
            missing = error.errno == errno.ENOENT
            await self._arrive(Op.LOOKUP_NEGATIVE if missing else Op.LOOKUP, parent, name)
            if not missing or not self._timeouts.negative:
                raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
            absent = pyfuse3.EntryAttributes()
            absent.entry_timeout = self._timeouts.negative
            return absent
        with contextlib.ExitStack() as unused:
            unused.callback(os.close, descriptor)
            await self._arrive(Op.LOOKUP, parent, name)
            unused.pop_all()
        return self._remember(descriptor)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for number, times in inode_list:
            if number in self._nodes and number != pyfuse3.ROOT_INODE:
                self._drop(number, times)

    def _drop(self, number: int, times: int) -> None:
        node = self._nodes[number]
        node.lookups -= times
        if node.lookups <= 0:
            del self._nodes[number]
            os.close(node.descriptor)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = self._nodes[inode]
        await self._arrive(Op.GETATTR, node)
        # The root's node id is 1 by protocol; the number in its attributes is free.
        number = self._root_ino if inode == pyfuse3.ROOT_INODE else inode
        return self._attributes(number, os.fstat(node.descriptor))

    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        node = self._nodes[inode]
        await self._arrive(Op.READLINK, node)
        with _errors():
            return os.readlink(b"", dir_fd=node.descriptor)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        await self._arrive(Op.OPENDIR, self._nodes[inode])
        handle = self._next_handle
        self._next_handle += 1
        self._listings[handle] = Listing(inode, [])
        return handle

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        node = self._nodes[listing.node]
        await self._arrive(Op.READDIR, node)
        with _errors():
            if start_id == 0:
                listing.names = [b".", b"..", *(os.fsencode(name) for name in os.listdir(node.magic))]
            for position in range(start_id, len(listing.names)):
                if not self._report(node, listing.names[position], position + 1, token):
                    break

    def _report(self, directory: Node, name: bytes, position: int, token: pyfuse3.ReaddirToken) -> bool:
        """Add one name to a listing; False if the buffer is full. A name that is gone by now is left out."""
        if name in (b".", b".."):
            # fs/fuse/readdir.c, fuse_direntplus_link: the two are never linked, so they are no lookups
            status = os.fstat(directory.descriptor)
            return pyfuse3.readdir_reply(token, name, self._attributes(status.st_ino, status), position)
        try:
            descriptor = os.open(name, _O_PATH, dir_fd=directory.descriptor)
        except FileNotFoundError:
            return True
        entry = self._remember(descriptor)
        if pyfuse3.readdir_reply(token, name, entry, position):
            return True
        self._drop(entry.st_ino, 1)  # what does not fit is not looked up
        return False

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        del self._listings[fh]

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self._nodes[inode]
        await self._arrive(Op.OPEN, node)
        with _errors():
            return pyfuse3.FileInfo(fh=os.open(node.magic, _OPEN_FLAGS), keep_cache=False)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        await self._arrive(Op.READ, Node(fh, 0))
        with _errors():
            return os.pread(fh, size, off)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        os.close(fh)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        root = self._nodes[int(pyfuse3.ROOT_INODE)]
        await self._arrive(Op.STATFS, root)
        source, answer = os.statvfs(root.magic), pyfuse3.StatvfsData()
        for field in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, f"f_{field}", getattr(source, f"f_{field}"))
        return answer

    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        node = self._nodes[inode]
        await self._arrive(Op.GETXATTR, node, name)
        self._need_xattrs()
        with _errors():
            return os.getxattr(node.magic, name)

    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        node = self._nodes[inode]
        await self._arrive(Op.LISTXATTR, node)
        self._need_xattrs()
        with _errors():
            return [os.fsencode(name) for name in os.listxattr(node.magic)]

    def _need_xattrs(self) -> None:
        # fs/fuse/xattr.c: after ENOSYS the kernel answers EOPNOTSUPP itself and does not ask again
        if not self._xattrs:
            raise pyfuse3.FUSEError(errno.ENOSYS)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno or errno.EIO) from None


async def serve(operations: CountFS, stop_with: TextIO | None) -> None:
    """Answer requests until the file system is unmounted, a SIGTERM or SIGINT arrives, or ``stop_with`` ends."""

    def stop() -> None:
        operations.stopping = True
        pyfuse3.terminate()

    async def stop_on_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                stop()

    async def stop_on_end(stream: TextIO) -> None:
        while True:
            await trio.lowlevel.wait_readable(stream)
            if not os.read(stream.fileno(), 512):
                stop()
                return

    async with trio.open_nursery() as watchers:
        watchers.start_soon(stop_on_signal)
        if stop_with is not None:
            watchers.start_soon(stop_on_end, stop_with)
        # All workers stay: to end and to start one for every burst of requests costs more than the requests.
        await pyfuse3.main(min_tasks=_WORKERS, max_tasks=_WORKERS)
        watchers.cancel_scope.cancel()
