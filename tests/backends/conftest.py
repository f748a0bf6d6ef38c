"""A backend that another package registers, for the suite that every backend has to pass."""

from pathlib import Path

import pytest

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
