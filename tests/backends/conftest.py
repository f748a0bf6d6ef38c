"""Every backend that marks, on the kind of overlay that it is for; and one that another package registers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.overlays import MountedOverlay
from support.promotions import Bench

BACKENDS: dict[str, dict[str, bool]] = {
    "opaque": {},
    "layer": {"layered": True, "counting": True},
    "field": {},
}
"""The backends that the conformance suite runs on, and what overlays they need; the last is another package's."""

THIRD_PARTY = '''
from promoterd.backends.opaque import OpaqueBackend


class FieldBackend(OpaqueBackend):
    """As ``opaque``, from elsewhere."""

    name = "field"


not_a_backend = 42
'''
ENTRY_POINTS = """
[promoterd.backends]
field = promoterd_field:FieldBackend
field-missing = promoterd_nowhere:Backend
field-failing = promoterd_field_failing:Backend
field-other = promoterd_field:not_a_backend
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with entry points, installed as far as importlib.metadata can tell."""
    information = tmp_path / "promoterd_field-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: promoterd-field\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "promoterd_field.py").write_text(THIRD_PARTY)
    (tmp_path / "promoterd_field_failing.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(params=BACKENDS)
def make_bench(
    request: pytest.FixtureRequest, make_overlay: Callable[..., MountedOverlay], third_party: None
) -> Callable[..., Bench]:
    """A :class:`Bench` of each backend in turn, on an overlay made of the arguments; ``batch`` is the bench's."""
    del third_party

    def make(*lowers: object, batch: int = 256, **options: object) -> Bench:
        return Bench(make_overlay(*lowers, **{**BACKENDS[request.param], **options}), request.param, batch=batch)

    return make
