"""The engines behind the gateway: which are ready, what they serve, which one gets the next request.

An engine is any OpenAI-compatible URL. Each is probed once a second; one that refuses a connection is out at once and
comes back with its next good probe. Requests go to the ready engine with the fewest of ours per slot.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from yarl import URL

from step5_serving.refusals import Refusal

PROBE_SECONDS, PROBE_TIMEOUT = 1.0, 5.0
PATIENCE = 3  # probes that may fail before an engine is out: a busy one answers late
MODELS_SECONDS = 60.0  # adapters can be loaded into a running engine
# vLLM's own series that move with every step of its computing process, also while that reads a long prompt.
MOVES = b"vllm:generation_tokens_total", b"vllm:kv_cache_usage_perc"
Card = dict[str, Any]


@dataclass(eq=False)
class Engine:
    """One engine. url: without /v1. slots: requests it runs at once. name: of its kind, for traces and labels.

    can_abort: whether it can stop a request by name (vLLM with --enable-scale-out); found out when first tried.
    ready_in: seconds until it is likely to be ready, as its supervisor reckons; asked when it is not.
    answered_at, heard_at: when a probe had its answer, and when a request last got something (time.monotonic).
    """

    url: str
    slots: int
    name: str = "vllm"
    api_key: str = ""
    ready: bool = False
    models: dict[str, Card] = field(default_factory=dict)
    in_flight: int = 0
    can_abort: bool = True
    answered_at: float = 0.0
    heard_at: float = 0.0
    ready_in: Callable[[], float] = lambda: 5.0
    _failures: int = 0
    _listed_at: float = 0.0
    _session: aiohttp.ClientSession | None = None
    _paths: dict[str, URL] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """For traces."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """For traces."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def open(self, session: aiohttp.ClientSession) -> None:
        """Use this client session."""
        self._session = session

    def post(self, path: str, body: bytes, headers: list[tuple[str, str]]) -> "aiohttp.client._RequestContextManager":
        """Send a request; an async context manager of the response."""
        assert self._session is not None
        if path not in self._paths:
            self._paths[path] = URL(self.url + path)
        if self.api_key:
            headers.append(("authorization", f"Bearer {self.api_key}"))
        return self._session.post(self._paths[path], data=body, headers=headers)

    async def abort(self, ids: list[str]) -> bool:
        """Ask the engine to end these requests; False when it cannot, which is remembered."""
        body = orjson.dumps({"request_ids": ids})
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                async with self.post(
                    "/inference/v1/abort_requests", body, [("content-type", "application/json")]
                ) as response:
                    self.can_abort = response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        return self.can_abort

    async def probe(self) -> bool:
        """Ask whether it is well; return whether `ready` changed."""
        before = self.ready
        if await self._answers():
            self._failures, self.answered_at = 0, time.monotonic()
            self.ready = bool(self.models)
        else:
            self._failures += 1
            if not self.ready or self._failures >= PATIENCE:
                self.lost()
        return self.ready != before

    async def computes(self, seconds: float) -> bool:
        """Whether it gets anything done within so many seconds: an answer of one token, or its counters move.

        vLLM's server says that it is well while the process that computes hangs. True for an engine without such
        counters, of which nothing is known.
        """
        before = await self._moves()
        if not before:
            return True
        body = orjson.dumps({"model": next(iter(self.models)), "prompt": "Hello", "max_tokens": 1})
        try:
            async with (
                asyncio.timeout(seconds),
                self.post("/v1/completions", body, [("content-type", "application/json")]) as response,
            ):
                await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):  # all slots may be taken, by long answers
            return await self._moves() != before
        return True

    async def _moves(self) -> list[bytes]:
        assert self._session is not None
        try:
            async with asyncio.timeout(PROBE_TIMEOUT), self._session.get(f"{self.url}/metrics") as response:
                return [line for line in (await response.read()).splitlines() if line.startswith(MOVES)]
        except (aiohttp.ClientError, OSError, TimeoutError):
            return []

    def lost(self) -> None:
        """It is not there: no requests until a probe succeeds."""
        self.ready = False
        self._listed_at = 0.0  # after a restart it may serve something else

    async def _answers(self) -> bool:
        assert self._session is not None
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                async with self._session.get(f"{self.url}/health", headers=headers) as response:
                    if response.status >= 500:  # a hosted endpoint may have no such page; 404 is an answer
                        return False
                if time.monotonic() - self._listed_at > MODELS_SECONDS:
                    async with self._session.get(f"{self.url}/v1/models", headers=headers) as response:
                        cards = orjson.loads(await response.read())["data"]
                    self.models = {card["id"]: card for card in cards}
                    self._listed_at = time.monotonic()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            return False
        return True


class Engines:
    """All engines. on_change: called after one became ready or was lost."""

    def __init__(self, engines: Collection[Engine], on_change: Callable[[], None]) -> None:
        self.all = list(engines)
        self._on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def slots(self) -> int:
        """Requests that the ready engines run at once."""
        return sum(engine.slots for engine in self.all if engine.ready)

    def models(self) -> dict[str, Card]:
        """Every served model's card; those of engines that are down stay known."""
        return {name: card for engine in self.all for name, card in engine.models.items()}

    def choose(self, model: str, tried: Collection[Engine] = ()) -> Engine:
        """The ready engine for a model with the fewest requests per slot, rather none of `tried`.

        Raises Refusal: 404 for a model that none serves, 503 with Retry-After when those that do are not ready.
        """
        serving = [engine for engine in self.all if model in engine.models]
        ready = [engine for engine in serving if engine.ready]
        if ready:
            return min(ready, key=lambda engine: (engine in tried, engine.in_flight / engine.slots))
        if not serving and all(engine.models for engine in self.all):
            known = ", ".join(self.models())
            raise Refusal(404, "model_not_found", f"The model {model[:100]!r} does not exist; served here: {known}.")
        raise self.unavailable()

    def has_other(self, model: str, tried: Collection[Engine]) -> bool:
        """Whether an engine that has not been tried yet could take the request."""
        return any(engine.ready and model in engine.models and engine not in tried for engine in self.all)

    def unavailable(self) -> Refusal:
        """What clients are told while no engine can take their request."""
        seconds = min((engine.ready_in() for engine in self.all if not engine.ready), default=1.0)
        return Refusal(503, "engine_unavailable", "The engine is starting; try again soon.", retry_after=seconds)

    def lost(self, engine: Engine) -> None:
        """A connection to it was refused, or its process ended."""
        if engine.ready:
            engine.lost()
            self._on_change()

    def watch(self, session: aiohttp.ClientSession) -> None:
        """Begin probing."""
        for engine in self.all:
            engine.open(session)
            self._tasks.append(asyncio.create_task(self._watch(engine), name=f"probe {engine.url}"))

    async def _watch(self, engine: Engine) -> None:
        while True:
            if await engine.probe():
                self._on_change()
            await asyncio.sleep(PROBE_SECONDS)

    async def close(self) -> None:
        """Stop probing."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def open_session(connect_timeout: float) -> aiohttp.ClientSession:
    """The one client of the gateway, made for many short requests to few hosts.

    connect_timeout: seconds. Other deadlines are the gateway's own. No limit on connections: admission is the limit.
    Idle connections are given up after 2 s because uvicorn, in the engines, closes them after 5: a request must not
    meet a connection that is just being closed.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        auto_decompress=False,
    )
