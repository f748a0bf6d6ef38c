"""What `explain` says, on a real overlay without the daemon's loops."""

import asyncio
import os
from collections.abc import Callable

import pytest

from promoterd.explain import explain
from promoterd.promotion import promote
from support.mounts import taken
from support.overlays import MountedOverlay
from support.soundness import REDIRECT
from support.trees import files

MakeOverlay = Callable[..., MountedOverlay]
LIB = b"app/lib"


@pytest.mark.parametrize(("backend", "not_shadowed"), [("opaque", ["f0001", "f0002"]), ("observe", ["f0002"])])
def test_a_file_that_looks_for_its_data_beside_itself_is_not_shadowed(
    make_overlay: MakeOverlay, backend: str, not_shadowed: list[str]
) -> None:
    """Copied up by a user's chown it is in upper, but would be broken under a mark."""
    mounted = make_overlay({"app": {"lib": files(3)}})
    with open(mounted.at("app/lib/f0000"), "a") as file:
        file.write("all of it is in upper")
    os.chown(mounted.at("app/lib/f0001"), 5, 5)
    with taken(mounted, backend=backend) as mount:
        found = asyncio.run(explain(mount, LIB, 1.0))
        assert (found["entries"], found["not_shadowed"]) == (3, not_shadowed)
        if backend == "opaque":
            asyncio.run(promote(mount, LIB))
            assert asyncio.run(explain(mount, LIB, 1.0))["not_shadowed"] == []


def test_what_is_refused_is_explained(make_overlay: MakeOverlay) -> None:
    mounted = make_overlay({"app": {"lib": files(3)}})
    os.setxattr(mounted.on_server("app"), REDIRECT, b"/elsewhere")
    with taken(mounted) as mount:
        found = asyncio.run(explain(mount, LIB, 1.0))
        assert (found["state"], found["rule"]) == ("cold", {"number": 1, "path": "**"})
        assert (found["entries"], found["not_shadowed"], found["lower_layers"]) == (0, [], [])
        assert "a lower layer carries a redirect there" in found["blocked_by"]
