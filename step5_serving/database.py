"""The gateway's SQLite file: keys and requests, in write-ahead-log mode, migrated on opening.

    sqlite3 -readonly ~/.cache/llm-engineer-roadmap/step5/gateway.db "select * from requests limit 5"

In WAL mode readers and the one writer do not block each other, so `keys` and `usage` work while the service runs.
`synchronous=NORMAL` then costs no disk flush per transaction: a commit survives the death of the process, not of the
machine's power; the file stays whole either way (sqlite.org/pragma.html).
"""

import sqlite3
from pathlib import Path

from shared.config import settings
from shared.errors import UserError

# Step n brings a file from version n-1 to n. Files out there have the old steps behind them, so never edit one: append.
# keys.models: JSON list of model names, null for all. digest: SHA-256 of the secret half of the key.
# requests.key is a keys.id. started: Unix seconds. cost: US dollars, null when prices.toml has no price for the model.
# estimated: 1 when the engine could not be asked for the exact counts (it died, or has no way to tell).
MIGRATIONS = [
    [
        """CREATE TABLE keys (
            id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, digest BLOB NOT NULL, created REAL NOT NULL,
            revoked REAL, models TEXT, requests_per_minute INTEGER, tokens_per_minute INTEGER, cap REAL)""",
        """CREATE TABLE requests (
            id TEXT PRIMARY KEY, key TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, started REAL NOT NULL,
            prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL, cost REAL,
            estimated INTEGER NOT NULL, outcome TEXT NOT NULL, status INTEGER NOT NULL, seconds REAL NOT NULL,
            first_token REAL, queued REAL NOT NULL, engine TEXT, trace TEXT NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX requests_by_time ON requests (started)",
        "CREATE INDEX requests_by_key ON requests (key, started)",
    ],
]


def home() -> Path:
    """The folder of everything that step 5 keeps between runs."""
    return settings().llm_roadmap_home.expanduser() / "step5"


def connect(path: Path | None = None) -> sqlite3.Connection:
    """Open the database (default: LLM_ROADMAP_HOME/step5/gateway.db), creating or migrating it.

    The connection may move between threads, one at a time. Raises UserError for a file that cannot be used.
    """
    path = path or home() / "gateway.db"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        _migrate(connection, path)
    except (sqlite3.Error, OSError) as error:
        raise UserError(
            f"{path} cannot be used as the gateway's database ({error}); move it away or repair it"
        ) from None
    path.chmod(0o600)  # it says who asked for how much
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    # IMMEDIATE takes the write lock first: of two processes that open a new file, the second finds it migrated.
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        connection.execute("ROLLBACK")
        connection.close()
        raise UserError(f"{path} was written by a newer version of this program; update it")
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number}")
    connection.execute("COMMIT")
