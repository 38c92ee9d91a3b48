"""Both sides of the gateway in a storm: the engine behind it, and a look at the process that it is."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from aiohttp import web
from fake_engine import CONTEXT, Answer, Fake, _listening
from pydantic import ValidationError

from shared.errors import UserError
from shared.openai_protocol import ChatRequest, CompletionRequest
from step5_serving.overhead import resident_bytes

LONGEST = 64  # tokens that the engine gives in one answer
# Open files more than before that are no leak: SQLite keeps one for each thread that has read the accounts (asyncio's
# default executor has so many) and uses it again; and a connection to the engine that is still kept alive.
SPARE_FILES = min(32, (os.cpu_count() or 1) + 4) + 4
Look = dict[str, Any]


@dataclass(eq=False)
class Strict(Fake):
    """A fake engine that refuses what vLLM refuses, so that a 5xx is never its own. ids: who asked, as they came."""

    ids: list[str] = field(default_factory=list)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body, identity = await request.read(), request.headers["x-request-id"]
        self.ids.append(identity)
        chat = request.path.endswith("chat/completions")
        try:
            call = (ChatRequest if chat else CompletionRequest).model_validate_json(body)
        except ValidationError as error:
            return _refused(error.errors()[0]["msg"])
        limits = (call.max_tokens, getattr(call, "max_completion_tokens", None))
        if any(limit is not None and not 0 < limit <= LONGEST for limit in limits):
            return _refused(f"max_tokens must be 1 to {LONGEST}")
        words = len(str(call.messages if isinstance(call, ChatRequest) else call.prompt).split())
        if words > CONTEXT:
            return _refused(f"the prompt is longer than the context of {CONTEXT} tokens")
        name = f"chatcmpl-{identity}" if chat else f"cmpl-{identity}-0"
        self._abort[name] = asyncio.Event()
        self.running += 1
        try:
            answer = Answer(self, json.loads(body), name, max(1, words), chat, None)
            return await (answer.stream(request) if call.stream else answer.whole())
        finally:
            self.sent.clear()
            self.running -= 1
            del self._abort[name]


def _refused(message: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return web.json_response({"error": error}, status=400)


@contextmanager
def strict_engine() -> Iterator[Strict]:
    """Serve from a thread until the block ends."""
    engine, loop = Strict(seconds_per_token=0.001), asyncio.new_event_loop()
    started, ending = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with _listening(engine, 0):
            started.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="engine", daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield engine
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


class Gateway:
    """step5_fuzz_gateway.py while it runs. keys: by name."""

    def __init__(self, child: "subprocess.Popen[str]", home: Path) -> None:
        self._child, self.home = child, home
        ready = self._read()
        self.url: str = ready["url"]
        self.keys: dict[str, str] = ready["keys"]

    def get(self, path: str) -> requests.Response:
        """GET without a key."""
        with requests.Session() as session:
            session.trust_env = False
            return session.get(self.url + path, timeout=30)

    def look(self) -> Look:
        """What it holds right now. files and rss (MB): None where there is no /proc."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        found = self._read()
        files, rss = Path(f"/proc/{self._child.pid}/fd"), resident_bytes(self._child.pid)
        found["files"] = len(list(files.iterdir())) if files.exists() else None
        found["rss"] = None if rss is None else rss / 1e6
        return found

    def quiet(self, before: Look | None = None, seconds: float = 20.0) -> Look:
        """Look until it holds no more than before, or the time is over."""
        end = time.monotonic() + seconds
        while True:
            found = self.look()
            if before is None or time.monotonic() > end:
                return found
            files = found["files"] is None or found["files"] <= before["files"] + SPARE_FILES
            if files and all(found[name] == before[name] for name in ("running", "queued", "tasks", "alive")):
                return found
            time.sleep(0.2)

    def _read(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            errors = (self.home / "stderr").read_text(encoding="utf-8", errors="replace")
            raise UserError(f"the gateway ended: {errors[-2000:]}", exit_code=1)
        return json.loads(line)


@contextmanager
def gateway_process(home: Path, engine_url: str) -> Iterator[Gateway]:
    """Run the gateway until the block ends; yield it when its engine is ready."""
    command = [sys.executable, str(Path(__file__).with_name("step5_fuzz_gateway.py")), str(home), engine_url]
    with (home / "stderr").open("wb") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
    try:
        gateway, end = Gateway(child, home), time.monotonic() + 60
        while gateway.get("/ready").status_code != 200:
            if time.monotonic() > end:
                raise UserError("the engine does not become ready", exit_code=1)
            time.sleep(0.05)
        yield gateway
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(60)
        finally:
            child.kill()
            child.wait()
