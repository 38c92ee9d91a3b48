"""After a storm: do client, log, metrics, accounts and engine tell the same story, and does the gateway hold nothing?

Each function returns what is wrong, in sentences.
"""

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from step5_fuzz_world import SPARE_FILES, Look, Strict

CAUSES = {(503, "engine_unavailable")}  # 5xx that may happen although the engine is well: a probe that came late
SPARE_OBJECTS, SPARE_MB = 3000, 30.0  # growth after the first tenth that is no leak: caches of the interpreter


@dataclass(frozen=True)
class Sent:
    """A request as its sender sees it. status: None when it did not wait. logged: lines in the log, from and to."""

    identity: str
    status: int | None
    logged: tuple[int, int]


@dataclass
class Storm:
    """What the senders saw; they are threads."""

    sent: list[Sent] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    hung_up: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def problem(self, message: str) -> None:
        """Note what is wrong with one answer."""
        with self._lock:
            self.problems[message] += 1

    def answered(self, what: str, status: int, body: bytes) -> None:
        """Count an answer, and look at its shape if it is an error."""
        with self._lock:
            self.statuses[status] += 1
        if status < 400:
            return
        try:
            error = json.loads(body)["error"]
            right = set(error) == {"message", "type", "param", "code"} and bool(error["message"])
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            self.problem(f"{what}: {status} is not in OpenAI's shape: {body[:200]!r}")
        elif status >= 500 and (status, error["code"]) not in CAUSES:
            self.problem(f"{what}: {status} {error['code']}: {error['message']}")


def log_lines(home: Path) -> list[dict[str, Any]]:
    """The gateway's log, with the file before it if it was full."""
    path = home / "step5" / "log" / "gateway.jsonl"
    files = [file for file in (path.with_name("gateway.jsonl.1"), path) if file.exists()]
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def complaints(home: Path) -> Iterator[str]:
    """What the server, below the application, has printed about itself."""
    for part in (home / "stderr").read_text(encoding="utf-8", errors="replace").split("ERROR:")[1:]:
        yield f"on the gateway's stderr: {part.strip()[-500:]}"


def samples(metrics: str, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """Sums of one series of /metrics by these labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == name and sample.value:
                found[tuple(sample.labels[label] for label in labels)] += int(sample.value)
    return found


def held(before: Look, warm: Look, after: Look) -> Iterator[str]:
    """What the gateway still holds. warm: after the first tenth of the storm."""
    for name in ("running", "queued", "queued tokens", "at the engine"):
        if after[name]:
            yield f"{name}: {after[name]} after the storm"
    if abs(after["reserved"]) > 1e-9:
        yield f"${after['reserved']} are still reserved"
    for name in ("free slots", "tasks"):
        if after[name] != before[name]:
            yield f"{name}: {after[name]} after the storm, {before[name]} before it"
    # More of anything; fewer are what was not collected yet when it began.
    if more := {kind: count for kind, count in after["alive"].items() if count > before["alive"].get(kind, 0)}:
        yield f"alive: {more} after the storm, {before['alive']} before it"
    if after["files"] is not None and after["files"] > before["files"] + SPARE_FILES:
        yield f"open files: {after['files']} after the storm, {before['files']} before it"
    if after["objects"] > warm["objects"] + SPARE_OBJECTS:
        yield f"Python objects: {after['objects']:,} after the storm, {warm['objects']:,} after its first tenth"
    if after["rss"] is not None and after["rss"] > warm["rss"] + SPARE_MB:
        yield f"memory: {after['rss']:.0f} MB after the storm, {warm['rss']:.0f} MB after its first tenth"


def counted(storm: Storm, lines: list[dict[str, Any]], metrics: str) -> Iterator[str]:
    """Requests: senders against log, log against metrics."""
    requests = [line for line in lines if line["event"] == "request"]
    yield from (f"a bug: {line}" for line in lines if line["event"] in ("bug", "journal", "ledger", "tick"))
    by_id = Counter(line["client_id"].removesuffix(".2") for line in requests)
    status = {line["client_id"]: line["status"] for line in requests}
    for sent in storm.sent:
        count = by_id.pop(sent.identity, 0)
        if not sent.logged[0] <= count <= sent.logged[1]:
            yield f"{sent.identity} was sent once and logged {count} times"
        elif count and sent.status is not None and status[sent.identity] != sent.status:
            yield f"{sent.identity} was answered with {sent.status} and logged with {status[sent.identity]}"
    if by_id:
        yield f"logged and never sent: {list(by_id)[:5]}"
    of_log = Counter((line["endpoint"], str(line["status"])) for line in requests)
    if (counted := samples(metrics, "gateway_requests_total", "endpoint", "status")) != of_log:
        yield f"gateway_requests_total: {counted}, in the log: {of_log}"
    kinds = Counter((line["outcome"],) for line in requests if line["outcome"] != "ok")
    if (counted := samples(metrics, "gateway_errors_total", "kind")) != kinds:
        yield f"gateway_errors_total: {counted}, in the log: {kinds}"


def rows_of(home: Path) -> list[dict[str, Any]]:
    """The accounts."""
    with closing(sqlite3.connect(home / "step5" / "gateway.db")) as database:
        database.row_factory = sqlite3.Row
        query = "SELECT requests.*, keys.name, keys.cap FROM requests JOIN keys ON keys.id = requests.key"
        return [dict(row) for row in database.execute(query)]


def accounted(
    rows: list[dict[str, Any]], lines: list[dict[str, Any]], metrics: str, after: Look, engine: Strict
) -> Iterator[str]:
    """Accounts against log, metrics, engine and spending."""
    logged = {line["id"]: line for line in lines if line["event"] == "request"}
    fields = (("outcome", "outcome"), ("status", "status"), ("endpoint", "endpoint"), ("prompt", "prompt_tokens"),
              ("cached", "cached_tokens"), ("completion", "completion_tokens"), ("cost", "cost"))  # fmt: skip
    for row in rows:
        line = logged[row["id"]]
        if any((row[of_row] or 0) != (line[of_line] or 0) for of_row, of_line in fields):
            yield f"the account {row} differs from the log {line}"
    forwarded = [row for row in rows if row["endpoint"] != "/v1/embeddings"]
    if (ids := {row["id"] for row in forwarded}) != set(engine.ids):
        yield f"accounted for and not at the engine, or the other way round: {list(ids ^ set(engine.ids))[:5]}"
    without = [name for name, line in logged.items() if line["status"] == 200]
    if missing := set(without) - {row["id"] for row in rows}:
        yield f"answered and not accounted for: {list(missing)[:5]}"
    if any(row["estimated"] for row in rows):
        yield f"{sum(row['estimated'] for row in rows)} accounts are estimates"
    sums = {kind: sum(row[kind] for row in forwarded) for kind in ("prompt", "completion")}
    if sums != (computed := {"prompt": engine.prompt_tokens, "completion": engine.completion_tokens}):
        yield f"tokens accounted for: {sums}, computed by the engine: {computed}"
    if (embedded := sum(row["prompt"] for row in rows) - sums["prompt"]) != after["embedded"]:
        yield f"tokens embedded: {after['embedded']}, accounted for: {embedded}"
    of_rows = Counter({(kind,): sum(row[kind] for row in rows) for kind in ("prompt", "cached", "completion")})
    if (counted := samples(metrics, "gateway_tokens_total", "kind")) != +of_rows:
        yield f"gateway_tokens_total: {counted}, accounted for: {of_rows}"
    yield from _spending(rows, after["spent"])


def _spending(rows: list[dict[str, Any]], spent: Mapping[str, float]) -> Iterator[str]:
    for name, dollars in spent.items():
        mine = [row for row in rows if row["name"] == name]
        if abs(sum(row["cost"] for row in mine) - dollars) > 1e-9:
            yield f"the key {name!r} has spent ${dollars}, its accounts say ${sum(row['cost'] for row in mine)}"
        if mine and mine[0]["cap"] is not None and dollars > mine[0]["cap"] + 1e-9:  # a sum of floats
            yield f"the key {name!r} has spent ${dollars}, more than its cap"
