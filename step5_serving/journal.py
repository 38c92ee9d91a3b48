"""The write-ahead journal of the accounting: one JSON line per fact, written before the client can know it.

    {"begin": {…}}       a request goes to an engine: key, model, estimated prompt
    {"tokens": {id: n}}  once a second: how far the open streams are
    {"settle": […]}      it is over: the row of the table `requests`, written before the answer's last byte

A line is one `write` into the kernel's page cache, about 3 µs, and survives kill -9; SQLite would cost the hot path
30 to 100 times that. ledger.py moves the lines to SQLite in batches and deletes files it no longer needs. What a dead
process left is read by the next one (`leftovers`): settled rows as they are, requests that were only begun as
interrupted ones, with what was known of them.

Each process writes to a folder of its own, and holds the lock beside it for as long as it lives.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

SEGMENT = 8 << 20  # bytes; a file is left behind when it is full and deleted when its rows are in the database


class Journal:
    """The files of this process. Every method but `close` is for the event loop's thread."""

    def __init__(self, folder: Path) -> None:
        """folder: where the journals of all processes are."""
        self._folder = folder / f"{time.time_ns()}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # First the lock, then the folder: whoever looks for leftovers never finds a folder without its lock.
        self._lock = FileLock(f"{self._folder}.lock", thread_local=False)
        self._lock.acquire(timeout=0)
        self._folder.mkdir(mode=0o700)
        self._segments = 0
        self._open_segment()

    def write(self, fact: dict[str, Any]) -> None:
        """Append one line. Raises OSError when the disk takes no more."""
        line = orjson.dumps(fact, option=orjson.OPT_APPEND_NEWLINE)
        written = 0
        try:
            while written < len(line):  # more than once when the disk is nearly full
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._size)  # half a line would spoil the next one
            raise
        self._size += written

    @property
    def full(self) -> bool:
        """Whether it is time to rotate."""
        return self._size >= SEGMENT

    def rotate(self, still_open: Iterable[dict[str, Any]]) -> Path:
        """Begin a new file with these facts; return the old one, to delete once its rows are in the database."""
        old, old_file = self._path, self._file
        self._open_segment()
        for fact in still_open:
            self.write(fact)
        os.close(old_file)
        return old

    def close(self, keep: bool) -> None:
        """The process ends. keep: not everything is in the database, so the next process needs the files."""
        os.close(self._file)
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _open_segment(self) -> None:
        self._path = self._folder / f"{self._segments:06}.jsonl"
        self._segments += 1
        self._size = 0
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def leftovers(folder: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Yield each dead process's folder with its facts, oldest first; the caller deletes the folder when it has them.

    The folder is locked while the caller works on it, so that two processes do not read it at once.
    """
    for left in sorted(path for path in folder.glob("*-*") if path.is_dir()):
        with contextlib.suppress(Timeout), FileLock(f"{left}.lock", timeout=0):
            facts: list[dict[str, Any]] = []
            for segment in sorted(left.glob("*.jsonl")):
                for line in segment.read_bytes().splitlines(keepends=True):
                    # A last line without its end was cut by the death of the machine or a full disk.
                    with contextlib.suppress(orjson.JSONDecodeError):
                        facts.append(orjson.loads(line))
            yield left, facts
            Path(f"{left}.lock").unlink(missing_ok=True)
