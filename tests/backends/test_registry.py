"""Finding backends, those of other packages too, and choosing between them."""

from collections.abc import Callable

import pytest

from promoterd.backends import base
from promoterd.backends.choice import AUTO, PREFERENCE, backend_for, best, verdicts
from promoterd.backends.finalize import FinalizeBackend
from promoterd.backends.layer import LayerBackend
from promoterd.backends.observe import ObserveBackend
from promoterd.backends.opaque import OpaqueBackend
from promoterd.backends.prime import PrimeBackend
from promoterd.errors import UnfitMount, UsageError
from promoterd.overlay import mounts, probe
from promoterd.overlay.facts import Facts
from promoterd.overlay.mounts import Overlay
from support.overlays import MountedOverlay

OWN = ["finalize", "layer", "observe", "opaque", "prime"]
Mount = tuple[Overlay, Facts]


@pytest.fixture
def mount(make_overlay: Callable[..., MountedOverlay]) -> Mount:
    overlay = mounts.overlay_at(make_overlay({}).mountpoint)
    return overlay, probe.gather(overlay)


class TestRegistry:
    def test_our_own(self) -> None:
        assert base.names() == OWN
        found = {name: base.load(name) for name in base.names()}
        assert found == {
            "finalize": FinalizeBackend,
            "layer": LayerBackend,
            "observe": ObserveBackend,
            "opaque": OpaqueBackend,
            "prime": PrimeBackend,
        }
        for name, backend in found.items():
            assert backend.name == name

    @pytest.mark.usefixtures("third_party")
    def test_another_packages(self) -> None:
        assert base.names() == sorted([*OWN, "field", "field-failing", "field-missing", "field-other"])
        found = base.load("field")
        assert issubclass(found, OpaqueBackend)
        assert found.name == "field"

    @pytest.mark.usefixtures("third_party")
    @pytest.mark.parametrize(
        ("name", "reason"), [("field-missing", "promoterd_nowhere"), ("field-failing", "division by zero")]
    )
    def test_one_that_cannot_be_imported(self, name: str, reason: str) -> None:
        with pytest.raises(UsageError, match=reason) as error:
            base.load(name)
        assert error.value.hint == "reinstall the package that provides it"

    @pytest.mark.usefixtures("third_party")
    def test_one_that_is_none(self) -> None:
        with pytest.raises(UsageError, match=r"promoterd_field:not_a_backend.*not a subclass of Backend"):
            base.load("field-other")

    def test_one_that_there_is_not(self) -> None:
        with pytest.raises(UsageError, match="there is no backend opaqe") as error:
            base.load("opaqe")
        assert error.value.hint is not None
        assert "finalize, layer, observe, opaque, prime" in error.value.hint


class TestOnARealMount:
    def test_every_backend_has_a_verdict_the_preferred_ones_first(self, mount: Mount) -> None:
        found = verdicts(*mount)
        assert [verdict.backend for verdict in found] == list(PREFERENCE)
        assert [verdict.fit for verdict in found] == [False, False, True, True, True]
        assert "ovl-finalize-dir" in found[0].reason
        assert backend_for(AUTO, *mount) is OpaqueBackend
        with pytest.raises(UnfitMount, match="was never merged"):
            backend_for("finalize", *mount)

    @pytest.mark.usefixtures("third_party")
    def test_another_packages_is_taken_only_where_it_is_named(self, mount: Mount) -> None:
        found = {verdict.backend: verdict for verdict in verdicts(*mount)}
        assert found["field"].fit
        assert not found["field-missing"].fit
        assert "promoterd_nowhere" in found["field-missing"].reason
        assert best(list(found.values()))[0] == "opaque"
        assert backend_for("field", *mount).name == "field"
