"""A read-only passthrough file system that counts what it is asked, and can be slow, failing or dead.

``python -m promoterd.demo.countfs SOURCE MOUNTPOINT --counters FILE`` stands in for a network share. It runs in the
foreground until it is unmounted or terminated, and unmounts itself.
"""

import argparse
import contextlib
import os
import resource
import sys

from promoterd.demo.counters import Counters, Word

_DEVICE = "/dev/fuse"
_MOUNT_OPTIONS = {"ro", "suid", "dev", "allow_other", "default_permissions", "fsname=countfs", "subtype=countfs"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="countfs", description="Read-only passthrough that counts its requests.")
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument("--counters", required=True, metavar="FILE", help="shared page of counts and settings")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="how long each request is held")
    parser.add_argument("--entry-timeout", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--attr-timeout", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--negative-timeout", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--xattrs", action="store_true", help="pass extended attributes and ACLs through")
    parser.add_argument("--log", metavar="FILE", help="write one line per request")
    parser.add_argument("--stop-with-stdin", action="store_true", help="end when standard input does")
    return parser.parse_args()


def _raise_descriptor_limit() -> None:
    """Each inode that the kernel knows costs a descriptor; beyond the hard limit only CAP_SYS_RESOURCE leads."""
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        most = int(file.read())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Mount, serve, unmount; an error is one line."""
    arguments = _arguments()
    try:
        import pyfuse3  # noqa: PLC0415 - optional
        import trio  # noqa: PLC0415 - optional

        from promoterd.demo import passthrough  # noqa: PLC0415 - needs the two
    except ImportError as missing:
        return _fail(f"{missing.name or missing} cannot be imported; pip install 'promoterd[demo]' brings it")
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return _fail(f"{_DEVICE}: {error.strerror}; load the kernel module fuse and run as root")
    if not os.path.isdir(arguments.mountpoint):
        return _fail(f"{arguments.mountpoint}: no such directory to mount on")
    _raise_descriptor_limit()
    timeouts = passthrough.Timeouts(arguments.entry_timeout, arguments.attr_timeout, arguments.negative_timeout)
    with contextlib.ExitStack() as stack:
        try:
            counters = stack.enter_context(Counters(arguments.counters))
            log = (
                stack.enter_context(open(arguments.log, "w", encoding="utf-8", buffering=1)) if arguments.log else None
            )
            operations = passthrough.CountFS(arguments.source, counters, timeouts, xattrs=arguments.xattrs, log=log)
            counters.words[Word.LATENCY] = round(arguments.latency_ms * 1000)
            pyfuse3.init(operations, arguments.mountpoint, _MOUNT_OPTIONS)
        except (OSError, RuntimeError) as error:
            return _fail(str(error))
        stack.callback(pyfuse3.close)
        trio.run(passthrough.serve, operations, sys.stdin if arguments.stop_with_stdin else None)
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"countfs: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
