from collections.abc import Iterator
from pathlib import Path

import pytest

from promoterd.ledger import Ledger, UpperLedger
from support.records import UPPER


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "state") as opened:
        opened.see_upper(UPPER, b"/mnt/app", (b"/upper", b"/lower"), now=100.0)
        yield opened


@pytest.fixture
def book(ledger: Ledger) -> UpperLedger:
    return ledger.of(UPPER)
