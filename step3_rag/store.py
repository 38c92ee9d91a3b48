"""The truth about a collection: sources, passages and vectors in one SQLite file.

Chroma and BM25 are indexes over it and can be made again from it (index.py) without embedding anything. SQLite is here
because it keeps a promise they do not: what was committed survives kill -9 and power cuts, whole. (Chroma 1.5 writes
its graph in place; a process killed meanwhile leaves one that cannot be opened: chroma-core/chroma#7090, #6975.)

    sqlite3 ~/.cache/llm-engineer-roadmap/step3/default/collection.db 'select path, passages from sources'
"""

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from step3_rag.passages import Passage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sources (
    path TEXT PRIMARY KEY,
    digest TEXT NOT NULL,       -- of the bytes and of the way they were cut; another one means: read it again
    text TEXT NOT NULL,         -- what was read from it, in which the offsets count
    passages INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS passages (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    heading_path TEXT NOT NULL, -- JSON list
    first INTEGER NOT NULL,     -- offsets in characters
    last INTEGER NOT NULL,
    text TEXT NOT NULL,
    context TEXT NOT NULL,
    vector BLOB NOT NULL        -- float16, little-endian: half the space, cosines change by less than 1e-6
);
CREATE INDEX IF NOT EXISTS passages_of_source ON passages (source, first, last);
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_FORMAT = "1"  # of this file; a change of _SCHEMA needs another
_COLUMNS = "id, source, heading_path, first, last, text, context"
_HOST_PARAMETERS = 500  # "?" in one statement; SQLite's limit was 999 for long


@dataclass(frozen=True)
class Reading:
    """One source as it was read, ready to be stored; vectors: float32 rows, one per passage."""

    path: str
    digest: str
    text: str
    passages: list[Passage]
    vectors: NDArray[np.float32]


class Store:
    """One collection's SQLite file. Threads may share it; any number of processes may read while one writes."""

    def __init__(self, folder: Path, *, encoder: str | None = None) -> None:
        """Open the collection in `folder`.

        encoder: name of the embedding model, to create the collection if need be. Without it the collection must
        exist. Raises UserError when it does not, or was built with another model or by another version of this code.
        """
        self.path = folder / "collection.db"
        others = sorted(path.parent.name for path in folder.parent.glob("*/collection.db") if path != self.path)
        instead = f", or use --collection {', '.join(others)}" if others else ""
        nothing = UserError(f"there is no collection in {folder}; make one: python -m step3_rag ingest PATH{instead}")
        if encoder is None and not self.path.exists():
            raise nothing
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            if encoder is not None:
                self._create(encoder)
            elif not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'state'"):  # killed before its first commit
                raise nothing
            state = self._state()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} cannot be read ({error}); delete {folder} and ingest again") from None
        if state["format"] != _FORMAT:
            raise UserError(f"{folder} was made by another version of step 3; delete it and ingest again")
        if encoder is not None and state["encoder"] != encoder:
            raise UserError(f"{folder} was embedded with {state['encoder']}, not {encoder}; use another --collection")
        self.encoder, self.identity = state["encoder"], state["identity"]

    def _create(self, encoder: str) -> None:
        # WAL: readers go on reading while a writer commits. FULL: a commit waits for the disk.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        first = {"format": _FORMAT, "version": "0", "identity": secrets.token_hex(4), "encoder": encoder}
        with self._transaction():
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.executemany("INSERT OR IGNORE INTO state VALUES (?, ?)", first.items())

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def version(self) -> int:
        """Counts commits that changed passages; an index carries the version that it was made from."""
        return int(self._state()["version"])

    def count(self) -> int:
        """Return how many passages there are."""
        return int(self._rows("SELECT count(*) FROM passages")[0][0])

    def digests(self) -> dict[str, str]:
        """Return path → digest of every source."""
        return dict(self._rows("SELECT path, digest FROM sources"))

    def sources(self) -> list[tuple[str, int]]:
        """Return (path, number of passages) of every source, by path."""
        return [(row[0], int(row[1])) for row in self._rows("SELECT path, passages FROM sources ORDER BY path")]

    def source_text(self, path: str) -> str:
        """Return the text that was read from a source. Raises UserError when it is not in the collection."""
        rows = self._rows("SELECT text FROM sources WHERE path = ?", (path,))
        if not rows:
            raise UserError(f"{path} is not in the collection; `sources` lists what is")
        return str(rows[0][0])

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Return id → passage; an id that is not (or no longer) stored is left out."""
        return {row[0]: _passage(row) for row in self._rows_of(_COLUMNS, ids)}

    def passages_of(self, source: str) -> list[Passage]:
        """Return a source's passages in the order of the text."""
        return [
            _passage(r)
            for r in self._rows(f"SELECT {_COLUMNS} FROM passages WHERE source = ? ORDER BY first", (source,))
        ]

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return id → unit-length vector; an id that is not stored is left out."""
        return {row[0]: _vector(row[1]) for row in self._rows_of("id, vector", ids)}

    def any_vector(self) -> NDArray[np.float32] | None:
        """Return one of the vectors; None when there are none."""
        rows = self._rows("SELECT vector FROM passages LIMIT 1")
        return _vector(rows[0][0]) if rows else None

    def ids(self) -> list[str]:
        """Return every passage's id, by source and place, so that an index does not depend on what was added when."""
        return [row[0] for row in self._rows("SELECT id FROM passages ORDER BY source, first, last")]

    def all_passages(self) -> Iterator[Passage]:
        """Yield every passage in the order of `ids`, a few hundred in memory at a time."""
        ids = self.ids()
        for start in range(0, len(ids), _HOST_PARAMETERS):
            part = ids[start : start + _HOST_PARAMETERS]
            passages = self.passages(part)
            yield from (passages[name] for name in part)

    def write(self, readings: Sequence[Reading] = (), removed: Iterable[str] = ()) -> None:
        """Replace these sources by what was read and forget the removed ones, all or nothing."""
        removed = list(removed)
        with self._transaction():
            for path in [*removed, *(reading.path for reading in readings)]:
                self._db.execute("DELETE FROM passages WHERE source = ?", (path,))
                self._db.execute("DELETE FROM sources WHERE path = ?", (path,))
            for reading in readings:
                self._db.execute(
                    "INSERT INTO sources VALUES (?, ?, ?, ?)",
                    (reading.path, reading.digest, reading.text, len(reading.passages)),
                )
                self._db.executemany(
                    f"INSERT INTO passages ({_COLUMNS}, vector) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        (p.id, p.source, json.dumps(p.heading_path), p.start, p.end, p.text, p.context, vector)
                        for p, vector in zip(
                            reading.passages, (row.astype("<f2").tobytes() for row in reading.vectors), strict=True
                        )
                    ),
                )
            self._db.execute("UPDATE state SET value = value + 1 WHERE key = 'version'")

    def new_version(self) -> None:
        """Call every index out of date, for when one is lost."""
        self.write()

    def _state(self) -> dict[str, str]:
        return dict(self._rows("SELECT key, value FROM state"))

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    def _rows_of(self, columns: str, ids: Sequence[str]) -> list[Any]:
        rows = []
        for start in range(0, len(ids), _HOST_PARAMETERS):
            part = list(ids[start : start + _HOST_PARAMETERS])
            marks = ",".join("?" * len(part))
            rows += self._rows(f"SELECT {columns} FROM passages WHERE id IN ({marks})", part)
        return rows

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise


def _vector(blob: bytes) -> NDArray[np.float32]:
    return np.frombuffer(blob, dtype="<f2").astype(np.float32)


def _passage(row: Sequence[Any]) -> Passage:
    identity, source, heading_path, start, end, text, context = row[:7]
    return Passage(identity, source, tuple(json.loads(heading_path)), start, end, text, context)
