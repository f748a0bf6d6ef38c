"""The guest's disks: the share that its server exports, and empty ones for upper layers."""

import hashlib
import os
import tempfile
from dataclasses import asdict
from importlib.util import MAGIC_NUMBER

from lab import contents, manifest, share
from lab.commands import found, run
from lab.guest import storm
from lab.share import Scale

_MADE_BY = (share, contents, manifest, storm)
_SIZES = {"share": "512M", "ext4": "2G", "xfs": "1G"}


def share_disk(cache: str, scale: Scale) -> tuple[str, str]:
    """The image of the share's disk and its manifest; made anew when what makes it has changed. Raises LabError."""
    key = hashlib.sha256(repr(sorted(asdict(scale).items())).encode())
    key.update(MAGIC_NUMBER)  # it holds compiled modules
    for module in _MADE_BY:
        with open(str(module.__file__), "rb") as file:
            key.update(file.read())
    base = f"{cache}/share-{key.hexdigest()[:16]}"
    image, described = f"{base}.img", f"{base}.json"
    if not (os.path.exists(image) and os.path.exists(described)):
        os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="promoterd-lab-") as root:
            os.mkdir(f"{root}/share")
            share.build(f"{root}/share", scale).dump(described)
            _format("ext4", f"{image}.part", _SIZES["share"], "-I", "256", "-d", root)
        os.replace(f"{image}.part", image)
    return image, described


def upper_disk(kind: str, path: str) -> str:
    """A new empty file system; ext4 with inodes that have room for redirects. Raises LabError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _format(kind, path, _SIZES[kind], *(["-I", "512"] if kind == "ext4" else []))
    return path


def _format(kind: str, path: str, size: str, *options: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
    run("truncate", "-s", size, path)
    # with -d the owners of files are taken over: they are to be root's, whoever builds the image
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--"]
    mkfs = found(f"mkfs.{kind}") or f"mkfs.{kind}"
    run(*as_root, mkfs, "-q", "-F" if kind == "ext4" else "-f", *options, path)
