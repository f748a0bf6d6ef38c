import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from promoterd.heat.base import Armed, Kind
from promoterd.overlay import beneath, syscalls
from support.hearing import TREE, Listen
from support.overlays import MountedOverlay
from support.trees import ODD_NAMES


def test_opening_an_entry_and_listing_the_directory_are_heat(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/doc")
    with open(overlay.at("app/lib/a"), "rb") as file:
        file.read()
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 1, (b"app/lib", Kind.LIST): 1}


def test_another_process_is_heard(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    subprocess.run(["cat", overlay.at("app/lib/a"), overlay.at("app/lib/b")], check=True, capture_output=True)
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 2}


def test_execution_is_heat(listen: Listen, overlay: MountedOverlay) -> None:
    with open(overlay.at("app/doc/script"), "w") as script:
        script.write("#!/bin/true\n")
    os.chmod(overlay.at("app/doc/script"), 0o700)
    heard = listen(b"app/doc")
    subprocess.run([overlay.at("app/doc/script")], check=True)
    assert heard.sink.heat[b"app/doc", Kind.OPEN] >= 1


def test_a_file_read_in_many_pieces_is_opened_once(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    descriptor = os.open(overlay.at("app/lib/a"), os.O_RDONLY)
    for _ in range(100):
        os.pread(descriptor, 1, 0)
    os.close(descriptor)
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 1}


def test_a_child_that_is_listed_does_not_heat_its_parent(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/lib/sub")
    os.listdir(overlay.at("app/lib/sub"))
    assert heard.sink.heat == {(b"app/lib/sub", Kind.LIST): 1}


def test_o_path_opens_are_never_heat_but_a_readdir_is(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"", b"app", b"app/lib", b"app/lib/sub")
    root = beneath.open_root(overlay.mountpoint)
    for path in (b"app", b"app/lib", b"app/lib/sub"):
        with beneath.opened(root, path) as directory:
            os.fstat(directory)
            syscalls.statx(directory)
            for name in ("a", "sub", "missing"):
                try:
                    os.stat(name, dir_fd=directory)
                    os.close(os.open(name, os.O_PATH, dir_fd=directory))
                except FileNotFoundError:
                    continue
    with pytest.raises(FileNotFoundError):
        beneath.open_beneath(root, b"app/missing")
    assert heard.sink.nothing()
    with beneath.opened(root, b"app/lib", beneath.READ_DIRECTORY) as directory:
        os.listdir(directory)
    os.close(root)
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1}


def test_arming_itself_is_never_heard(listen: Listen) -> None:
    heard = listen(b"", b"app", b"app/lib")
    heard.source.arm([b"app/lib/sub", b"app/doc"])
    heard.source.rearm([b"", b"app", b"app/lib"])
    assert heard.sink.nothing()


def test_copying_up_is_never_heard(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"", b"app", b"app/lib/sub")
    syscalls.utimensat_keep_mtime(-100, overlay.at("app/lib/sub"), 1)
    root = beneath.open_root(overlay.mountpoint)
    os.mkdir(overlay.at("never/scratch"))
    with beneath.opened(root, b"app/lib/sub") as directory, beneath.opened(root, b"never/scratch") as scratch:
        os.link("c", "x", src_dir_fd=directory, dst_dir_fd=scratch)
        os.unlink("x", dir_fd=scratch)
    os.close(root)
    assert os.path.exists(overlay.in_upper("app/lib/sub/c"))
    assert heard.sink.nothing()


def test_what_is_not_armed_is_not_heard(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    os.listdir(overlay.at("app/doc"))
    os.listdir(overlay.at("app"))
    os.listdir(overlay.at("never"))
    assert heard.sink.nothing()
    assert heard.source.stats().armed == 1


def test_what_policy_cannot_promote_is_not_armed(listen: Listen) -> None:
    heard = listen()
    assert heard.source.arm([b"never", b"never/e"]) == Armed()
    assert heard.source.paths() == []


def test_odd_names_are_heard(listen: Listen, make_overlay: Callable[..., MountedOverlay]) -> None:
    overlay = make_overlay({name: {b"in\xff": "x"} for name in ODD_NAMES})
    heard = listen(*ODD_NAMES, on=overlay)
    for name in ODD_NAMES:
        os.close(os.open(overlay.at(name) + b"/in\xff", os.O_RDONLY))
    assert heard.sink.heat == {(name, Kind.OPEN): 1 for name in ODD_NAMES}


def test_an_oddly_named_directory_appears_as_it_is(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    for name in ODD_NAMES:
        os.mkdir(overlay.at("app/lib") + b"/" + name)
    assert heard.sink.appearances == [b"app/lib/" + name for name in ODD_NAMES]


def test_symlinks_files_and_other_mounts_are_gone_for_arming(
    listen: Listen, overlay: MountedOverlay, tmp_path: Path
) -> None:
    os.symlink(tmp_path, overlay.at("app/out"))
    os.symlink("lib", overlay.at("app/alias"))
    syscalls.mount(bytes(tmp_path), overlay.at("app/doc"), b"", syscalls.MS_BIND)
    heard = listen(b"app/lib")
    wrong = (b"app/out", b"app/alias", b"app/lib/a", b"app/doc", b"app/none", b"x/y", b"app/" + b"z" * 300)
    found = heard.source.arm([*wrong, b"app/lib/sub"])
    syscalls.umount(overlay.at("app/doc"))
    assert found == Armed(gone=wrong)
    assert sorted(heard.source.paths()) == [b"app/lib", b"app/lib/sub"]


def test_an_overlay_on_a_counting_server_is_heard_as_well(
    listen: Listen, make_overlay: Callable[..., MountedOverlay]
) -> None:
    overlay = make_overlay(TREE, counting=True)
    heard = listen(b"app/lib", on=overlay)
    os.listdir(overlay.at("app/lib"))
    overlay.cool()
    os.close(os.open(overlay.at("app/lib/a"), os.O_RDONLY))
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1, (b"app/lib", Kind.OPEN): 1}


def test_opens_through_bind_mounts_and_in_other_namespaces_are_heard(
    listen: Listen, overlay: MountedOverlay, tmp_path: Path
) -> None:
    heard = listen(b"app/lib")
    syscalls.mount(overlay.at("app"), bytes(tmp_path), b"", syscalls.MS_BIND)
    try:
        subprocess.run(["cat", tmp_path / "lib" / "a"], check=True, capture_output=True)
        private = ["unshare", "--mount", "--propagation", "private"]
        subprocess.run([*private, "cat", overlay.at("app/lib/b")], check=True, capture_output=True)
    finally:
        syscalls.umount(bytes(tmp_path))
    assert heard.sink.heat == {(b"app/lib", Kind.OPEN): 2}
