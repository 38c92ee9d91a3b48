"""The audit log: every conversation in one SQLite file, written while it happens, so that it can be read and replayed.

    python -m step2_tool_calling log          # the newest conversations
    python -m step2_tool_calling log 12       # one of them, whole
    sqlite3 -readonly ~/.cache/llm-engineer-roadmap/step2/log.db "select name, status, seconds from calls"

A Recorder watches the loop and writes each event in a transaction of its own. Killed at any moment (kill -9 too), the
file opens and holds everything up to the last event: tests/step2/test_log_processes.py kills it. Write-ahead logging
lets others read meanwhile. `synchronous=NORMAL` then costs no disk flush per transaction: what a process wrote survives
its death, since the kernel has it; a power cut may lose the last seconds but never damages the file
(sqlite.org/pragma.html).

Secrets are masked before anything is stored (redaction.py), so a replay sees the masks too.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from shared.config import settings
from shared.errors import UserError
from step2_tool_calling.conversation import (
    Call,
    CallDone,
    CallStarted,
    Ending,
    Event,
    Finished,
    Message,
    Result,
    Started,
    Turn,
    TurnDone,
    Usage,
)
from step2_tool_calling.redaction import safe, safe_json

# Step n brings a file from version n-1 to n. Files out there have the old steps behind them, so never edit one: append.
# calls.status is a Status once the call is done; before, "waiting" (not begun) or "running" (begun, result unknown).
MIGRATIONS = [
    [
        """CREATE TABLE conversations (
            id INTEGER PRIMARY KEY, started_at TEXT NOT NULL, model TEXT NOT NULL, endpoint TEXT NOT NULL,
            strategy TEXT NOT NULL, prompt TEXT NOT NULL, tools TEXT NOT NULL, messages TEXT NOT NULL,
            ending TEXT, answer TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
            prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER, requests INTEGER,
            cost REAL, seconds REAL)""",
        """CREATE TABLE turns (
            conversation INTEGER NOT NULL REFERENCES conversations (id), step INTEGER NOT NULL,
            content TEXT NOT NULL, finish TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
            requests INTEGER NOT NULL, seconds REAL NOT NULL, first_token REAL NOT NULL,
            PRIMARY KEY (conversation, step))""",
        """CREATE TABLE calls (
            conversation INTEGER NOT NULL, step INTEGER NOT NULL, position INTEGER NOT NULL,
            id TEXT NOT NULL, name TEXT NOT NULL, arguments TEXT NOT NULL,
            status TEXT NOT NULL DEFAULT 'waiting', output TEXT NOT NULL DEFAULT '', seconds REAL NOT NULL DEFAULT 0,
            PRIMARY KEY (conversation, step, position),
            FOREIGN KEY (conversation, step) REFERENCES turns (conversation, step))""",
    ],
]


@dataclass(frozen=True)
class Summary:
    """One line of the list. question: the last user message. ending: None while it runs, or when it was killed."""

    id: int
    started_at: datetime
    model: str
    question: str
    calls: int
    usage: Usage
    cost: float | None
    ending: Ending | None


@dataclass(frozen=True)
class LoggedTurn:
    """A turn and what came of its calls, in the order of the calls.

    A call that was under way when the process died has no result and stands in `running`: nobody knows whether it took
    effect. One that had not begun is in neither list.
    """

    step: int
    turn: Turn
    results: list[Result]
    running: list[Call]

    @property
    def complete(self) -> bool:
        """Every call has its result: a replay can go on from here."""
        return len(self.results) == len(self.turn.calls)


@dataclass(frozen=True)
class Conversation:
    """A conversation as it was logged. messages: what the model saw first; the rest follows from the turns.

    Unfinished (it still runs, or was killed): ending and cost are None, usage and seconds are sums over its turns. Only
    the last turn can be incomplete, so a replay works at least up to the one before.
    """

    id: int
    started_at: datetime
    model: str
    endpoint: str
    strategy: str
    prompt: str
    tools: list[str]
    messages: list[Message]
    turns: list[LoggedTurn]
    ending: Ending | None
    answer: str
    error: str
    usage: Usage
    cost: float | None
    seconds: float


class Log:
    """The log file, made on first use, readable by its owner only. Several processes may write to it at once."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or create the file (default: LLM_ROADMAP_HOME/step2/log.db) and bring it to this version.

        Raises UserError when it is damaged, not ours to write, or from a newer version.
        """
        self.path = path or settings().llm_roadmap_home / "step2" / "log.db"
        with self._failures():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            # timeout: seconds to wait for another process's transaction; ours take well under a millisecond.
            self._db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._use_wal()
        self._migrate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._db.close()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn SQLite's errors into sentences that name the file and the fix."""
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            if isinstance(error, sqlite3.OperationalError | OSError):  # locked, full, read-only, no such directory
                problem, fix = "cannot be used", "make room and see that you may write there"
            elif type(error) is sqlite3.DatabaseError:
                problem, fix = "is damaged", "move it away for a new one; `sqlite3 FILE .recover` may save the old"
            else:  # a broken constraint, a closed log: a bug of ours, not the file
                raise
            raise UserError(f"the log {self.path} {problem} ({error}): {fix}", exit_code=1) from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block is stored, or nothing."""
        with self._failures():
            # IMMEDIATE takes the write lock at once and waits for it; a later upgrade would fail without waiting.
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, *values: int) -> list[sqlite3.Row]:
        fitting = [max(-(2**63), min(value, 2**63 - 1)) for value in values]  # no id and no limit is larger than that
        with self._failures():
            return self._db.execute(sql, fitting).fetchall()

    def _use_wal(self) -> None:
        """Switch to write-ahead logging. Here SQLite does not wait when two processes do it at once, so we do."""
        for attempt in range(100):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt == 99:
                    raise
                time.sleep(0.02)

    def _migrate(self) -> None:
        with self.transaction() as db:  # the version is read inside: another process may be doing the same
            version: int = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise UserError(
                    f"the log {self.path} has version {version}, newer than this program ({len(MIGRATIONS)}); update "
                    "the program, or move the file away"
                )
            for statement in (statement for step in MIGRATIONS[version:] for statement in step):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def conversation(self) -> "Recorder":
        """Return an observer for the loop that writes what it is told."""
        return Recorder(self)

    def read(self, number: int) -> Conversation:
        """Return one conversation. Raises UserError, with the newest ids, when there is none of that number."""
        with self.transaction():  # the three reads must see one moment, while others write
            rows = self._rows("SELECT * FROM conversations WHERE id = ?", number)
            turns = self._rows("SELECT * FROM turns WHERE conversation = ? ORDER BY step", number)
            calls = self._rows("SELECT * FROM calls WHERE conversation = ? ORDER BY step, position", number)
        if not rows:
            newest = [str(row[0]) for row in self._rows("SELECT id FROM conversations ORDER BY id DESC LIMIT 5")]
            there = f"the newest are {', '.join(newest)}" if newest else "the log is empty"
            raise UserError(f"no conversation {number} in {self.path}; {there}")
        row = rows[0]
        logged = [_logged_turn(turn, [call for call in calls if call["step"] == turn["step"]]) for turn in turns]
        as_stored = ("id", "model", "endpoint", "strategy", "prompt", "ending", "answer", "error", "cost")
        finished = row["ending"] is not None
        return Conversation(
            **{column: row[column] for column in as_stored},
            started_at=datetime.fromisoformat(row["started_at"]),
            tools=json.loads(row["tools"]),
            messages=json.loads(row["messages"]),
            turns=logged,
            usage=_usage(row) if finished else sum((turn.turn.usage for turn in logged), Usage()),
            seconds=row["seconds"] if finished else sum(turn.turn.seconds for turn in logged),
        )

    def list(self, limit: int = 20) -> Sequence[Summary]:
        """Return the newest conversations, newest first."""
        rows = self._rows(
            """SELECT c.id, started_at, model, messages, ending, cost,
                (SELECT count(*) FROM calls WHERE conversation = c.id) AS calls,
                coalesce(c.prompt_tokens, sum(t.prompt_tokens), 0) AS prompt_tokens,
                coalesce(c.cached_tokens, sum(t.cached_tokens), 0) AS cached_tokens,
                coalesce(c.completion_tokens, sum(t.completion_tokens), 0) AS completion_tokens,
                coalesce(c.requests, sum(t.requests), 0) AS requests
            FROM conversations c LEFT JOIN turns t ON t.conversation = c.id
            GROUP BY c.id ORDER BY c.id DESC LIMIT ?""",
            limit,
        )
        as_stored = ("id", "model", "calls", "cost", "ending")
        return [
            Summary(
                **{column: row[column] for column in as_stored},
                started_at=datetime.fromisoformat(row["started_at"]),
                question=_question(json.loads(row["messages"])),
                usage=_usage(row),
            )
            for row in rows
        ]


def _usage(row: sqlite3.Row) -> Usage:
    return Usage(row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"], row["requests"])


def _question(messages: Sequence[Message]) -> str:
    asked = [message.get("content") for message in messages if message.get("role") == "user"]
    return asked[-1] if asked and isinstance(asked[-1], str) else ""


def _logged_turn(row: sqlite3.Row, call_rows: Sequence[sqlite3.Row]) -> LoggedTurn:
    calls = [Call(call["id"], call["name"], call["arguments"]) for call in call_rows]
    results, running = [], []
    for call, found in zip(calls, call_rows, strict=True):
        if found["status"] == "running":
            running.append(call)
        elif found["status"] != "waiting":
            results.append(Result(call, found["status"], found["output"], found["seconds"]))
    turn = Turn(row["content"], tuple(calls), _usage(row), row["seconds"], row["first_token"], row["finish"])
    return LoggedTurn(row["step"], turn, results, running)


class Recorder:
    """Writes the events of one conversation. id: its number, None before Started."""

    def __init__(self, log: Log) -> None:
        self.id: int | None = None
        self._log = log
        self._waiting: list[tuple[int, Call]] = []  # (position, call) of the current turn
        self._running: list[tuple[int, Call]] = []

    def __call__(self, event: Event) -> None:
        """Store one event; text deltas are not (their turn is). Raises UserError when the log cannot be written."""
        match event:
            case Started():
                self._started(event)
            case TurnDone(step, turn):
                self._turn(step, turn)
            case CallStarted(step, call):
                # Two calls may be equal, ids included; then it does not matter which of them is meant.
                entry = next(entry for entry in self._waiting if entry[1] == call)
                self._waiting.remove(entry)
                self._running.append(entry)
                self._call(step, entry[0], "running")
            case CallDone(step, result):
                entry = next(entry for entry in self._running + self._waiting if entry[1] == result.call)
                (self._running if entry in self._running else self._waiting).remove(entry)
                self._call(step, entry[0], result.status, safe(result.output), result.seconds)
            case Finished():
                self._finished(event)

    def _started(self, event: Started) -> None:
        texts = [safe(text) for text in (event.model, event.endpoint, event.strategy, event.prompt)]
        values = [datetime.now(UTC).isoformat(), *texts, safe_json(event.tools), safe_json(event.messages)]
        with self._log.transaction() as db:
            self.id = db.execute(
                """INSERT INTO conversations (started_at, model, endpoint, strategy, prompt, tools, messages)
                VALUES (?, ?, ?, ?, ?, ?, ?)""",
                values,
            ).lastrowid

    def _turn(self, step: int, turn: Turn) -> None:
        self._waiting, self._running = list(enumerate(turn.calls)), []
        texts = safe(turn.content), safe(turn.finish)
        row = (self.id, step, *texts, *astuple(turn.usage), turn.seconds, turn.first_token)
        calls = [(self.id, step, i, safe(call.id), safe(call.name), safe(call.text)) for i, call in self._waiting]
        with self._log.transaction() as db:
            db.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.executemany(
                "INSERT INTO calls (conversation, step, position, id, name, arguments) VALUES (?, ?, ?, ?, ?, ?)", calls
            )

    def _call(self, step: int, position: int, status: str, output: str = "", seconds: float = 0.0) -> None:
        with self._log.transaction() as db:
            db.execute(
                """UPDATE calls SET status = ?, output = ?, seconds = ?
                WHERE conversation = ? AND step = ? AND position = ?""",
                (status, output, seconds, self.id, step, position),
            )

    def _finished(self, event: Finished) -> None:
        texts = event.ending, safe(event.answer), safe(event.error)
        with self._log.transaction() as db:
            db.execute(
                """UPDATE conversations SET ending = ?, answer = ?, error = ?, prompt_tokens = ?, cached_tokens = ?,
                completion_tokens = ?, requests = ?, cost = ?, seconds = ? WHERE id = ?""",
                (*texts, *astuple(event.usage), event.cost, event.seconds, self.id),
            )
