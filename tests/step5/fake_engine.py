"""A fake engine: what the gateway uses of vLLM's HTTP surface, with no model behind it.

    with fake_engine(seconds_per_token=0.01) as engine:     # in a thread
        …  # engine.url goes into Options(urls=…); engine.seen is what arrived
    python tests/step5/fake_engine.py --port 9000            # as a process, for the supervisor

A token is a word: a prompt has as many tokens as it has words, an answer is `max_tokens` words. Like vLLM it counts a
prompt with its first token, ends an aborted answer with the usage so far, and stops when the connection closes.
"""

import argparse
import asyncio
import json
import math
import subprocess
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL, ADAPTER = "fake-model", "fake-adapter"
CONTEXT = 1000  # tokens, what /v1/models says


@dataclass(eq=False)
class Fake:
    """A running fake; everything may be changed while it runs.

    failures: what goes wrong with the next requests, one each: a status; "drop" (closed without a byte); "cut" (closed
    after two tokens); "silence" (no byte until the client leaves); "huge" (an event of 3 MB); "no usage"; "page" (a 500
    that is no JSON).
    answers: after so many requests nothing computes any more, while its server goes on to say that it is well.
    word_bytes: how long the words are. piece: the answer's bytes are written in pieces of this size. end: of an event.
    """

    url: str = ""
    tokens: int = 4
    seconds_before: float = 0.0
    seconds_per_token: float = 0.0
    can_abort: bool = True
    healthy: bool = True
    answers: float = math.inf
    word_bytes: int = 0
    piece: int | None = None
    end: bytes = b"\n\n"
    failures: deque[int | str] = field(default_factory=deque)
    models: tuple[str, ...] = (MODEL, ADAPTER)
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    left: int = 0  # clients that hung up
    prompt_tokens: int = 0
    completion_tokens: int = 0
    order: list[str] = field(default_factory=list)  # the first word of each prompt, in the order of arrival
    _abort: dict[str, asyncio.Event] = field(default_factory=dict)

    @property
    def last(self) -> dict[str, Any]:
        """The body of the last request."""
        body: dict[str, Any] = json.loads(self.seen[-1][1])
        return body

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/inference/v1/abort_requests", self._abort_requests)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f'vllm:generation_tokens_total{{engine="0"}} {self.completion_tokens}\n')

    async def _models(self, _: web.Request) -> web.Response:
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "fake", "max_model_len": CONTEXT}
                 for name in self.models]  # fmt: skip
        return web.json_response({"object": "list", "data": cards})

    async def _abort_requests(self, request: web.Request) -> web.Response:
        if not self.can_abort:
            return web.Response(status=404)
        for name in (await request.json())["request_ids"]:
            self.aborted.append(name)
            if name in self._abort:
                self._abort[name].set()
        return web.json_response({})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(({name.lower(): value for name, value in request.headers.items()}, body))
        call = json.loads(body)
        failure = self.failures.popleft() if self.failures else "silence" if len(self.seen) > self.answers else None
        if failure == "page":
            return web.Response(status=500, text="500 Internal Server Error")
        if isinstance(failure, int):
            error = {"message": f"the fake says {failure}", "type": "fake", "param": None, "code": failure}
            return web.json_response({"error": error}, status=failure)
        if failure == "drop":
            assert request.transport is not None
            request.transport.close()
        chat = request.path.endswith("chat/completions")
        prompt = " ".join(str(m["content"]) for m in call["messages"]) if chat else call["prompt"]
        self.order.append(prompt.split()[0])
        name = f"{'chatcmpl-' if chat else 'cmpl-'}{request.headers.get('x-request-id', 'none')}{'' if chat else '-0'}"
        self._abort[name] = asyncio.Event()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if failure == "silence":
                await asyncio.sleep(60)
            answer = Answer(self, call, name, len(prompt.split()), chat, failure)
            return await (answer.stream(request) if call.get("stream") else answer.whole())
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise
        finally:
            self.running -= 1
            del self._abort[name]


@dataclass
class Answer:
    """One completion."""

    fake: Fake
    call: dict[str, Any]
    name: str
    prompt: int
    chat: bool
    failure: int | str | None
    done: int = 0
    finish: str = "stop"

    async def words(self) -> AsyncIterator[str]:
        """Generate until there are enough, or somebody says stop."""
        fake, most = self.fake, self.call.get("max_tokens") or self.call.get("max_completion_tokens")
        wanted = fake.tokens if most is None else int(most)  # 5.0 is an integer in JSON
        abort = fake._abort[self.name]
        for number in range(wanted):
            with suppress(TimeoutError):
                seconds = fake.seconds_per_token + (fake.seconds_before if number == 0 else 0)
                await asyncio.wait_for(abort.wait(), seconds) if seconds else await asyncio.sleep(0)
            if abort.is_set():
                self.finish = "abort"
                return
            fake.prompt_tokens += self.prompt if number == 0 else 0
            fake.completion_tokens += 1
            self.done += 1
            yield f"w{number} ".ljust(fake.word_bytes)
        self.finish = "length" if most is not None else "stop"

    @property
    def usage(self) -> dict[str, Any]:
        cached = {"cached_tokens": self.prompt // 2}
        total = self.prompt + self.done
        return {"prompt_tokens": self.prompt, "completion_tokens": self.done, "total_tokens": total,
                "prompt_tokens_details": cached}  # fmt: skip

    def document(self, choice: dict[str, Any], kind: str) -> dict[str, Any]:
        kind = ("chat.completion" if self.chat else "text_completion") + (kind if self.chat else "")
        return {"id": self.name, "object": kind, "created": 1, "model": self.call["model"], "choices": [choice]}

    def tool_call(self) -> dict[str, Any] | None:
        """With tools on offer the fake calls the first one."""
        if not self.call.get("tools"):
            return None
        function = {"name": self.call["tools"][0]["function"]["name"], "arguments": '{"x": 1}'}
        return {"index": 0, "id": "call_1", "type": "function", "function": function}

    async def whole(self) -> web.Response:
        text = "".join([word async for word in self.words()])
        call = self.tool_call()
        message = {"role": "assistant", "content": None if call else text} | ({"tool_calls": [call]} if call else {})
        choice = {"index": 0, "finish_reason": "tool_calls" if call else self.finish}
        document = self.document(choice | ({"message": message} if self.chat else {"text": text}), "")
        if self.failure != "no usage":
            document["usage"] = self.usage
        return web.json_response(document)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        written: list[bytes] = []

        async def write(payload: str) -> None:
            event = b"data: " + payload.encode() + self.fake.end
            written.append(event)
            piece = self.fake.piece or len(event)
            for start in range(0, len(event), piece):
                await response.write(event[start : start + piece])
                if self.fake.piece:
                    await asyncio.sleep(0)

        def chunk(delta: dict[str, Any] | str, finish: str | None = None) -> str:
            part = {"delta": delta} if self.chat else {"text": delta or ""}
            return json.dumps(self.document({"index": 0, **part, "finish_reason": finish}, ".chunk"))

        if self.chat:
            await write(chunk({"role": "assistant", "content": ""}))
        if self.failure == "huge":
            await write(chunk({"content": "x" * 3_000_000}))
        call = self.tool_call()
        async for word in self.words():
            await write(chunk({"tool_calls": [call]} if call else {"content": word} if self.chat else word))
            call = None if call is None else call | {"function": {"arguments": ""}}
            if self.failure == "cut" and self.done == 2:
                assert request.transport is not None
                request.transport.close()
        await write(chunk({} if self.chat else "", "tool_calls" if call else self.finish))
        if (self.call.get("stream_options") or {}).get("include_usage") and self.failure != "no usage":
            await write(json.dumps(self.document({}, ".chunk") | {"choices": [], "usage": self.usage}))
        await write("[DONE]")
        self.fake.sent.append(b"".join(written))
        await response.write_eof()
        return response


@asynccontextmanager
async def _listening(fake: Fake, port: int) -> AsyncIterator[None]:
    # A handler ends when its client hangs up, as in vLLM.
    runner = web.AppRunner(fake.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield
    finally:
        await runner.cleanup()


@contextmanager
def fake_engine(port: int = 0, **settings: Any) -> Iterator[Fake]:
    """Serve from a thread until the block ends."""
    fake = Fake(**settings)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def serve() -> None:
        async with _listening(fake, port):
            started.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="fake engine", daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


def main() -> None:
    """Serve as a process, until killed.

    --starting: seconds before it listens. --child: with a child process, whose id it prints. --models: names, by comma.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--starting", type=float, default=0.0)
    parser.add_argument("--seconds-per-token", type=float, default=0.0)
    parser.add_argument("--answers", type=float, default=math.inf)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--models", default=f"{MODEL},{ADAPTER}")
    options = parser.parse_args()
    print("the fake engine starts", flush=True)
    if options.child:
        print("child", subprocess.Popen(["sleep", "600"]).pid, flush=True)

    async def serve() -> None:
        await asyncio.sleep(options.starting)
        models = tuple(options.models.split(","))
        fake = Fake(seconds_per_token=options.seconds_per_token, answers=options.answers, models=models)
        async with _listening(fake, options.port):
            await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
