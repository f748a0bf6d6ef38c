"""The NFS server of the guest: a real nfsd on the loopback, whose export is the share's disk."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

EXPORT: Final = b"/srv"
"""Where the server has what it exports; the share is ``/srv/share``. Change it here, behind every client's back."""
SQUASHED: Final = b"/srv/squashed"
"""Exported besides with ``root_squash``: the client's root is nobody there."""
_NFSD: Final = "/proc/fs/nfsd"
_THREADS: Final = 8
_EXPORTS: Final = """\
/srv 127.0.0.0/8(rw,no_root_squash,no_subtree_check,insecure,async,fsid=0)
/srv/squashed 127.0.0.0/8(rw,root_squash,no_subtree_check,insecure,async,fsid=2)
"""

_SECOND: Final = "second"
_SERVE: Final = f"""\
ip link set lo up
mount -t tmpfs tmpfs /run
mkdir /run/rpcbind
mount -t nfsd nfsd {_NFSD}
rpcbind -f -w &
rpcbind=$!
trap 'kill $rpcbind $mountd; rpc.nfsd 0' EXIT
until [ -S /run/rpcbind.sock ]; do sleep 0.1; done
exportfs -a
echo 10 >{_NFSD}/nfsv4gracetime
rpc.nfsd {_THREADS}
rpc.mountd -F &
mountd=$!
echo serves
read _
"""


def start(share_disk: str) -> None:
    """Mount the share's disk, and serve it. Raises RuntimeError."""
    _run("modprobe", "-a", "nfsd", "nfs", "nfsv3", "nfsv4", "overlay")
    _run("mount", "-t", "ext4", share_disk, "/srv")
    os.makedirs(SQUASHED, exist_ok=True)
    _run("mount", "-t", "tmpfs", "tmpfs", os.fsdecode(SQUASHED))  # v4 crosses into an export at a mount point only
    _run("mount", "-t", "rpc_pipefs", "rpc_pipefs", "/var/lib/nfs/rpc_pipefs")
    _run("mount", "-t", "nfsd", "nfsd", _NFSD)
    for name in ("etab", "rmtab"):
        with open(f"/var/lib/nfs/{name}", "ab"):
            pass
    with open("/etc/exports", "w", encoding="ascii") as file:
        file.write(_EXPORTS)
    os.makedirs("/run/rpcbind", exist_ok=True)
    _run("rpcbind", "-w")
    _run("exportfs", "-a")
    with open(f"{_NFSD}/nfsv4gracetime", "w", encoding="ascii") as file:
        file.write("10")
    resume()
    _run("rpc.mountd")


def pause() -> None:
    """Answer nobody any more; clients wait (hard) or give up (soft)."""
    _run("rpc.nfsd", "0")


def resume() -> None:
    """Answer again, at once: there is nobody whose locks would have to be reclaimed. Nothing happens if it does."""
    with open(f"{_NFSD}/threads", encoding="ascii") as file:
        if int(file.read()):
            return
    _run("rpc.nfsd", str(_THREADS))
    with open(f"{_NFSD}/v4_end_grace", "w", encoding="ascii") as file:
        file.write("Y")


@contextmanager
def second() -> Iterator[tuple[str, ...]]:
    """Another server with the same exports, in a network of its own: its files have the same inode numbers.

    Yields what a command begins with to be in that network, where this server is 127.0.0.1. Nobody can open a file for
    the first ten seconds, which are the grace period of NFS 4.
    """
    _run("ip", "netns", "add", _SECOND)
    try:
        serve = ["ip", "netns", "exec", _SECOND, "sh", "-euc", _SERVE]
        with subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # ends with its input
            assert process.stdout is not None
            if process.stdout.readline() != b"serves\n":
                raise RuntimeError(f"no second NFS server: exit code {process.wait()}")
            yield ("busybox", "nsenter", f"--net=/run/netns/{_SECOND}")
    finally:
        _run("ip", "netns", "del", _SECOND)


def calls() -> int:
    """RPCs that the server was asked since it started, of every version and protocol, those of NFSACL included."""
    return _counted("rpc")


def bytes_read() -> int:
    """From files, by all clients, since the server started."""
    return _counted("io")


def _counted(row: str) -> int:
    with open("/proc/net/rpc/nfsd", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{row} "))


def delay(milliseconds: float) -> None:
    """Let every packet on the loopback wait for half a round trip of so many milliseconds; 0 ends that."""
    _run("tc", "qdisc", "del", "dev", "lo", "root", check=False)
    if milliseconds:
        _run("modprobe", "sch_netem")
        _run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", f"{milliseconds / 2}ms", "limit", "10000")


def be_small(milliseconds: float, answers_per_second: float, bytes_per_second: float) -> None:
    """A server with one queue, as far away as a round trip of so many milliseconds; its answers leave it one by one.

    Each takes its share of a second, and as long as its bytes do. Nothing of that is this machine's processor's time:
    what leaves port 2049 is delayed by netem, whose packets have an overhead that takes as long as an answer. See
    :func:`set_apart`.
    """
    _run("tc", "qdisc", "del", "dev", "lo", "root", check=False)
    _run("modprobe", "-a", "sch_netem", "sch_prio", "cls_u32")
    overhead = round(bytes_per_second / answers_per_second)
    shape = ["delay", f"{milliseconds}ms", "limit", "10000", "rate", f"{round(8 * bytes_per_second)}bit", str(overhead)]
    match = ["prio", "2", "u32", "match", "ip", "sport", "2049", "0xffff", "flowid", "1:2"]
    for command in (
        ["qdisc", "add", "dev", "lo", "root", "handle", "1:", "prio", "bands", "3", "priomap", *(["0"] * 16)],
        ["qdisc", "add", "dev", "lo", "parent", "1:2", "handle", "2:", "netem", *shape],
        ["qdisc", "add", "dev", "lo", "parent", "1:3", "handle", "3:", "netem", *shape],
        ["filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", *match],
    ):
        _run("tc", *command)


def set_apart(address: str, *, on: bool) -> None:
    """Give clients of this address of the server a queue of their own, as if it were another server; or end that."""
    begin = ["tc", "filter", "add" if on else "del", "dev", "lo", "parent", "1:", "protocol", "ip", "prio", "1"]
    match = ["u32", "match", "ip", "src", f"{address}/32", "match", "ip", "sport", "2049", "0xffff", "flowid", "1:3"]
    _run(*begin, *(match if on else []))


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
