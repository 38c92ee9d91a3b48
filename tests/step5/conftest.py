"""A gateway in a thread of the test's process, in front of fake engines, with a home of its own."""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fake_engine import MODEL, Fake, fake_engine

from shared.config import settings
from step5_serving import engines, keys, ledger, service
from step5_serving.database import connect
from step5_serving.limits import Account
from step5_serving.service import Options, Parts, serve_in_thread


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh LLM_ROADMAP_HOME/step5; what happens once or twice a second happens 20 times a second."""
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path))
    settings.cache_clear()
    monkeypatch.setattr(engines, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(service, "TICK", 0.05)
    monkeypatch.setattr(ledger, "INTERVAL", 0.05)
    return tmp_path / "step5"


def new_key(name: str = "test", **limits: Any) -> str:
    """Make a key as the command line does."""
    with closing(connect()) as database:
        return keys.create(database, name, **limits)


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until the condition is true; return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)
    return found


@dataclass
class Gateway:
    """A running gateway. key: of a client that may do everything."""

    url: str
    parts: Parts
    key: str
    home: Path
    http: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        """For a bare socket."""
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def headers(self, key: str | None = None, more: dict[str, str] | None = None) -> dict[str, str]:
        """The Authorization header of a key, and more."""
        return {"authorization": f"Bearer {key or self.key}", **(more or {})}

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        """GET with a key."""
        return self.http.get(path, headers=self.headers(key))

    def post(
        self, path: str, key: str | None = None, more: dict[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        """POST with a key; body: as httpx takes it, json= or content=. more: headers."""
        return self.http.post(path, headers=self.headers(key, more), **body)

    def chat(self, text: str = "one two three", key: str | None = None, **body: Any) -> httpx.Response:
        """Send a chat request."""
        return self.post("/v1/chat/completions", key, json=chat_body(text, **body))

    def stream(self, text: str = "one two three", **body: Any) -> bytes:
        """Send a chat request and return its whole stream."""
        return self.chat(text, stream=True, **body).content

    @contextmanager
    def streaming(self, text: str = "one two three", **body: Any) -> Iterator[httpx.Response]:
        """Send a chat request and yield the response while it streams; leaving the block hangs up."""
        body = chat_body(text, stream=True, **body)
        with self.http.stream("POST", "/v1/chat/completions", json=body, headers=self.headers()) as response:
            yield response

    def at_once(self, requests: Sequence[Callable[[], Any]]) -> list[Any]:
        """Call all of them at the same time; return what they return."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return [future.result() for future in [pool.submit(request) for request in requests]]

    def rows(self) -> list[dict[str, Any]]:
        """The table of requests, oldest first."""
        self.parts.ledger.flush()
        with closing(connect()) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM requests ORDER BY started")]

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of the log."""
        lines = [orjson.loads(line) for line in (self.home / "log" / "gateway.jsonl").read_bytes().splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def metric(self, name: str, **labels: str) -> float:
        """One series as Prometheus would see it; 0 when it is not there."""
        return self.parts.metrics.registry.get_sample_value(name, labels or None) or 0.0


def account_of(gateway: Gateway, key: str) -> Account:
    """The running service's account of a key, once it has seen the key."""
    account: Account = eventually(lambda: gateway.parts.keys._accounts.get(key.split("-")[1]))
    return account


def chat_body(text: str = "one two three", **more: Any) -> dict[str, Any]:
    """The JSON of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


Start = Callable[..., Gateway]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start gateways over running engines; each waits until all its engines are ready."""
    with ExitStack() as stack:

        def run(*fakes: Fake, wait: bool = True, **options: Any) -> Gateway:
            key = new_key(f"key {time.time_ns()}")
            urls = [fake.url for fake in fakes]
            url, parts = stack.enter_context(serve_in_thread(Options(port=0, urls=urls, **options)))
            if wait:
                eventually(lambda: all(engine.ready for engine in parts.engines.all))
            # Without TLS, whose certificates take longer to load than a gateway takes to start.
            http = httpx.Client(base_url=url, timeout=30, verify=False, trust_env=False)
            return Gateway(url, parts, key, home, stack.enter_context(http))

        yield run


@pytest.fixture
def engine() -> Iterator[Fake]:
    with fake_engine() as fake:
        yield fake


@pytest.fixture
def gateway(start: Start, engine: Fake) -> Gateway:
    """A gateway with default options in front of `engine`."""
    return start(engine)
