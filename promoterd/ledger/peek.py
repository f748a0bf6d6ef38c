"""Reading a ledger that another process may be writing, and changing nothing: no migration, no rebuilding."""

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import quote

from promoterd.ledger.database import explain
from promoterd.ledger.ledger import FILE_NAME
from promoterd.states import State


@dataclass(frozen=True, slots=True)
class Peek:
    """What the ledger says of one upper layer: where it stood, its directories, and what was begun there."""

    mountpoint: bytes
    layers: tuple[bytes, ...]
    directories: dict[bytes, tuple[State, float]] = field(default_factory=dict)
    """The state of each, and since when."""
    unfinished: frozenset[bytes] = frozenset()


def peek(state_directory: str, upper_id: str) -> Peek | None:
    """What stands in the ledger; None where there is none, or it never saw the layer. Raises LedgerError."""
    path = os.path.join(os.path.abspath(state_directory), FILE_NAME)
    if not os.path.exists(path):
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
            return _read(connection, upper_id)
    except (sqlite3.Error, ValueError) as error:
        raise explain(path, error if isinstance(error, sqlite3.Error) else OSError(str(error))) from error


def _read(connection: sqlite3.Connection, upper_id: str) -> Peek | None:
    upper = connection.execute("SELECT mountpoint, layers FROM uppers WHERE id = ?", (upper_id,)).fetchone()
    if upper is None:
        return None
    states = connection.execute("SELECT path, state, since FROM directories WHERE upper_id = ?", (upper_id,))
    journal = connection.execute("SELECT path FROM journal WHERE upper_id = ?", (upper_id,))
    return Peek(
        bytes(upper[0]),
        tuple(layer.encode("utf-8", "surrogateescape") for layer in json.loads(upper[1])),
        {bytes(path): (State(state), since) for path, state, since in states},
        frozenset(bytes(path) for (path,) in journal),
    )
