import os

import pytest

from promoterd.heat.base import Armed, Kind
from promoterd.inotify import Inotify
from support.hearing import Listen, complete, found_below
from support.overlays import MountedOverlay


def test_directories_made_and_removed_through_the_mount_are_reported(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib")
    os.mkdir(overlay.at("app/lib/new"))
    assert heard.sink.appearances == [b"app/lib/new"]
    assert heard.source.arm([b"app/lib/new"]) == Armed()
    os.rmdir(overlay.at("app/lib/new"))
    assert heard.sink.vanishings == [b"app/lib/new"]
    assert heard.source.paths() == [b"app/lib"]
    os.mkdir(overlay.at("never/new"))
    assert heard.sink.appearances == [b"app/lib/new"]


def test_a_whole_new_tree_is_heard_by_walking_what_appeared(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(*found_below(overlay, b""))
    os.makedirs(overlay.at("app/new/deep/deeper"))  # all of it before anybody could watch app/new
    assert heard.sink.appearances == [b"app/new"]
    heard.source.arm(found_below(overlay, b"app/new"))
    os.listdir(overlay.at("app/new/deep/deeper"))
    assert heard.sink.heat == {(b"app/new/deep/deeper", Kind.LIST): 1}


@pytest.mark.parametrize("renamed", ["app/lib", "app"])
def test_a_renamed_directory_is_not_charged_under_its_old_path(
    listen: Listen, overlay: MountedOverlay, renamed: str
) -> None:
    heard = listen(b"app/lib", b"app/lib/sub", b"app/doc")
    moved = overlay.at("moved")
    os.rename(overlay.at(renamed), moved)
    for directory, _, files in os.walk(moved):
        for name in files:
            os.close(os.open(directory + b"/" + name, os.O_RDONLY))
    sink = heard.sink
    gone = {b"app/lib", b"app/lib/sub"} | ({b"app", b"app/doc"} if renamed == "app" else set())
    assert sink.heat == {}
    assert set(sink.vanishings) == gone
    assert sink.appearances == [b"moved"]
    assert gone.isdisjoint(heard.source.paths())
    assert heard.source.arm([b"moved"]) == Armed()
    os.listdir(moved)
    assert heard.sink.heat == {(b"moved", Kind.LIST): 1}


def test_an_ancestor_need_not_be_armed_for_its_renaming_to_be_noticed(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib/sub")
    assert heard.source.stats().watches == 4  # the root, app, app/lib and app/lib/sub
    os.rename(overlay.at("app"), overlay.at("never/app"))
    os.listdir(overlay.at("never/app/lib/sub"))
    assert heard.sink.heat == {}
    assert b"app/lib/sub" in heard.sink.vanishings
    assert heard.source.stats().armed == 0


def test_a_directory_that_was_renamed_before_the_watch_was_there_is_gone(
    listen: Listen, overlay: MountedOverlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = listen()
    add = Inotify.add

    def rename_and_add(self: Inotify, descriptor: int, mask: int) -> int:
        if os.path.exists(overlay.at("app/lib/sub")) and os.readlink(f"/proc/self/fd/{descriptor}").endswith("lib/sub"):
            os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
        return add(self, descriptor, mask)

    monkeypatch.setattr(Inotify, "add", rename_and_add)
    assert b"app/lib/sub" in heard.source.arm([b"app/lib/sub"]).gone
    os.listdir(overlay.at("app/moved/sub"))
    assert heard.sink.heat == {}
    assert heard.source.paths() == []


def test_a_directory_that_was_renamed_unheard_gives_up_its_old_path(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/lib/sub")
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    # arming comes before the events of the renaming are read
    assert set(heard.source.arm([b"app/moved"]).gone) == {b"app/lib", b"app/lib/sub"}
    assert heard.source.paths() == [b"app/moved"]
    # the events of the renaming are older than the watch, which cannot be known: it is reported and armed once more
    assert heard.sink.appearances == [b"app/moved"]
    heard.source.arm([b"app/moved"])
    os.listdir(overlay.at("app/moved"))
    assert heard.sink.heat == {(b"app/moved", Kind.LIST): 1}


def test_rearming_what_is_no_longer_there_forgets_all_below_it(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/lib/sub", b"app/doc")
    os.rename(overlay.at("app/lib"), overlay.at("app/moved"))
    assert set(heard.source.rearm([b"app/lib"]).gone) == {b"app/lib", b"app/lib/sub"}
    assert heard.source.paths() == [b"app/doc"]


def test_a_watch_goes_dead_with_the_mark_and_rearming_revives_it(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/doc")
    overlay.cool()
    os.listdir(overlay.at("app/doc"))
    assert heard.sink.heat[b"app/doc", Kind.LIST] == 1  # copy-up alone, or a cool cache, does no harm
    complete(overlay, b"app/doc")
    overlay.cool()
    heard.sink.heat.clear()
    os.listdir(overlay.at("app/doc"))
    os.close(os.open(overlay.at("app/doc/d"), os.O_RDONLY))
    assert heard.sink.nothing()
    assert heard.source.arm([b"app/doc"]) == Armed()
    os.listdir(overlay.at("app/doc"))
    assert heard.sink.nothing()  # arming alone takes the dead watch for a living one
    watches = heard.source.stats().watches
    assert heard.source.rearm([b"app/doc"]) == Armed()
    os.listdir(overlay.at("app/doc"))
    os.close(os.open(overlay.at("app/doc/d"), os.O_RDONLY))
    assert heard.sink.heat == {(b"app/doc", Kind.LIST): 1, (b"app/doc", Kind.OPEN): 1}
    assert heard.source.stats().watches == watches


def test_our_watches_keep_no_mark_from_taking_effect(listen: Listen, overlay: MountedOverlay) -> None:
    listen(b"app/doc")
    complete(overlay, b"app/doc")
    overlay.cool()
    with open(overlay.on_server("app/doc/published"), "w"):
        pass
    assert os.listdir(overlay.at("app/doc")) == [b"d"]
    assert os.stat(overlay.at("app/doc")).st_nlink >= 2


def test_disarmed_directories_stay_silent_until_rearmed(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/doc")
    heard.source.disarm([b"app/lib", b"app/never-armed"])
    assert heard.source.arm([b"app/lib"]) == Armed()
    os.listdir(overlay.at("app/lib"))
    os.listdir(overlay.at("app/doc"))
    assert heard.sink.heat == {(b"app/doc", Kind.LIST): 1}
    assert heard.source.rearm([b"app/lib"]) == Armed()
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/doc", Kind.LIST): 1, (b"app/lib", Kind.LIST): 1}


def test_quiet_work_is_no_heat_and_others_are_heard_again_after_it(listen: Listen, overlay: MountedOverlay) -> None:
    heard = listen(b"app/lib", b"app/doc")
    os.listdir(overlay.at("app/lib"))
    heard.source.disarm([b"app/lib"])
    os.listdir(overlay.at("app/lib"))
    assert heard.source.paths() == [b"app/doc"]
    heard.source.rearm([b"app/lib"])
    assert heard.sink.heat == {}
    os.listdir(overlay.at("app/lib"))
    assert heard.sink.heat == {(b"app/lib", Kind.LIST): 1}


def test_a_directory_that_is_made_anew_is_not_silent_because_its_namesake_was(
    listen: Listen, overlay: MountedOverlay
) -> None:
    os.mkdir(overlay.at("app/x"))
    heard = listen(b"app/x")
    heard.source.disarm([b"app/x"])
    os.rmdir(overlay.at("app/x"))
    os.mkdir(overlay.at("app/x"))
    assert heard.sink.appearances == [b"app/x"]
    heard.source.arm([b"app/x"])
    assert heard.source.paths() == [b"app/x"]
