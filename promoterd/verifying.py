"""Finding files that the server rewrote in place, which leaves the directory that they are in as it was (R8)."""

from collections.abc import Iterator

from promoterd.mounted import Mounted
from promoterd.overlay import beneath
from promoterd.overlay.listing import Layers, scanned_anew

_BATCH = 1024
_ENTRIES_PER_REQUEST = 50
"""Of a READDIRPLUS, at the least."""


async def rewritten(mount: Mounted, path: bytes) -> str | None:
    """The first file of a complete directory whose attributes on the server are not those of our shadow, if any.

    The directory is read anew, with its entries' attributes: a request for a hundred of them or so, held back by the
    mount's rate for rechecks. Raises OSError, MountGone.
    """
    scan = _scan(mount, path)
    await mount.with_layers(lambda _: None)  # raises MountGone
    while (found := await mount.run(next, scan, None)) is not None:
        if found:
            return found
        await mount.rechecks.take(_BATCH // _ENTRIES_PER_REQUEST)
    return None


def _scan(mount: Mounted, path: bytes) -> Iterator[str]:
    """The names of files that differ; an empty one after so many that do not."""
    backend = mount.backend
    with Layers(mount.overlay, mounted=False) as layers:
        names = set(backend.checkable(layers, path))
        for index in layers.contributing(path):
            root = backend.files_root(layers)
            with beneath.opened(root, path) as shadows, scanned_anew(layers.lowers[index], path) as found:
                for number, item in enumerate(found, 1):
                    now = item.stat(follow_symlinks=False)
                    if item.name in names:
                        names.discard(item.name)
                        if backend.differs(shadows, item.name, now):
                            yield item.name
                    if number % _BATCH == 0:
                        yield ""
