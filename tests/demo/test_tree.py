"""The demonstration's share: as large, as odd and as repeatable as it is said to be."""

import os
import stat
import time
from collections import Counter
from pathlib import Path

import pytest

from promoterd.demo import tree, view

pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> tree.Share:
    return tree.build(str(tmp_path_factory.mktemp("share") / "root"))


def names(share: tree.Share, directory: bytes) -> set[bytes]:
    return set(os.listdir(share.root + b"/" + directory))


def test_it_is_large_enough(share: tree.Share) -> None:
    assert len(set(share.search_path)) >= 60
    regular = [path for path in every(share) if stat.S_ISREG(os.lstat(path).st_mode)]
    assert len(regular) == share.regular_files >= 3000
    in_search_path = Counter(os.path.dirname(path).removeprefix(share.root + b"/") for path in regular)
    assert sum(in_search_path[directory] for directory in share.search_path) >= 3000
    assert max(os.stat(path).st_size for path in regular) < 8192


def every(share: tree.Share) -> list[bytes]:
    return [base + b"/" + name for base, below, files in os.walk(share.root) for name in below + files]


def test_it_is_the_same_each_time(share: tree.Share, tmp_path: Path) -> None:
    again = tree.build(str(tmp_path / "again"))
    assert view.differences(view.snapshot(share.root), view.snapshot(again.root)) == []
    assert again.search_path == share.search_path


def test_everything_is_old_and_has_a_time_of_its_own(share: tree.Share) -> None:
    times = [os.lstat(path).st_mtime for path in [share.root, *every(share)]]
    assert max(times) < time.time() - 86400
    assert len(set(times)) > 3000


def test_it_holds_every_kind_of_entry(share: tree.Share) -> None:
    modes = {path: os.lstat(path).st_mode for path in every(share)}
    kinds = Counter(stat.S_IFMT(mode) for mode in modes.values())
    assert kinds[stat.S_IFLNK] > 40
    assert kinds[stat.S_IFIFO] == kinds[stat.S_IFCHR] == 1
    assert sum(bool(mode & stat.S_ISUID) for mode in modes.values()) == 1
    assert sum(bool(mode & stat.S_ISGID) for mode in modes.values()) == 1
    leaves = {os.path.basename(path) for path in modes}
    assert any(b" " in leaf for leaf in leaves)
    assert any(b"\n" in leaf for leaf in leaves)
    assert b"caf\xe9 latin-1.plugin" in leaves
    directories = {path.removeprefix(share.root + b"/") for path, mode in modes.items() if stat.S_ISDIR(mode)}
    with_directories = {os.path.dirname(path) for path in directories}
    assert len(with_directories & set(share.search_path)) >= 24
    owners = {os.lstat(path).st_uid for path in modes}
    assert owners == {0, 1001, 1002}


def test_its_attributes_are_what_the_kernel_makes_of_them(share: tree.Share) -> None:
    place = share.root + b"/" + share.plugin_path[0]
    assert share.extras == {"capability", "acl", "user-xattr"}
    assert os.listxattr(place + b"/with-capability") == ["security.capability"]
    assert os.listxattr(place + b"/with-acl") == ["system.posix_acl_access"]
    assert os.getxattr(place + b"/with-user-xattr", "user.origin") == b"demo \xff\0 tree"


def test_only_the_refused_directory_has_hard_links(share: tree.Share) -> None:
    assert share.refused not in share.search_path
    linked = {path for path in every(share) if stat.S_ISREG(os.lstat(path).st_mode) and os.lstat(path).st_nlink > 1}
    assert len(linked) == 2
    assert {os.path.dirname(path) for path in linked} == {share.root + b"/" + share.refused}
    assert len({os.lstat(path).st_ino for path in linked}) == 1


def test_what_is_to_be_found_is_there_once_and_the_rest_is_not(share: tree.Share) -> None:
    libraries = Counter(name for directory in share.library_path for name in names(share, directory))
    modules = Counter(name for directory in share.python_path for name in names(share, directory))
    assert {libraries[name] for name in share.libraries} == {1}
    assert {modules[name + b".py"] for name in share.modules} == {1}
    assert not libraries.keys() & set(share.absent_libraries)
    assert not {name.partition(b".")[0] for name in modules} & set(share.absent_modules)
    for directory in share.library_path:
        assert names(share, directory) & set(share.libraries)
    configs = Counter(name for directory in share.plugin_path for name in names(share, directory) & set(share.configs))
    assert 0 < configs.total() < 10


def test_search_directories_lie_below_those_that_grow(share: tree.Share) -> None:
    assert share.growing == (b"apps", b"apps/*")
    for directory in share.search_path:
        assert directory.count(b"/") == 3
        assert directory.startswith(b"apps/")
