"""The demonstration's reader: quiet while all is well, and blind to none of what could go wrong."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from promoterd.demo.lower import CountingLower
from promoterd.demo.reader import Known, Reader
from support.trees import Symlink, Tree, build, files, odd_files

TREE: Tree = {"d": {**files(5), "sub": odd_files(), "l": Symlink("f0000")}, "top": b"top"}
ABSENT = (b"d/missing", b"nothing")
pytestmark = pytest.mark.needs("root")


@pytest.fixture
def place(tmp_path: Path) -> bytes:
    build(str(tmp_path / "t"), TREE)
    return bytes(tmp_path / "t")


@pytest.fixture
def reader(place: bytes) -> Iterator[Reader]:
    with Reader(place, Known.of(place, ABSENT), think=0) as started:
        yield started


def until(condition: Callable[[], object], patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_is_content_with_what_it_knows(reader: Reader) -> None:
    until(lambda: reader.requests > 500)
    assert reader.stop() == []


def test_it_thinks_between_requests(place: bytes) -> None:
    reader = Reader(place, Known.of(place, ABSENT), think=0.05).start()
    time.sleep(0.5)
    assert reader.stop() == []
    assert 2 <= reader.requests <= 11


INJECTED: dict[str, tuple[Callable[[bytes], object], str]] = {
    "a name gone": (lambda at: os.unlink(at + b"/d/f0003"), "No such file"),
    "a name not listed": (lambda at: os.unlink(at + b"/d/l"), "/d: 1 names are missing from the listing, such as /l"),
    "a name too many": (lambda at: os.mkdir(at + b"/d/extra"), "/d: 1 names too many in the listing, such as /extra"),
    "a name at the root gone": (lambda at: os.unlink(at + b"/top"), "/: 1 names are missing from the listing"),
    "other bytes": (lambda at: Path(os.fsdecode(at + b"/top")).write_bytes(b"TOP"), "/top: wrong content"),
    "another size": (lambda at: os.truncate(at + b"/top", 2), "/top: size 2 instead of 3"),
    "a name that must not be": (lambda at: os.mkdir(at + b"/nothing"), "/nothing: exists, but should not"),
}


@pytest.mark.parametrize("what", INJECTED)
def test_it_tells_what_goes_wrong(reader: Reader, place: bytes, what: str) -> None:
    inject, expected = INJECTED[what]
    until(lambda: reader.requests > 50)
    inject(place)
    until(lambda: any(expected in error for error in reader._errors))
    assert any(expected in error for error in reader.stop())


def test_a_new_name_at_the_root_is_none_of_its_business(reader: Reader, place: bytes) -> None:
    os.mkdir(place + b"/.scratch")
    until(lambda: reader.requests > 500)
    assert reader.stop() == []


@pytest.mark.needs("fuse")
def test_an_error_of_the_server_and_a_dead_one_are_told(place: bytes, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    with CountingLower(place, str(tmp_path / "mnt")) as lower:
        reader = Reader(os.fsencode(lower.mountpoint), Known.of(place, ()), think=0.001).start()
        until(lambda: reader.requests > 20)
        lower.fail(5)
        until(lambda: reader._errors)
        lower.fail(0)
        lower.hang(True)
        time.sleep(0.1)
        told = reader.stop(timeout=0.5)
        assert any("Input/output error" in error for error in told)
        assert told[-1] == "the reader has been stuck for more than 0.5 s"
        lower.hang(False)
        reader._thread.join(5)
        assert not reader._thread.is_alive()
