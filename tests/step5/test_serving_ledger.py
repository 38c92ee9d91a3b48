"""The accounts: exact, complete, and whole after kill -9."""

import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from conftest import Gateway, chat_body, eventually, new_key
from fake_engine import ADAPTER, Fake

from shared.errors import UserError
from step5_serving import journal
from step5_serving.database import MIGRATIONS, connect
from step5_serving.launch import free_port
from step5_serving.ledger import bring_in_leftovers
from step5_serving.usage import usage_rows

ROOT = Path(__file__).parents[2]


def test_every_request_has_its_row(gateway: Gateway, engine: Fake) -> None:
    gateway.at_once([lambda: gateway.chat("a b c", max_tokens=7), lambda: gateway.stream("a b", max_tokens=5)] * 10)
    rows = gateway.rows()
    assert len(rows) == 20
    assert sum(row["prompt"] for row in rows) == engine.prompt_tokens == 50
    assert sum(row["completion"] for row in rows) == engine.completion_tokens == 120
    assert {row["outcome"] for row in rows} == {"ok"}
    price = gateway.parts.prices["*"]
    for row in rows:
        assert row["cost"] == pytest.approx(price.cost(row["prompt"], row["cached"], row["completion"]))
        assert row["engine"] == "openai"
        assert abs(row["started"] - time.time()) < 60


def test_refused_requests_have_none(gateway: Gateway) -> None:
    gateway.chat(model="no-such-model")
    gateway.post("/v1/chat/completions", content=b"{")
    assert gateway.rows() == []


def test_usage_by_key_model_and_day(gateway: Gateway) -> None:
    other = new_key("other")
    eventually(lambda: gateway.get("/v1/models", other).status_code == 200)
    for key, model in ((None, "fake-model"), (None, ADAPTER), (other, ADAPTER), (other, ADAPTER)):
        assert gateway.chat(key=key, model=model).status_code == 200
    gateway.parts.ledger.flush()
    with closing(connect()) as database:
        by = usage_rows(database, ["key", "model"])
        assert [(row["model"], row["requests"], row["completion"]) for row in by] == [
            (ADAPTER, 1, 4), ("fake-model", 1, 4), (ADAPTER, 2, 8),
        ]  # fmt: skip
        assert by[-1]["key"] == "other"
        (day,) = usage_rows(database, ["day"])
        assert (day["day"], day["requests"]) == (time.strftime("%Y-%m-%d", time.gmtime()), 4)
        assert usage_rows(database, [], key="other")[0]["requests"] == 2
        assert usage_rows(database, [], key="nobody")[0]["requests"] == 0
        database.execute("UPDATE requests SET started = started - 86400 * 10 WHERE model = 'fake-model'")
        assert usage_rows(database, [], days=7)[0]["requests"] == 3
        with pytest.raises(UserError, match="colour"):
            usage_rows(database, ["colour"])
    answer = gateway.get("/v1/usage").json()
    assert answer["data"][0]["completion"] == 4
    assert answer["spent"] > 0


def test_full_journal_files_make_room(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT", 2000)
    for _ in range(20):
        gateway.chat()
    assert len(gateway.rows()) == 20
    eventually(lambda: len(list((gateway.home / "journal").glob("*/*.jsonl"))) == 1)


def test_a_database_that_is_busy_delays_nobody(gateway: Gateway) -> None:
    with closing(connect()) as database:
        database.execute("BEGIN IMMEDIATE")  # as a long report or a backup would
        before = time.perf_counter()
        assert gateway.chat().status_code == 200
        assert time.perf_counter() - before < 1
        database.execute("ROLLBACK")
    assert len(gateway.rows()) == 1


def test_a_full_disk_stops_requests_before_they_cost_something(
    gateway: Gateway, engine: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def nearly_full(file: int, data: bytes) -> int:
        """The first 60 bytes of a line still fit."""
        if data.startswith(b'{"begin"'):
            return write(file, data[:60])
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        answer = gateway.chat()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "accounting_unavailable"
    assert not engine.seen
    assert gateway.chat().status_code == 200
    (file,) = (gateway.home / "journal").glob("*/*.jsonl")
    assert [list(json.loads(line)) for line in file.read_text().splitlines()] == [["begin"], ["settle"]]


def test_a_line_cut_by_a_power_failure_costs_that_line(gateway: Gateway) -> None:
    gateway.chat()
    (file,) = (gateway.home / "journal").glob("*/*.jsonl")
    dead = gateway.home / "journal" / "1-1"
    dead.mkdir()
    lines = file.read_bytes().replace(b'"settle"', b'"settled"')  # a process that died before
    (dead / "000000.jsonl").write_bytes(lines + b'{"tokens": {"x"')
    with closing(connect()) as database:
        assert bring_in_leftovers(database, gateway.home) == 1
        assert bring_in_leftovers(database, gateway.home) == 0
    assert not dead.exists()


def test_a_database_from_the_future_is_left_alone(home: Path) -> None:
    with closing(connect()) as database:
        database.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    with pytest.raises(UserError, match="newer version"):
        connect()
    home.joinpath("gateway.db").write_bytes(b"not a database at all" * 100)
    for leftover in home.glob("gateway.db-*"):
        leftover.unlink()
    with pytest.raises(UserError, match="cannot be used"):
        connect()


CLIENTS = 4


class Clients:
    """People who keep asking until the service is gone, and write down what they got."""

    def __init__(self, url: str, key: str) -> None:
        self.complete: dict[str, tuple[int, int]] = {}
        self._url, self._key = url, key
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        headers = {"authorization": f"Bearer {self._key}"}
        http = httpx.Client(base_url=self._url, headers=headers, verify=False, trust_env=False)
        with http, suppress(httpx.HTTPError):
            while True:
                text, most = "word " * chance.randint(1, 9), chance.randint(1, 12)
                body = chat_body(text, max_tokens=most, stream=chance.random() < 0.5)
                answer = http.post("/v1/chat/completions", json=body)
                if not body["stream"] or answer.content.endswith(b"[DONE]\n\n"):
                    self.complete[answer.headers["x-request-id"]] = len(text.split()), most


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_kill_9_loses_nothing(home: Path, engine: Fake) -> None:
    """Three services killed at random moments under load: whatever a client got in full is in the accounts, exactly."""
    engine.seconds_per_token = 0.01
    key = new_key("clients")
    complete: dict[str, tuple[int, int]] = {}
    chance = random.Random(7)
    for _ in range(3):
        with service(engine.url) as (process, url):
            clients = Clients(url, key)
            eventually(lambda clients=clients: clients.complete)
            time.sleep(chance.uniform(0.1, 0.7))
            process.kill()
            clients.join()
            complete |= clients.complete
    eventually(lambda: engine.running == 0)

    command = [sys.executable, "-m", "step5_serving", "usage", "--by", "key", "--json"]
    (total,) = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    with closing(connect()) as database:
        database.row_factory = sqlite3.Row
        rows = {row["id"]: row for row in database.execute("SELECT * FROM requests")}
    assert total["key"] == "clients"
    assert total["requests"] == len(rows)
    # A request is noted before it is sent on: the kill can fall in between, the other way round never.
    assert len(engine.seen) <= len(rows) <= len(engine.seen) + 3 * CLIENTS  # one each, three kills
    assert len(complete) >= 3
    for identity, (prompt, completion) in complete.items():
        row = rows[identity]
        assert (row["outcome"], row["estimated"]) == ("ok", 0)
        assert (row["prompt"], row["completion"]) == (prompt, completion)
    interrupted = [row for row in rows.values() if row["outcome"] == "interrupted"]
    assert interrupted
    assert total["estimated"] == len(interrupted)
    assert not list((home / "journal").glob("*-*/"))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM")
def test_an_orderly_end_lets_running_answers_finish(home: Path, engine: Fake) -> None:
    engine.seconds_per_token, engine.tokens = 0.05, 10
    key = new_key("client")
    with (
        service(engine.url) as (process, url),
        httpx.Client(base_url=url, verify=False, trust_env=False, timeout=20) as http,
    ):
        body, headers = chat_body(stream=True), {"authorization": f"Bearer {key}"}
        with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            blocks = response.iter_raw()
            first = next(blocks)
            process.send_signal(signal.SIGTERM)
            assert (first + b"".join(blocks)).endswith(b"[DONE]\n\n")
        assert process.wait(60) == 0
    assert not list((home / "journal").glob("*-*/"))
    with closing(connect()) as database:
        assert usage_rows(database, [])[0]["completion"] == 10


@contextmanager
def service(engine_url: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Run the real program; yield it when its engine is ready."""
    port = free_port()
    command = [sys.executable, "-m", "step5_serving", "serve", "--port", str(port), "--engine-url", engine_url]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None
        with suppress(httpx.HTTPError):
            return httpx.get(f"{url}/ready", trust_env=False).status_code == 200
        return False

    try:
        eventually(ready, 60)
        yield process, url
    finally:
        process.kill()
        process.wait()
