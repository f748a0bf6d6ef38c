"""A stock Debian kernel, downloaded and unpacked beside the project; nothing of it is installed on the host."""

import glob
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass

from lab.commands import found, run
from lab.errors import LabError

SERIES = ("6.12", "6.1")
"""Kernel series that the lab is for; which packages hold them depends on the Debian release of the host."""
_METAPACKAGES = ("linux-image-{series}-cloud-amd64", "linux-image-cloud-amd64")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    package: str
    root: str

    @property
    def release(self) -> str:
        """What ``uname -r`` says when it runs."""
        return self.package.removeprefix("linux-image-")

    @property
    def image(self) -> str:
        """The file that boots."""
        return f"{self.root}/boot/vmlinuz-{self.release}"

    @property
    def modules(self) -> str:
        """The directory of its modules."""
        return f"{self.root}/lib/modules/{self.release}"


def fetch(series: str, cache: str) -> Kernel:
    """The newest kernel of this series that the host's package sources have; from ``cache`` where it is there already.

    Without package lists the newest one in the cache is taken. Raises LabError.
    """
    if platform.machine() != "x86_64":
        raise LabError(f"the guest runs the host's programs, and is only made for x86_64; this is {platform.machine()}")
    if found("apt-cache") is None:
        raise LabError("apt-cache is missing: kernels are taken from Debian's package sources, so a Debian is needed")
    package = _resolve(series) or _cached(series, cache)
    if package is None and os.geteuid() == 0:
        run("apt-get", "update", "-qq")
        package = _resolve(series)
    if package is None:
        raise LabError(
            f"the package sources of this machine have no Debian kernel {series} (looked for"
            f" {', '.join(name.format(series=series) for name in _METAPACKAGES)}): try `apt-get update`, or another"
            f" KERNEL of {', '.join(SERIES)}; {series} may need another Debian release or its backports"
        )
    root = f"{cache}/{package}"
    if not os.path.isdir(root):
        _download(package, root)
    return Kernel(package, root)


def _resolve(series: str) -> str | None:
    """The package that holds the series' kernel, by way of the metapackages that follow it."""
    for name in _METAPACKAGES:
        shown = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", name.format(series=series)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        package = named_in(shown, series)
        if package is not None:
            return package
    return None


def named_in(description: str, series: str) -> str | None:
    """The package with a kernel of the series on which a metapackage depends, as ``apt-cache show`` describes it."""
    match = re.search(rf"^Depends:.*\b(linux-image-{re.escape(series)}\.\d\S*-cloud-amd64)", description, re.MULTILINE)
    return None if match is None else match[1]


def _cached(series: str, cache: str) -> str | None:
    kept = glob.glob(f"{cache}/linux-image-{series}.*-cloud-amd64")
    return os.path.basename(max(kept, key=os.path.getmtime)) if kept else None


def _download(package: str, root: str) -> None:
    part = f"{root}.part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    download = ("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package)
    try:
        run(*download, cwd=part)
    except LabError:
        if os.geteuid() != 0:
            raise
        run("apt-get", "update", "-qq")  # the lists may name a version that a newer one has replaced
        run(*download, cwd=part)
    (archive,) = (name for name in os.listdir(part) if name.endswith(".deb"))
    run("dpkg-deb", "-x", archive, ".", cwd=part)
    os.unlink(f"{part}/{archive}")
    if not os.path.isdir(f"{part}/lib"):  # the package of a merged-/usr release
        os.symlink("usr/lib", f"{part}/lib")
    run("depmod", "-b", ".", package.removeprefix("linux-image-"), cwd=part)
    os.rename(part, root)
