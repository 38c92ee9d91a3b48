"""A running page for the browser tests: a real gateway, a fake engine of settable speed, and a browser to visit it.

The fixtures are imported by name (test_step5_page.py). Every visit also holds the page to this: no console error, no
request to anything but the gateway, no key in an address.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from fake_engine import ADAPTER, MODEL, Fake, _listening
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from shared.config import settings
from step5_serving import engines, keys
from step5_serving.database import connect
from step5_serving.service import Options, Parts, serve_in_thread
from step5_serving.web import live

PATIENCE = 60_000  # milliseconds: a machine that also trains a model is slow, not wrong
expect.set_options(timeout=PATIENCE)
ANSWER = "Lisbon lies on seven hills above the Tagus."


@dataclass(eq=False)
class Talker(Fake):
    """A fake engine that says `text`, a word per token; offered tools, it first calls one, in small pieces."""

    text: str = ANSWER

    async def _models(self, _: web.Request) -> web.Response:
        cards = [{"id": MODEL, "object": "model"}, {"id": ADAPTER, "object": "model", "parent": MODEL}]
        return web.json_response({"object": "list", "data": cards})

    def deltas(self, call: dict[str, Any]) -> list[dict[str, Any]]:
        """What the answer consists of."""
        if not call.get("tools") or any(message["role"] == "tool" for message in call["messages"]):
            return [{"content": word} for word in re.findall(r"\S+\s*", self.text)]
        name = call["tools"][0]["function"]["name"]
        parts: list[dict[str, Any]] = [{"index": 0, "id": "call_7", "type": "function", "function": {"name": name}}]
        arguments = re.findall(r".{1,7}", json.dumps({"city": "Lisbon", "days_ahead": 1, "units": ["°C", "m/s"]}))
        parts += [{"index": 0, "function": {"arguments": piece}} for piece in arguments]
        return [{"tool_calls": [part]} for part in parts]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        call = json.loads(await request.read())
        self.seen.append((dict(request.headers), json.dumps(call).encode()))
        if self.failures:
            error = {"message": "the fake says no", "type": "fake", "param": None, "code": "fake_no"}
            return web.json_response({"error": error}, status=int(self.failures.popleft()))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def write(document: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(document).encode() + b"\n\n")

        stopped = self._abort[f"chatcmpl-{request.headers['x-request-id']}"] = asyncio.Event()
        done = 0
        self.running += 1
        try:
            for delta in self.deltas(call)[: call["max_tokens"]]:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), self.seconds_per_token + 0.001)
                if stopped.is_set():
                    break
                await write({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                done += 1
            usage = {"prompt_tokens": 12, "completion_tokens": done, "prompt_tokens_details": {"cached_tokens": 8}}
            await write({"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
        finally:
            self.running -= 1
        return response


@contextmanager
def talking(engine: Talker) -> Iterator[None]:
    """Serve an engine from a thread, like fake_engine()."""
    started, ending, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with _listening(engine, 0):
            started.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="talker", daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


@dataclass
class Site:
    """A running page. key: of a client that may do everything."""

    url: str
    key: str
    engine: Talker
    parts: Parts


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_ROADMAP_HOME", str(tmp_path_factory.mktemp("home")))
        settings.cache_clear()
        patch.setattr(engines, "PROBE_SECONDS", 0.05)
        patch.setattr(live, "INTERVAL", 0.2)
        with closing(connect()) as database:
            key = keys.create(database, "page")
        engine = Talker()
        with talking(engine), serve_in_thread(Options(port=0, urls=[engine.url])) as (url, parts):
            while not parts.engines.slots:
                time.sleep(0.01)
            yield Site(url, key, engine, parts)
    settings.cache_clear()


@dataclass
class Opened:
    """A visitor's page, and everything it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Callable[..., Page]]:
    """Open the page with a key in its field; at the end nothing may have complained, or gone elsewhere."""
    opened: list[Opened] = []
    site.engine.seconds_per_token, site.engine.text = 0.0, ANSWER
    site.engine.seen.clear()

    def visit(*, key: str | None = None, tolerated: str = "$^", **options: Any) -> Page:
        """key: default the site's; "" for none. tolerated: a pattern for the complaints that are expected."""
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        context.set_default_timeout(PATIENCE)
        result = Opened(context.new_page())
        opened.append(result)
        page = result.page

        def hear(message: ConsoleMessage) -> None:
            if not re.search(tolerated, message.text):
                result.complaints.append(message.text)

        page.on("console", hear)
        page.on("pageerror", lambda e: result.complaints.append(str(e)))
        page.on("request", lambda r: result.requests.append(r.url))
        page.goto(site.url)
        if key != "":
            page.fill("#key", key or site.key)
            if key is None:
                expect(page.locator("#model")).to_have_value(MODEL)
        return page

    yield visit
    for result in opened:
        result.page.context.close()
        assert result.complaints == []
        assert {urlsplit(url).netloc for url in result.requests} == {urlsplit(site.url).netloc} | {
            "" for url in result.requests if url.startswith("data:")
        }
        assert not [url for url in result.requests if site.key in url or site.key[-20:] in url]


def ask(page: Page, text: str = "Where is Lisbon?") -> None:
    """Send a message with the keyboard."""
    page.fill("#message", text)
    page.press("#message", "Enter")


def ask_and_wait(page: Page, text: str = "Where is Lisbon?") -> None:
    """Send a message and wait until its answer is accounted for."""
    answers = page.locator("#log .facts").count()
    ask(page, text)
    expect(page.locator("#log .facts")).to_have_count(answers + 1)
