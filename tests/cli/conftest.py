"""A mount with a policy for the commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.overlays import MountedOverlay
from support.sites import TREE, Site
from support.trees import Tree


@pytest.fixture
def make_site(make_overlay: Callable[..., MountedOverlay], tmp_path: Path) -> Callable[..., Site]:
    def make(tree: Tree = TREE, **options: Any) -> Site:
        return Site(make_overlay(tree, **options), tmp_path)

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()
