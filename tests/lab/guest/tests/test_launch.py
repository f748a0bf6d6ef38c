"""A launch of an application with a few large files, whose small ones are local: within a tenth of what it reads."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab.guest import rpcs, server
from lab.guest.launch import launch
from lab.guest.measure import MANIFEST, say
from lab.guest.promoting import Promoter
from lab.guest.stack import Nfs, cool, layered_on, mounted_nfs, need_data_only_layers, upper_home
from lab.manifest import Manifest

SHARE = server.EXPORT + b"/share"
SMALL = 64 << 10
LARGE_FILES = 4
SHARE_OF_BYTES = 0.1
LEAST_GAIN = 20
CACHE_TAG = sys.implementation.cache_tag


@pytest.fixture
def manifest() -> Manifest:
    return Manifest.load(MANIFEST)


def small_bytes(manifest: Manifest) -> int:
    """In all files of the search directories that may be local."""
    sizes = [
        os.lstat(os.path.join(directory, name)).st_size
        for path in manifest.search_path
        for directory, _, names in os.walk(os.path.join(SHARE, os.fsencode(path)))
        for name in names
    ]
    return sum(size for size in sizes if size <= SMALL)


@pytest.fixture
def _large_modules(manifest: Manifest) -> Iterator[None]:
    """A few modules become so large that all small files together are less than a tenth of what is read.

    An importer reads all of the bytecode, and does not care for what follows on it.
    """
    more = bytes(small_bytes(manifest) * 11 // LARGE_FILES)
    places = [
        place
        for name in manifest.modules
        for path in manifest.python_path
        if os.path.isfile(place := os.path.join(SHARE, os.fsencode(f"{path}/__pycache__/{name}.{CACHE_TAG}.pyc")))
    ][:LARGE_FILES]
    assert len(places) == LARGE_FILES
    sizes = {place: os.path.getsize(place) for place in places}
    try:
        for place in places:
            with open(place, "ab") as file:
                file.write(more)
        yield
    finally:
        for place, size in sizes.items():
            os.truncate(place, size)


@pytest.mark.thorough
@pytest.mark.usefixtures("_large_modules")
@pytest.mark.timeout(1200)
def test_most_requests_go_with_a_tenth_of_the_bytes(manifest: Manifest, capfd: pytest.CaptureFixture[str]) -> None:
    need_data_only_layers()
    nfs = Nfs("4.2", "actimeo=600")
    with mounted_nfs(nfs) as share:
        cool()
        begun = server.bytes_read()
        with rpcs.counted() as plain:
            launch(os.fsdecode(share), MANIFEST)
        read = server.bytes_read() - begun
    with ExitStack() as stack:
        overlay = stack.enter_context(layered_on(nfs, stack.enter_context(upper_home("ext4"))))
        Promoter(overlay, manifest, "layer+chain+data", budget=round(SHARE_OF_BYTES * read)).promote(
            manifest.search_path
        )
        cool(overlay)
        with rpcs.counted() as local:
            launch(os.fsdecode(overlay.mountpoint), MANIFEST)
    with capfd.disabled():
        say(
            f"a launch reads {read:,} bytes with {plain.at_server:,} requests; with at most "
            f"{SHARE_OF_BYTES:.0%} of them in the layer it makes {local.at_server:,}"
        )
    assert 0 < local.at_server * LEAST_GAIN <= plain.at_server, local.operations
