"""Accounting: every request's tokens and money, never lost on kill -9, and never in the way of an answer.

    event loop:  begin ──► journal        settle ──► journal, then the answer's last byte
    thread:                                   └────► SQLite, half a second's worth of rows in one transaction

A row is in the database half a second after its request; until then it is in the journal (journal.py), which survives
the process. Opening the ledger, or asking for usage, first brings in what a dead process left behind. Rows have the
request's id as their key, so bringing one in twice changes nothing.

    python -m step5_serving usage --by key,day
"""

import queue
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from step5_serving.database import connect, home
from step5_serving.exchange import Exchange
from step5_serving.journal import Journal, leftovers
from step5_serving.prices import Price

INTERVAL = 0.5  # seconds between transactions
COLUMNS = (
    "id", "key", "endpoint", "model", "started", "prompt", "cached", "completion", "cost", "estimated", "outcome",
    "status", "seconds", "first_token", "queued", "engine", "trace",
)  # fmt: skip
INSERT = f"INSERT OR IGNORE INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
Row = list[Any]


class Ledger:
    """The accounts of this process. begin, settle and progress are for the event loop's thread."""

    def __init__(self, folder: Path | None = None, on_error: Callable[[str], None] | None = None) -> None:
        """folder: default LLM_ROADMAP_HOME/step5. on_error: told when the database cannot be written."""
        self._folder = folder or home()
        self._database = connect(self._folder / "gateway.db")
        bring_in_leftovers(self._database, self._folder)
        self._journal = Journal(self._folder / "journal")
        self._open: dict[str, tuple[dict[str, Any], Exchange]] = {}
        self._queue: queue.SimpleQueue[Row | Path | threading.Event | None] = queue.SimpleQueue()
        self._closing, self._unwritten = threading.Event(), False
        self._on_error = on_error or (lambda message: print(message, file=sys.stderr))
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._writer.start()

    def begin(self, exchange: Exchange) -> None:
        """The request is about to go to an engine. Raises OSError when that cannot be written down."""
        assert exchange.key is not None
        assert exchange.call is not None
        price = exchange.price
        fact = {
            "id": exchange.id,
            "key": exchange.key.id,
            "endpoint": exchange.endpoint,
            "model": exchange.call.model,
            "started": exchange.started,
            "prompt": exchange.prompt,
            "price": [price.input, price.cached, price.output] if price else None,
            "trace": exchange.trace.trace,
        }
        self._journal.write({"begin": fact})
        self._open[exchange.id] = fact, exchange

    def settle(self, exchange: Exchange) -> float | None:
        """The request is over; return what it cost in US dollars. Requests that never began are not accounted for."""
        if self._open.pop(exchange.id, None) is None:
            return None
        assert exchange.key is not None
        assert exchange.call is not None
        usage = exchange.usage
        prompt, cached, completion = (usage.prompt, usage.cached, usage.completion) if usage else (0, 0, 0)
        cost = exchange.price.cost(prompt, cached, completion) if exchange.price else None
        row: Row = [
            exchange.id, exchange.key.id, exchange.endpoint, exchange.call.model, exchange.started, prompt, cached,
            completion, cost, int(exchange.estimated), exchange.outcome, exchange.status, exchange.elapsed(),
            exchange.first_token, exchange.queued, exchange.engine.name if exchange.engine else None,
            exchange.trace.trace,
        ]  # fmt: skip
        try:
            self._journal.write({"settle": row})
            if self._journal.full:
                self._queue.put(self._journal.rotate({"begin": fact} for fact, _ in self._open.values()))
        except OSError as error:  # the answer is there; the row still goes to the database
            self._on_error(f"the journal cannot be written: {error}")
        self._queue.put(row)
        return cost

    def progress(self) -> None:
        """Note how far the open streams are; called once a second."""
        events = {identity: exchange.events for identity, (_, exchange) in self._open.items() if exchange.events}
        if events:
            self._journal.write({"tokens": events})

    @property
    def streamed(self) -> int:
        """Events of the streams that are open now, about one per token."""
        return sum(exchange.events for _, exchange in self._open.values())

    def flush(self) -> None:
        """Return when everything settled so far is in the database, or cannot get there now.

        Blocks: not for the event loop.
        """
        done = threading.Event()
        self._queue.put(done)
        done.wait(5)

    def close(self) -> None:
        """Write everything and end the thread. What is still open or cannot be written is left to the next process."""
        self._closing.set()
        self._queue.put(None)
        self._writer.join()
        self._database.close()
        self._journal.close(keep=bool(self._open) or self._unwritten)

    def _write(self) -> None:
        """The thread: gather what was settled in half a second, write it in one transaction."""
        ending = False
        while not ending:
            batch = [self._queue.get()]
            if isinstance(batch[0], list):
                self._closing.wait(INTERVAL)
            while not self._queue.empty():
                batch.append(self._queue.get())
            rows = [item for item in batch if isinstance(item, list)]
            while rows:
                try:
                    insert(self._database, rows)
                    rows = []
                except sqlite3.Error as error:
                    self._on_error(f"the database cannot be written: {error}")
                    if self._closing.wait(1):
                        self._unwritten = True  # the journal has it
                        return
            for item in batch:
                if isinstance(item, Path):
                    item.unlink(missing_ok=True)
                elif isinstance(item, threading.Event):
                    item.set()
                elif item is None:
                    ending = True


def insert(database: sqlite3.Connection, rows: list[Row]) -> None:
    """Add rows in one transaction."""
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany(INSERT, rows)
        database.execute("COMMIT")
    except sqlite3.Error:
        database.execute("ROLLBACK")
        raise


def bring_in_leftovers(database: sqlite3.Connection, folder: Path) -> int:
    """Account for the requests of processes that died; return how many rows that were."""
    brought = 0
    for left, facts in leftovers(folder / "journal"):
        rows = _rows(facts)
        insert(database, rows)
        brought += len(rows)
        shutil.rmtree(left, ignore_errors=True)
    return brought


def _rows(facts: list[dict[str, Any]]) -> list[Row]:
    """The rows that a journal amounts to."""
    settled = {fact["settle"][0]: fact["settle"] for fact in facts if "settle" in fact}
    events: dict[str, int] = {}
    for fact in facts:
        events |= fact.get("tokens", {})
    begun = {fact["begin"]["id"]: fact["begin"] for fact in facts if "begin" in fact}
    interrupted = [
        _interrupted(fact, events.get(identity, 0)) for identity, fact in begun.items() if identity not in settled
    ]
    return [*settled.values(), *interrupted]


def _interrupted(fact: dict[str, Any], events: int) -> Row:
    """The row of a request that the gateway died on: what it had estimated, and what its client had got by then."""
    cost = Price(*fact["price"]).cost(fact["prompt"], 0, events) if fact["price"] else None
    return [
        fact["id"], fact["key"], fact["endpoint"], fact["model"], fact["started"], fact["prompt"], 0, events, cost, 1,
        "interrupted", 0, 0.0, None, 0.0, None, fact["trace"],
    ]  # fmt: skip


def spent(database: sqlite3.Connection) -> dict[str, float]:
    """US dollars so far, by key id."""
    return dict(database.execute("SELECT key, coalesce(sum(cost), 0) FROM requests GROUP BY key"))
