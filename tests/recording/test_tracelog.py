"""What strace writes, as lookups; the lines are strace 6.1's."""

from collections import Counter

import pytest

from promoterd.recording.tracelog import Lookup, TraceLog

HERE = b"/work"


def hexed(path: bytes) -> bytes:
    return b"".join(b"\\x%02x" % byte for byte in path)


def quoted(path: bytes) -> bytes:
    return b'"' + hexed(path) + b'"'


def at(path: bytes = HERE) -> bytes:
    return b"AT_FDCWD<" + hexed(path) + b">"


def lookups(*lines: bytes, place: bytes | None = HERE) -> Counter[Lookup]:
    log = TraceLog(lambda _pid: place)
    for line in lines:
        log.feed(line)
    log.finish()
    assert log.not_understood == 0
    return log.lookups


def only(*lines: bytes) -> Lookup:
    (found,) = lookups(*lines).elements()
    return found


@pytest.mark.parametrize(
    ("line", "lookup"),
    [
        (b"openat(%s, %s, O_RDONLY) = 3<%s>", (b"/work/x", True, True, False)),
        (b"openat(%s, %s, O_RDONLY|O_NOFOLLOW|O_CLOEXEC) = 3<%s>", (b"/work/x", False, True, False)),
        (b"openat(%s, %s, O_RDONLY|O_PATH) = 3<%s>", (b"/work/x", True, False, False)),
        (
            b"newfstatat(%s, %s, {st_size=5, ...}, AT_SYMLINK_NOFOLLOW) = 0",
            (b"/work/x", False, False, False),
        ),
        (b"newfstatat(%s, %s, 0x7ffe, 0) = -1 ENOENT (No such file or directory)", (b"/work/x", True, False, True)),
        (b"statx(%s, %s, AT_STATX_SYNC_AS_STAT, STATX_ALL, {}) = 0", (b"/work/x", True, False, False)),
        (b"readlinkat(%s, %s, 0x55, 64) = -1 EINVAL (Invalid argument)", (b"/work/x", False, False, False)),
        (b"mkdirat(%s, %s, 0777) = 0", (b"/work/x", False, False, True)),
        (b"mkdirat(%s, %s, 0777) = -1 EEXIST (File exists)", (b"/work/x", False, False, False)),
        (b"unlinkat(%s, %s, 0) = 0", (b"/work/x", False, False, False)),
        (b"faccessat2(%s, %s, X_OK, AT_EACCESS) = 0", (b"/work/x", True, False, False)),
        (b"openat(%s, %s, O_RDONLY) = -1 EACCES (Permission denied)", (b"/work/x", True, False, False)),
    ],
)
def test_calls_with_a_directory(line: bytes, lookup: tuple[bytes, bool, bool, bool]) -> None:
    arguments = (at(), quoted(b"x"), hexed(b"/work/x"))[: line.count(b"%s")]
    assert only(b"7  " + line % arguments) == Lookup(*lookup)


@pytest.mark.parametrize(
    ("line", "lookup"),
    [
        (b"access(%s, F_OK) = -1 ENOENT (No such file or directory)", (b"/work/x", True, False, True)),
        (b"stat(%s, {st_mode=S_IFDIR|0755, ...}) = 0", (b"/work/x", True, False, False)),
        (b"lstat(%s, {st_mode=S_IFDIR|0755, ...}) = 0", (b"/work/x", False, False, False)),
        (b"open(%s, O_RDONLY) = 3", (b"/work/x", True, True, False)),
        (b"readlink(%s, 0x7f, 4096) = 5", (b"/work/x", False, False, False)),
        (b'execve(%s, ["\\x6c"...], 0x7ffc /* 38 vars */) = 0', (b"/work/x", True, True, False)),
        (b"inotify_add_watch(3<anon_inode:inotify>, %s, IN_OPEN) = 1", (b"/work/x", True, False, False)),
        (b'symlink("\\x74", %s) = 0', (b"/work/x", False, False, True)),
        (b"chdir(%s) = -1 ENOENT (No such file or directory)", (b"/work/x", True, False, True)),
    ],
)
def test_calls_without_a_directory(line: bytes, lookup: tuple[bytes, bool, bool, bool]) -> None:
    assert only(b"7  " + line % quoted(b"x")) == Lookup(*lookup)


def test_calls_with_two_paths() -> None:
    line = b"7  renameat2(%s, %s, 4<%s>, %s, RENAME_NOREPLACE) = 0" % (at(), quoted(b"a"), hexed(b"/d"), quoted(b"b"))
    assert set(lookups(line)) == {Lookup(b"/work/a", False, False, False), Lookup(b"/d/b", False, False, False)}
    line = b"7  link(%s, %s) = 0" % (quoted(b"a"), quoted(b"/b"))
    assert set(lookups(line)) == {Lookup(b"/work/a", False, False, False), Lookup(b"/b", False, False, False)}
    line = b"7  symlinkat(%s, %s, %s) = 0" % (quoted(b"target"), at(b"/d"), quoted(b"b"))
    assert set(lookups(line)) == {Lookup(b"/d/b", False, False, True)}


@pytest.mark.parametrize(
    "line",
    [
        b'newfstatat(3<%s>, "", {}, AT_EMPTY_PATH) = 0' % hexed(b"/work"),
        b"newfstatat(3, %s, {}, 0) = 0" % quoted(b"x"),
        b"newfstatat(3<%s>(deleted), %s, {}, 0) = 0" % (hexed(b"/work"), quoted(b"x")),
        b"utimensat(3<%s>, NULL, NULL, 0) = 0" % hexed(b"/work"),
        b"getcwd(%s, 4096) = 5" % quoted(b"/work"),
        b"openat(%s, 0x7f001, O_RDONLY) = -1 EFAULT (Bad address)" % at(),
        b'openat(%s, "\\x61"..., O_RDONLY) = -1 ENAMETOOLONG (File name too long)' % at(),
        b"access(%s, F_OK) = ? ERESTARTSYS (To be restarted)" % quoted(b"x"),
        b"fchdir(3<%s>) = -1 ENOTDIR (Not a directory)" % hexed(b"/work"),
    ],
)
def test_what_looks_nothing_up(line: bytes) -> None:
    assert not lookups(b"7  " + line)


def test_names_that_look_like_syntax() -> None:
    name = b') = -1 ENOENT "<...> \n\xff\\'
    line = b"7  openat(%s, %s, O_RDONLY) = 3<%s>" % (at(b"/w<>"), quoted(name), hexed(b"/w<>/" + name))
    assert only(line) == Lookup(b"/w<>/" + name, True, True, False)


def seen(*lines: bytes) -> set[bytes]:
    return {lookup.path for lookup in lookups(*lines) if lookup.path.endswith(b"/x")}


ACCESS = b"access(%s, F_OK)                 = 0" % quoted(b"x")


class TestWorkingDirectories:
    def test_that_of_the_first_process_is_ours(self) -> None:
        assert seen(b"7  " + ACCESS) == {b"/work/x"}

    def test_chdir_and_fchdir(self) -> None:
        assert seen(b"7  chdir(%s) = 0" % quoted(b"d/.."), b"7  " + ACCESS) == {b"/work/d/../x"}
        assert seen(b"7  chdir(%s) = 0" % quoted(b"/e"), b"7  " + ACCESS) == {b"/e/x"}
        assert seen(b"7  fchdir(4<%s>) = 0" % hexed(b"/f"), b"7  " + ACCESS) == {b"/f/x"}

    def test_a_gone_one_is_no_place(self) -> None:
        assert seen(b"7  fchdir(4<%s>(deleted)) = 0" % hexed(b"/f"), b"7  " + ACCESS) == set()

    def test_what_other_calls_tell(self) -> None:
        told = b"7  openat(%s, %s, O_RDONLY) = 3" % (at(b"/told"), quoted(b"/etc/passwd"))
        assert seen(told, b"7  " + ACCESS) == {b"/told/x"}

    def test_a_child_has_its_parents_and_then_its_own(self) -> None:
        lines = [
            b"7  chdir(%s) = 0" % quoted(b"/p"),
            b"7  clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f) = 8",
            b"8  " + ACCESS,
            b"8  chdir(%s) = 0" % quoted(b"/c"),
            b"7  " + ACCESS,
            b"8  " + ACCESS,
        ]
        assert seen(*lines) == {b"/p/x", b"/c/x"}
        assert lookups(*lines)[Lookup(b"/p/x", True, False, False)] == 2

    def test_a_child_that_is_faster_than_its_parents_call(self) -> None:
        lines = [
            b"7  vfork( <unfinished ...>",
            b"8  " + ACCESS,
            b"8  chdir(%s) = 0" % quoted(b"c"),
            b"8  access(%s, F_OK <unfinished ...>" % quoted(b"x"),
            b"7  <... vfork resumed>)              = 8",
            b"8  <... access resumed>)             = 0",
        ]
        assert seen(*lines) == {b"/work/x", b"/work/c/x"}

    def test_threads_share_one(self) -> None:
        lines = [
            b"7  clone3({flags=CLONE_VM|CLONE_FS|CLONE_THREAD, child_tid=0x7f} => {parent_tid=[8]}, 88) = 8",
            b"8  chdir(%s) = 0" % quoted(b"/c"),
            b"7  " + ACCESS,
        ]
        assert seen(*lines) == {b"/c/x"}

    def test_a_number_that_is_used_again(self) -> None:
        lines = [
            b"7  fork() = 8",
            b"8  chdir(%s) = 0" % quoted(b"/first"),
            b"8  +++ exited with 0 +++",
            b"7  chdir(%s) = 0" % quoted(b"/later"),
            b"8  " + ACCESS,
            b"7  fork() = 8",
        ]
        assert seen(*lines) == {b"/later/x"}

    def test_a_child_whose_parent_nobody_knows(self) -> None:
        assert seen(b"7  +++ exited with 0 +++", b"7  " + ACCESS, b"9  " + ACCESS) == {b"/work/x"}


def test_one_with_threads_that_was_there_before() -> None:
    log = TraceLog({7: b"/seven"}.get)
    log.begin(7, [7, 8])
    for line in (b"8  " + ACCESS, b"8  chdir(%s) = 0" % quoted(b"/new"), b"7  " + ACCESS):
        log.feed(line)
    assert [lookup.path for lookup in log.lookups if lookup.path.endswith(b"/x")] == [b"/seven/x", b"/new/x"]


def test_calls_of_a_process_that_came_from_nowhere_are_not_kept_for_ever() -> None:
    log = TraceLog({7: b"/seven", 9: b"/nine"}.get)
    log.begin(7)
    log.feed(b"7  " + ACCESS)
    for _ in range(5000):
        log.feed(b"9  " + ACCESS)
    assert log.lookups[Lookup(b"/nine/x", True, False, False)] == 5000


def test_what_is_not_understood_is_counted() -> None:
    log = TraceLog(lambda _pid: HERE)
    for line in (b"", b"strace: Process 8 attached", b"7  what is this", b"7  --- SIGCHLD {} ---"):
        log.feed(line)
    log.finish()
    assert (log.not_understood, log.first) == (3, 7)
