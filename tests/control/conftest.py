import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def path() -> Iterator[str]:
    """A socket in a directory that everybody may enter."""
    directory = tempfile.mkdtemp(prefix="promoterd-control-")
    os.chmod(directory, 0o755)
    yield f"{directory}/control.sock"
    shutil.rmtree(directory)
