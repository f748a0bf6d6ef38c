"""What the guest holds: tools and an interpreter copied from the host, kernel modules, the project as a wheel."""

import glob
import importlib.metadata
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

from packaging.requirements import Requirement

from lab.commands import SEARCHED, run
from lab.cpio import Archive
from lab.errors import LabError
from lab.kernel import Kernel

MODULES = (
    *("virtio_pci", "virtio_blk", "ext4", "xfs", "overlay", "fuse", "loop"),
    *("nfsd", "nfs", "nfsv3", "nfsv4", "lockd", "sunrpc", "auth_rpcgss", "nfs_acl", "sch_netem", "sch_prio", "cls_u32"),
    *("crc32c_generic", "crc32c_intel", "libcrc32c", "crc32c"),
)
"""With what they depend on; a name that a kernel does not know is built in there, or was given up."""
PROGRAMS = {
    **dict.fromkeys(("exportfs", "rpc.nfsd", "rpc.mountd"), "nfs-kernel-server"),
    "mount.nfs": "nfs-common",
    "rpcbind": "rpcbind",
    **dict.fromkeys(("ip", "tc"), "iproute2"),
    **dict.fromkeys(("mount", "umount"), "mount"),
    **dict.fromkeys(("chown", "ls", "stat"), "coreutils"),
    **dict.fromkeys(("setfattr", "getfattr"), "attr"),
    "setfacl": "acl",
    "setpriv": "util-linux",
    "kmod": "kmod",
    "dash": "dash",
    "strace": "strace",
    "busybox": "busybox-static",
}
"""Programs of the host, and the Debian packages that hold them."""
APPLICATION = "/opt/promoterd"
"""The virtual environment that the guest's interpreter runs in, as `make install` makes one."""
SITE_PACKAGES = f"{APPLICATION}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
LAB = "/lab"
"""Where the lab's own code is in the guest."""
_OPENED_LATER = ("libgcc_s.so.1", "libnss_files.so.2")
"""Libraries that glibc opens by itself when it needs them."""
_LEFT_OUT = re.compile(
    r"(^|/)(test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data|config-.*|site-packages|dist-packages)(/|$)"
)
_ETC = ("netconfig", "protocols", "services", "rpc", "nsswitch.conf", "mke2fs.conf", "nfs.conf", "nfsmount.conf")
_ACCOUNTS = """\
root:x:0:0:root:/root:/bin/sh
_rpc:x:101:65534::/run/rpcbind:/bin/false
artist:x:1000:1000::/:/bin/sh
nobody:x:65534:65534::/:/bin/false
"""
_GROUPS = "root:x:0:\nartist:x:1000:\nnogroup:x:65534:\n"


def write_system(path: str, kernel: Kernel) -> None:
    """The archive of all but the project: tools, interpreter, the project's installed dependencies, kernel modules.

    Raises LabError, naming the packages that are missing.
    """
    archive = Archive()
    _add_frame(archive)
    _add_programs(archive)
    _add_interpreter(archive)
    for name in distributions("promoterd", "pytest", "pytest-timeout"):
        _add_distribution(archive, name)
    with tempfile.TemporaryDirectory(prefix="promoterd-lab-") as stage:
        _stage_modules(kernel, stage)
        archive.tree(f"{stage}/lib/modules", "/lib/modules")
        archive.write(path)


def write_project(path: str, root: str, share: str) -> None:
    """The archive of the project in ``root`` as a wheel, and of the lab's own code.

    ``share`` is the manifest of the share that the guest will find on its second disk. Raises LabError.
    """
    archive = Archive()
    with tempfile.TemporaryDirectory(prefix="promoterd-lab-") as stage:
        _install_wheel(root, stage)
        archive.tree(stage, SITE_PACKAGES)
        tests = f"{root}/tests"
        archive.tree(f"{tests}/support", f"{LAB}/support", _is_source)
        archive.tree(f"{tests}/lab", f"{LAB}/lab", _is_source)
        archive.file(f"{tests}/lab/guest/init", "/init")
        archive.file(share, f"{LAB}/share.json")
        archive.write(path)


def write_job(path: str, job: str) -> None:
    """The archive of a command for the guest's shell."""
    archive = Archive()
    archive.text(f"{LAB}/job", f"{job}\n")
    archive.write(path)


def distributions(*names: str) -> list[str]:
    """The installed packages that these need, themselves but the project included, in the order of their finding."""
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop(0)).lower()
        if name in found:
            continue
        found[name] = None
        needs = map(Requirement, importlib.metadata.requires(name) or ())
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    found.pop("promoterd", None)
    return list(found)


def missing_packages() -> list[str]:
    """The Debian packages that the host lacks for the guest."""
    return sorted({package for program, package in PROGRAMS.items() if _program(program) is None})


def _is_source(path: str) -> bool:
    return "__pycache__" not in path


def _add_frame(archive: Archive) -> None:
    for directory in ("/proc", "/sys", "/dev", "/tmp", "/run", "/mnt", "/root", "/srv", "/var/lib/nfs/rpc_pipefs"):  # noqa: S108
        archive.directory(directory)
    for directory in ("/var/lib/nfs/sm", "/var/lib/nfs/v4recovery"):
        archive.directory(directory)
    archive.device("/dev/console", 5, 1)
    archive.symlink("/var/run", "/run")
    archive.symlink("/etc/mtab", "/proc/self/mounts")
    archive.text("/etc/passwd", _ACCOUNTS)
    archive.text("/etc/group", _GROUPS)
    archive.text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
    for name in _ETC:
        if os.path.isfile(f"/etc/{name}"):
            archive.file(f"/etc/{name}")


def _program(name: str) -> str | None:
    """Not one of the user's own: the guest has no other directories."""
    return shutil.which(name, path=":".join(SEARCHED))


def _add_programs(archive: Archive) -> None:
    missing = missing_packages()
    if missing:
        raise LabError(f"programs for the guest are missing here: apt-get install {' '.join(missing)}")
    for name in PROGRAMS:
        program = _program(name)
        assert program is not None
        _add_binary(archive, program)
    archive.symlink("/usr/bin/sh", "dash")  # busybox's own shell would prefer its applets to the real tc and mount
    archive.symlink("/usr/sbin/mount.nfs4", "mount.nfs")
    for name in ("modprobe", "insmod", "lsmod"):
        archive.symlink(f"/usr/sbin/{name}", "../bin/kmod")
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in applets:
        if f"/usr/bin/{name}" not in archive and f"/usr/sbin/{name}" not in archive:
            archive.symlink(f"/usr/bin/{name}", "busybox")


def _add_binary(archive: Archive, path: str) -> None:
    """A program or library with the libraries that it is linked with."""
    archive.file(path)
    _add_linked(archive, os.path.realpath(path))


def _add_linked(archive: Archive, path: str) -> None:
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        if library not in archive:
            _add_binary(archive, library)


def _add_interpreter(archive: Archive) -> None:
    executable = os.path.realpath(sys.executable)
    _add_binary(archive, executable)
    library = sysconfig.get_path("stdlib")
    archive.tree(library, library, lambda path: not _LEFT_OUT.search(path))
    for extension in glob.glob(f"{library}/lib-dynload/*.so"):
        _add_linked(archive, extension)
    for name in _OPENED_LATER:
        for found in glob.glob(f"/usr/lib/x86_64-linux-gnu/{name}"):
            _add_binary(archive, found)
    archive.text(f"{APPLICATION}/pyvenv.cfg", f"home = {os.path.dirname(executable)}\n")
    archive.symlink(f"{APPLICATION}/bin/python", executable)
    archive.symlink(f"{APPLICATION}/bin/python3", "python")
    archive.text(f"{SITE_PACKAGES}/lab.pth", f"{LAB}\n")


def _add_distribution(archive: Archive, name: str) -> None:
    for file in importlib.metadata.files(name) or ():
        source = str(file.locate())
        if ".." not in file.parts and os.path.isfile(source):
            archive.file(source, f"{SITE_PACKAGES}/{file}")
            if source.endswith(".so"):
                _add_linked(archive, source)


def _install_wheel(root: str, stage: str) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", stage, root)


def _module_name(path: str) -> str:
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


def _stage_modules(kernel: Kernel, stage: str) -> None:
    """Uncompressed, which costs the slow guest less, and with an index of their own."""
    with open(f"{kernel.modules}/modules.dep", encoding="ascii") as file:
        needs = {path: below.split() for path, _, below in (line.strip().partition(":") for line in file)}
    by_name = {_module_name(path): path for path in needs}
    wanted = {by_name[name] for name in MODULES if name in by_name}
    wanted.update(*(needs[path] for path in list(wanted)))
    home = f"{stage}/lib/modules/{kernel.release}"
    for path in wanted:
        target = f"{home}/{path.removesuffix('.xz')}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        opened = lzma.open if path.endswith(".xz") else open
        with opened(f"{kernel.modules}/{path}", "rb") as packed, open(target, "wb") as plain:
            plain.write(packed.read())
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        if os.path.exists(f"{kernel.modules}/{name}"):
            shutil.copy(f"{kernel.modules}/{name}", home)
    run("depmod", "-b", stage, kernel.release)
