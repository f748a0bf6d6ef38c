import random
from collections.abc import Iterable

import pytest

from promoterd import inotify
from promoterd.heat.base import Kind
from promoterd.heat.watchtable import HEARD, STRUCTURE, Digest, WatchTable, digest
from promoterd.inotify import RawEvent
from promoterd.paths import is_below

DIRECTORY = inotify.IN_ISDIR


def table_of(*paths: bytes, structure: Iterable[bytes] = ()) -> WatchTable:
    """A table in which the directories have the watches 1, 2, …"""
    table = WatchTable()
    for wd, path in enumerate([*paths, *structure], 1):
        table.put(wd, path, heard=wd <= len(paths))
    return table


def happened(table: WatchTable, *events: tuple[int, int, bytes], never: bytes = b"never") -> Digest:
    raw = [RawEvent(wd, mask, 0, name) for wd, mask, name in events]
    return digest(raw, table, lambda path: not is_below(path, never))


def test_watches_are_found_both_ways() -> None:
    table = table_of(b"", b"a", b"a/b")
    assert [table.path(wd) for wd in (1, 2, 3, 4)] == [b"", b"a", b"a/b", None]
    assert b"a" in table
    assert b"b" not in table
    assert table.drop(b"a") == 2
    assert table.drop(b"a") is None
    assert table.path(2) is None
    assert (len(table), table.watches()) == (2, {1, 3})


def test_a_directory_watched_anew_gives_up_its_old_watch() -> None:
    table = table_of(b"a")
    assert table.put(7, b"a", heard=True) == (1, None)
    assert table.path(1) is None
    assert table.put(7, b"a", heard=True) == (None, None)


def test_a_watch_under_a_new_path_gives_up_its_old_path() -> None:
    table = table_of(b"a")
    assert table.put(1, b"b", heard=True) == (None, b"a")
    assert b"a" not in table
    assert table.heard() == [b"b"]


def test_a_directory_watched_for_its_structure_can_come_to_be_heard_and_stays_so() -> None:
    table = table_of(structure=[b"a"])
    assert not table.is_heard(b"a")
    table.put(1, b"a", heard=True)
    table.put(1, b"a", heard=False)
    assert table.is_heard(b"a")
    assert table.heard_count() == 1
    table.drop(b"a")
    assert table.heard_count() == 0


@pytest.mark.parametrize("seed", range(10))
def test_what_lies_below_a_directory_agrees_with_comparing_all_paths(seed: int) -> None:
    rng = random.Random(seed)
    # the neighbours of the slash in the order of bytes are where a range goes wrong
    parts = [b"a", b"a.", b"a0", b"a/", b"\xff", b"a\n", b"-"]
    table, expected, wd = WatchTable(), set[bytes](), 0
    for _ in range(300):
        path = b"/".join(rng.choices(parts, k=rng.randint(1, 4))).replace(b"//", b"/").strip(b"/")
        if rng.random() < 0.7:
            wd += 1
            table.put(wd, path, heard=True)
            expected.add(path)
        else:
            table.drop(path)
            expected.discard(path)
        asked = rng.choice([path, path.split(b"/")[0], b""])
        found = table.below(asked)
        assert sorted(found) == sorted(each for each in expected if is_below(each, asked))
        assert asked not in found[1:]


def test_masks_say_what_is_listened_for() -> None:
    assert HEARD & inotify.IN_OPEN
    assert not STRUCTURE & inotify.IN_OPEN
    assert not (HEARD | STRUCTURE) & (inotify.IN_ACCESS | inotify.IN_MODIFY | inotify.IN_CLOSE_NOWRITE)


def test_opens_and_listings_are_summed_up_by_directory_and_kind() -> None:
    found = happened(
        table_of(b"a", b"b"),
        (1, inotify.IN_OPEN, b"x.so"),
        (2, inotify.IN_OPEN, b"x.so"),
        (1, inotify.IN_OPEN | DIRECTORY, b""),
        (1, inotify.IN_OPEN, b"y.so"),
    )
    assert found.touched == {(b"a", Kind.OPEN): 2.0, (b"b", Kind.OPEN): 1.0, (b"a", Kind.LIST): 1.0}
    assert (found.changes, found.dead, found.unclaimed) == ([], [], [])


def test_opening_a_child_directory_is_no_use_of_its_parent() -> None:
    assert happened(table_of(b"a"), (1, inotify.IN_OPEN | DIRECTORY, b"child")).touched == {}


def test_a_directory_watched_for_its_structure_is_never_hot() -> None:
    assert happened(table_of(structure=[b"a"]), (1, inotify.IN_OPEN, b"x")).touched == {}


@pytest.mark.parametrize("mask", [inotify.IN_CREATE, inotify.IN_MOVED_TO])
def test_new_directories_appear_unless_policy_has_no_use_for_them(mask: int) -> None:
    found = happened(table_of(b"a"), (1, mask | DIRECTORY, b"new"), (1, mask | DIRECTORY, b"never"), never=b"a/never")
    assert found.changes == [(b"a/new", True)]
    assert happened(table_of(b"a"), (1, mask, b"file")).changes == []


@pytest.mark.parametrize("mask", [inotify.IN_DELETE, inotify.IN_MOVED_FROM])
def test_what_leaves_its_parent_vanishes_with_all_below_it(mask: int) -> None:
    table = table_of(b"a", b"a/b", b"a/b/c", b"a/bc")
    found = happened(table, (1, mask | DIRECTORY, b"b"), (3, inotify.IN_OPEN, b"too late"))
    assert found.changes == [(b"a/b", False), (b"a/b/c", False)]
    assert found.dead == [2, 3]
    assert found.touched == {}
    assert sorted(table.heard()) == [b"a", b"a/bc"]


def test_an_unwatched_directory_that_leaves_takes_watched_ones_along() -> None:
    table = table_of(b"a", b"a/b/c")
    assert happened(table, (1, inotify.IN_MOVED_FROM | DIRECTORY, b"b")).changes == [(b"a/b", False), (b"a/b/c", False)]
    assert len(table) == 1


@pytest.mark.parametrize("mask", [inotify.IN_DELETE_SELF, inotify.IN_MOVE_SELF, inotify.IN_IGNORED])
def test_a_directory_can_tell_of_its_own_end(mask: int) -> None:
    table = table_of(b"a", b"a/b")
    assert happened(table, (1, mask, b"")).changes == [(b"a", False), (b"a/b", False)]
    assert len(table) == 0


def test_an_end_that_is_told_twice_is_reported_once() -> None:
    found = happened(
        table_of(b"a", b"a/b"),
        (1, inotify.IN_DELETE | DIRECTORY, b"b"),
        (2, inotify.IN_DELETE_SELF, b""),
        (2, inotify.IN_IGNORED, b""),
    )
    assert found.changes == [(b"a/b", False)]
    assert [event.mask for event in found.unclaimed] == [inotify.IN_DELETE_SELF]


def test_heat_of_a_directory_that_vanished_meanwhile_is_none() -> None:
    found = happened(table_of(b"a"), (1, inotify.IN_OPEN, b"x"), (1, inotify.IN_DELETE_SELF, b""))
    assert found.touched == {}


def test_a_rename_is_a_vanishing_and_an_appearing() -> None:
    table = table_of(b"a", b"a/b", b"c")
    found = happened(
        table,
        (1, inotify.IN_MOVED_FROM | DIRECTORY, b"b"),
        (3, inotify.IN_MOVED_TO | DIRECTORY, b"b"),
        (2, inotify.IN_MOVE_SELF, b""),
    )
    assert found.changes == [(b"a/b", False), (b"c/b", True)]
    assert found.dead == [2]


def test_a_rename_onto_a_watched_directory_replaces_it() -> None:
    table = table_of(b"a", b"a/b")
    found = happened(table, (1, inotify.IN_MOVED_TO | DIRECTORY, b"b"))
    assert found.changes == [(b"a/b", False), (b"a/b", True)]
    assert b"a/b" not in table


def test_policy_keeps_what_never_matters_from_being_reported() -> None:
    found = happened(
        table_of(b""), (1, inotify.IN_CREATE | DIRECTORY, b"never"), (1, inotify.IN_DELETE | DIRECTORY, b"never")
    )
    assert found.changes == []


def test_events_of_unknown_watches_are_handed_back_but_for_confirmations() -> None:
    found = happened(table_of(), (9, inotify.IN_OPEN, b"x"), (9, inotify.IN_IGNORED, b""))
    assert found.unclaimed == [RawEvent(9, inotify.IN_OPEN, 0, b"x")]


def test_overflows_are_counted_and_what_follows_them_is_taken_in() -> None:
    found = happened(table_of(b"a"), (-1, inotify.IN_Q_OVERFLOW, b""), (1, inotify.IN_OPEN, b"x"))
    assert found.overflows == 1
    assert found.touched == {(b"a", Kind.OPEN): 1.0}


def test_an_unmount_is_told_once_for_all() -> None:
    found = happened(
        table_of(b"a", b"b"),
        (1, inotify.IN_OPEN, b"x"),
        (1, inotify.IN_UNMOUNT, b""),
        (1, inotify.IN_IGNORED, b""),
        (2, inotify.IN_UNMOUNT, b""),
    )
    assert found.unmounted
    assert found.changes == []
    assert found.touched == {(b"a", Kind.OPEN): 1.0}


def test_odd_names_make_odd_paths() -> None:
    name = b"not-utf8-\xff\nnewline"
    assert happened(table_of(b"\xfe"), (1, inotify.IN_CREATE | DIRECTORY, name)).changes == [(b"\xfe/" + name, True)]
