"""Verification: a second listing has the names of the first, with its stamps, and each of them was built (R8)."""

import os
import stat
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


def verify_shadows(files: int, rest: int, directory: PlannedDirectory) -> None:
    """Raise Busy where a name of the listing is not in the half that it belongs in; both are open to be read."""
    modes = directory.listing.entries
    missing = set(modes)
    for half, regular in ((files, True), (rest, False)):
        with os.scandir(half) as found:  # not listdir: a million names would be held a second time
            missing.difference_update(item.name for item in found if stat.S_ISREG(modes.get(item.name, 0)) is regular)
    if missing:
        raise Busy(path=show(directory.path), reason=f"{len(missing)} of its entries have no shadow")


def _names(layers: Layers, directory: PlannedDirectory) -> Iterator[str]:
    for index in directory.layers:
        with opened_to_read(layers.lowers[index], directory.path) as lower, os.scandir(lower) as found:
            for item in found:
                yield item.name


def _changed(directory: PlannedDirectory) -> Busy:
    return Busy(path=show(directory.path), reason="the server changed it")
