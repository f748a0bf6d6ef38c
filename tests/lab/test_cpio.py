"""The archive is one that the kernel's own format, as cpio(1) reads it, has."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from lab.cpio import Archive


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """An archive with one of everything, unpacked by busybox or GNU cpio as a plain user would."""
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "module.py").write_text("x = 1\n")
    (source / "below" / "left-out").write_text("")
    (source / "below" / "link.py").symlink_to("module.py")
    os.utime(source / "below" / "module.py", (1_600_000_000, 1_600_000_000))
    os.chmod(source / "below" / "module.py", 0o755)
    archive = Archive()
    archive.tree(str(source), "/lib/tree", lambda path: "left-out" not in path)
    archive.text("/bin/script", "#!/bin/sh\n", 0o755)
    archive.symlink("/usr/bin/sh", "dash")
    archive.directory("/empty", 0o700)
    archive.write(str(tmp_path / "archive"))
    assert not (tmp_path / "archive.part").exists()
    root = tmp_path / "root"
    root.mkdir()
    with open(tmp_path / "archive", "rb") as file:
        command = ["cpio", "-i", "-d", "-m", "--quiet", "--no-absolute-filenames"]
        subprocess.run(command, stdin=file, cwd=root, check=True, capture_output=True)
    return root


@pytest.mark.needs("cpio")
def test_everything_is_in_it(unpacked: Path) -> None:
    module = unpacked / "usr/lib/tree/below/module.py"
    assert module.read_text() == "x = 1\n"
    assert module.stat().st_mtime == 1_600_000_000
    assert stat.S_IMODE(module.stat().st_mode) == 0o755
    assert os.readlink(module.with_name("link.py")) == "module.py"
    assert not module.with_name("left-out").exists()
    assert os.access(unpacked / "usr/bin/script", os.X_OK)
    assert os.readlink(unpacked / "usr/bin/sh") == "dash"
    assert stat.S_IMODE((unpacked / "empty").stat().st_mode) == 0o700


@pytest.mark.needs("cpio")
def test_the_old_directories_are_links_into_usr(unpacked: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        assert os.readlink(unpacked / name) == f"usr/{name}"


def test_a_link_brings_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "libx.so.1.2").write_bytes(b"library")
    (tmp_path / "libx.so").symlink_to("libx.so.1.2")
    archive = Archive()
    archive.file(str(tmp_path / "libx.so"))
    assert f"{tmp_path}/libx.so.1.2" in archive
    assert f"{tmp_path}/libx.so.2" not in archive
