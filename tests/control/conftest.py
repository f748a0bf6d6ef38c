import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from support.needs import need


@pytest.fixture
def path() -> Iterator[str]:
    """A socket in a directory that everybody may enter; it answers root alone, so a plain user has nothing to test."""
    need("root")
    directory = tempfile.mkdtemp(prefix="promoterd-control-")
    os.chmod(directory, 0o755)
    yield f"{directory}/control.sock"
    shutil.rmtree(directory)
