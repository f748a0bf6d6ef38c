from importlib.metadata import EntryPoint

import pytest

from promoterd import plugins
from promoterd.errors import UsageError
from promoterd.heat import base
from promoterd.heat.base import Armed, HeatSource, MountView, SourceStats
from promoterd.heat.inotify import InotifySource


class Sink:
    def touched(self, path: bytes, weight: float, kind: str) -> None: ...

    def overflowed(self) -> None: ...

    def appeared(self, path: bytes) -> None: ...

    def vanished(self, path: bytes) -> None: ...


class Everything(HeatSource):
    """The least that a source of its own kind must have."""

    name = "everything"
    arms = False

    def start(self) -> None: ...

    def close(self) -> None: ...

    def fileno(self) -> int | None:
        return None

    def drain(self) -> int:
        return 0

    def stats(self) -> SourceStats:
        return SourceStats(limit=None, watches=0, armed=0, refused=0, events=0, overflows=0)


def view() -> MountView:
    return MountView(b"/mnt", (0, 42), lambda _path: True, lambda _path: True)


def registered(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    points = [EntryPoint(name, value, base.GROUP) for name, value in targets.items()]
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group, name=None: [p for p in points if p.group == group and name in (None, p.name)],
    )


def test_the_package_registers_inotify() -> None:
    assert "inotify" in base.names()
    assert base.load("inotify") is InotifySource


def test_names_need_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, nfs="no.such.module:Source", bpf="neither.this:Source")
    assert base.names() == ["bpf", "nfs"]


def test_an_unknown_source_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, inotify="promoterd.heat.inotify:InotifySource", nfs="no.such.module:Source")
    with pytest.raises(UsageError, match=r"no heat source inotfy.*inotify, nfs"):
        base.load("inotfy")


def test_a_source_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, nfs="no.such.module:Source", lost="promoterd.heat.base:Lost")
    with pytest.raises(UsageError, match=r"nfs \(no\.such\.module:Source\) cannot be loaded: No module named"):
        base.load("nfs")
    with pytest.raises(UsageError, match="Lost"):
        base.load("lost")


def test_what_is_no_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, odd="promoterd.heat.base:Kind")
    with pytest.raises(UsageError, match="is not a subclass of HeatSource"):
        base.load("odd")


def test_a_source_that_hears_everything_needs_no_arming() -> None:
    source = Everything(view(), Sink())
    assert source.arm([b"a"]) == source.rearm([b"a"]) == Armed()
    source.disarm([b"a"])
    assert (source.paths(), source.refused(), source.unfit()) == ([], [], None)
