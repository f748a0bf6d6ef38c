"""The ledger's tables. A migration once released never changes; a new one is added at the end."""

APPLICATION_ID = 0x70726F6D  # "prom": how file(1) and we tell our database from another (PRAGMA application_id)

_FIRST = (
    """
    CREATE TABLE uppers (
        id          TEXT PRIMARY KEY,
        mountpoint  BLOB NOT NULL,
        layers      TEXT NOT NULL,
        first_seen  REAL NOT NULL,
        retired     INTEGER NOT NULL DEFAULT 0,
        paused      TEXT
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE directories (
        upper_id      TEXT NOT NULL REFERENCES uppers (id) ON DELETE CASCADE,
        path          BLOB NOT NULL,
        state         TEXT NOT NULL,
        since         REAL NOT NULL,
        reason        TEXT,
        backend       TEXT,
        entries       INTEGER NOT NULL,
        attempts      INTEGER NOT NULL,
        retry_at      REAL,
        marked_at     REAL,
        last_checked  REAL,
        PRIMARY KEY (upper_id, path)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX directories_by_state ON directories (upper_id, state)",
    """
    CREATE TABLE ancestors (
        upper_id    TEXT NOT NULL REFERENCES uppers (id) ON DELETE CASCADE,
        path        BLOB NOT NULL,
        attributes  TEXT NOT NULL,
        PRIMARY KEY (upper_id, path)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE deferred_reopens (
        upper_id  TEXT NOT NULL REFERENCES uppers (id) ON DELETE CASCADE,
        path      BLOB NOT NULL,
        reason    TEXT NOT NULL,
        since     REAL NOT NULL,
        PRIMARY KEY (upper_id, path)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE journal (
        upper_id   TEXT NOT NULL REFERENCES uppers (id) ON DELETE CASCADE,
        path       BLOB NOT NULL,
        operation  TEXT NOT NULL,
        step       TEXT NOT NULL,
        started    REAL NOT NULL,
        PRIMARY KEY (upper_id, path)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE stale_events (
        upper_id  TEXT NOT NULL REFERENCES uppers (id) ON DELETE CASCADE,
        path      BLOB NOT NULL,
        at        REAL NOT NULL
    ) STRICT
    """,
    "CREATE INDEX stale_events_by_path ON stale_events (upper_id, path, at)",
    "CREATE INDEX stale_events_by_time ON stale_events (upper_id, at)",
    """
    CREATE TABLE heat (
        upper_id  TEXT NOT NULL REFERENCES uppers (id) ON DELETE CASCADE,
        path      BLOB NOT NULL,
        heat      REAL NOT NULL,
        at        REAL NOT NULL,
        PRIMARY KEY (upper_id, path)
    ) STRICT, WITHOUT ROWID
    """,
)

_KINDS_OF_HEAT = (
    """
    CREATE TABLE heat_by_kind (
        upper_id  TEXT NOT NULL REFERENCES uppers (id) ON DELETE CASCADE,
        path      BLOB NOT NULL,
        kind      TEXT NOT NULL,
        heat      REAL NOT NULL,
        at        REAL NOT NULL,
        PRIMARY KEY (upper_id, path, kind)
    ) STRICT, WITHOUT ROWID
    """,
    "INSERT INTO heat_by_kind SELECT upper_id, path, '', heat, at FROM heat",
    "DROP TABLE heat",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _KINDS_OF_HEAT)
"""Element n holds the statements that bring schema n to schema n + 1; an empty file is schema 0."""
