"""What to say where a file server keeps this machine's root out."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from promoterd.errors import Refused
from promoterd.paths import display, show


@contextmanager
def refused_where_denied(path: bytes) -> Iterator[None]:
    """Raise Refused for ``path`` where the block meets EACCES: root is only ever kept out by a file server."""
    try:
        yield
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        name = show(path) if error.filename is None else display(os.fsencode(error.filename))
        raise Refused(
            path=show(path),
            reason=f"the server denies this machine's root permission to look at {name}",
            hint="export it with no_root_squash, or exclude it with `promote: never`",
        ) from error
