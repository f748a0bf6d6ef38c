"""Verification: a second listing has the names that were built, and the stamps are still those of the first (R8)."""

import os
from collections.abc import Iterator

from promoterd.backends.base import Busy, PlannedDirectory
from promoterd.overlay.listing import Layers, opened_to_read
from promoterd.paths import show


def verify_names(layers: Layers, directory: PlannedDirectory) -> None:
    """Raise Busy where the server has changed the directory since it was listed; OSError.

    Only names: of a client's cached listing that costs next to nothing, while attributes would have to be asked for
    entry by entry.
    """
    missing = set(directory.listing.entries)
    alone = len(directory.layers) == 1
    for name in _names(layers, directory):
        if name in missing:
            missing.discard(name)
        elif alone and name not in directory.listing.entries:
            raise _changed(directory)
    if missing:
        raise _changed(directory)
    if layers.stamps(directory.path, directory.layers) != directory.listing.stamps:
        raise _changed(directory)


def _names(layers: Layers, directory: PlannedDirectory) -> Iterator[str]:
    for index in directory.layers:
        with opened_to_read(layers.lowers[index], directory.path) as lower, os.scandir(lower) as found:
            for item in found:
                yield item.name


def _changed(directory: PlannedDirectory) -> Busy:
    return Busy(path=show(directory.path), reason="the server changed it")
