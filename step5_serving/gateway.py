"""The hot path: what happens to a request, from its first byte to its row in the accounts. Read this file first.

    who is it? ─ read ─ parse once ─ may it? ─ wait for a slot ─ engine ─ pass the answer on ─ settle ─ last byte
      401       413      400     403 404 429      429 503       502 503        504

An ASGI class, not a FastAPI function: no body is validated with pydantic, wrapped in Request and Response or passed
through a middleware's queues on its way. All of it runs on one event loop; nothing blocks but two writes into the page
cache (journal, log).

Two promises shape the order. A client never has the last byte of an answer that is not accounted for: settle comes
before it. And an attempt at an engine is repeated only while the client has no byte: after that the failure is its
to see, as an error event in the stream.
"""

import asyncio
import math
import time
import traceback
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import aiohttp
import orjson
from starlette.types import Receive, Scope, Send

from shared.openai_protocol import ApiError
from step5_serving.body import ClientLeft, read_body, understand
from step5_serving.exchange import Exchange
from step5_serving.prices import find_price
from step5_serving.refusals import Headers, Refusal, invalid
from step5_serving.stream import Events, Usage, read_usage

if TYPE_CHECKING:
    from step5_serving.engines import Engine
    from step5_serving.service import Parts

ATTEMPTS = 3  # at engines, the first one included
TEMPLATE_TOKENS = 256  # what a chat template may add of its own; ours adds 30 to an empty message, 140 with tools
LEFT, FIRST_TOKEN = "client_left", "first_token_timeout"
JSON = [(b"content-type", b"application/json")]


class EngineFailed(Exception):  # noqa: N818  the engine's failure, not ours: another one gets the request
    """An engine answered with a 5xx while another one is there."""


class Endpoint(ABC):
    """The frame around every request that costs something; subclasses `answer`."""

    def __init__(self, parts: "Parts", path: str) -> None:
        self.parts, self.path = parts, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        parts = self.parts
        headers = dict(scope["headers"])
        exchange = Exchange(self.path, headers, parts.tracing.begin(headers, self.path))
        exchange.task = asyncio.current_task()
        deadline = asyncio.get_running_loop().call_later(parts.timeouts.total, exchange.stop, "total_timeout")
        parts.metrics.in_flight.inc()
        try:
            exchange.key = parts.keys.authenticate(headers.get(b"authorization"))
            body = await read_body(headers, receive, parts.max_body)
            await self.answer(exchange, body, receive, send)
            if exchange.stopped:  # and the engine has said what it did until then
                await self.cut(exchange, send)
        except ApiError as error:
            await self.refuse(exchange, send, error)
        except ClientLeft:
            self.settle(exchange, LEFT, 499)
        except asyncio.CancelledError:
            if not exchange.stopped:  # the server is going down
                raise
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            await self.cut(exchange, send)
        except Exception:  # our own bug: the client gets no details, the log does
            parts.log.write("bug", id=exchange.id, traceback=traceback.format_exc())
            await self.refuse(exchange, send, Refusal(500, "internal_error", "The gateway failed; see its log."))
        finally:
            deadline.cancel()
            parts.metrics.in_flight.dec()
            self.settle(exchange, "shutdown", 503)

    @abstractmethod
    async def answer(self, exchange: Exchange, body: bytes, receive: Receive, send: Send) -> None:
        """Answer the request, settling before the last byte; or return, or raise Refusal, without."""

    def check_scope(self, exchange: Exchange, model: str) -> None:
        """Raises Refusal 403 for a model that is not the key's to use, whether it exists or not."""
        assert exchange.key is not None
        if not exchange.key.may_use(model):
            raise Refusal(403, "model_not_allowed", f"This key may not use the model {model[:100]!r}.")

    def reserve(
        self, exchange: Exchange, body: bytes, model: str, most: int | None, answers: int, prompts: int
    ) -> None:
        """Check the key's limits and take what the request will probably use. Raises Refusal 429.

        most: tokens of one answer, as asked. answers: to all prompts together.
        """
        key, parts = exchange.key, self.parts
        assert key is not None
        exchange.price = find_price(model, parts.prices)
        exchange.prompt, exchange.completion = parts.estimates.tokens(model, len(body), most, answers)
        if key.cap is not None and exchange.price is not None:
            # The cap is strict, so the most it can cost counts, not what it will probably cost: every byte may be a
            # token, and neither a prompt nor an answer is longer than the model's context.
            context = parts.engines.models().get(model, {}).get("max_model_len")
            prompt = min(len(body) + TEMPLATE_TOKENS, context * prompts if context else math.inf)
            exchange.money = exchange.price.cost(int(prompt), 0, (most or context or exchange.completion) * answers)
        key.reserve(exchange.prompt + exchange.completion, exchange.money)
        exchange.reserved = True

    def begin(self, exchange: Exchange) -> None:
        """Write down that the request is about to cost something. Raises Refusal 503 when that is impossible."""
        try:
            self.parts.ledger.begin(exchange)
        except OSError as error:
            self.parts.log.write("journal", error=str(error))
            raise Refusal(503, "accounting_unavailable", "The service cannot account for requests now.") from None

    def settle(self, exchange: Exchange, outcome: str, status: int) -> None:
        """The request is over: account for it, free its slot, report it. Only the first call counts."""
        if exchange.settled:
            return
        exchange.settled, exchange.outcome, exchange.status = True, outcome, status
        exchange.release()
        parts, usage = self.parts, exchange.usage
        if usage is None and (exchange.events or (exchange.stopped and exchange.attempts)):
            # The engine was cut off, or does not count: what we had estimated, and one token per event.
            usage = exchange.usage = Usage(exchange.prompt, 0, exchange.events)
            exchange.estimated = True
        elif usage is not None and exchange.stopped and usage.completion == 0:
            # Stopped before the first token: the prompt was not (wholly) computed, and vLLM does not count it either.
            usage = exchange.usage = Usage(0, 0, 0)
        cost = parts.ledger.settle(exchange)
        used = usage.prompt + usage.completion if usage else 0
        if exchange.key is not None and exchange.reserved:
            exchange.key.settle(exchange.prompt + exchange.completion, exchange.money, used, cost or 0.0)
        if exchange.ticket is not None:
            parts.admission.leave(exchange.ticket, used)
        parts.metrics.settled(exchange, cost)
        parts.tracing.end(exchange)
        parts.log.request(exchange, cost)

    async def refuse(self, exchange: Exchange, send: Send, error: ApiError) -> None:
        """Tell the client why there is no answer, or no more of it."""
        refusal = (
            error if isinstance(error, Refusal) else Refusal(error.status, error.code or "invalid_request", str(error))
        )
        self.settle(exchange, refusal.kind, refusal.status)
        body = orjson.dumps(refusal.body())
        if not exchange.responding:
            await self.respond(exchange, send, refusal.status, JSON + refusal.headers(), body)
        else:  # the status line is long gone: the error goes into the stream, as OpenAI does it
            await send({"type": "http.response.body", "body": b"data: " + body + b"\n\n", "more_body": False})

    async def cut(self, exchange: Exchange, send: Send) -> None:
        """End a stopped request: silently when nobody is there, with an error when its time is up."""
        if exchange.stopped == LEFT:
            self.settle(exchange, LEFT, 499)
            return
        seconds = self.parts.timeouts.total if exchange.stopped == "total_timeout" else self.parts.timeouts.first_token
        try:
            async with asyncio.timeout(1):  # a client that does not read must not hold us any longer
                refusal = Refusal(504, exchange.stopped, f"No complete answer within {seconds:g} s.")
                await self.refuse(exchange, send, refusal)
        except TimeoutError:
            pass

    async def respond(self, exchange: Exchange, send: Send, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response."""
        headers = [*headers, (b"content-length", b"%d" % len(body)), *exchange.response_headers()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Completions(Endpoint):
    """/v1/chat/completions and /v1/completions: forwarded to an engine."""

    async def answer(self, exchange: Exchange, body: bytes, receive: Receive, send: Send) -> None:
        """See Endpoint."""
        parts = self.parts
        call = exchange.call = understand(body)
        self.check_scope(exchange, call.model)
        parts.engines.choose(call.model)  # is there one? 404 or 503 before anything is reserved
        exchange.known = True
        self.reserve(exchange, body, call.model, call.most, call.answers, call.prompts)
        assert exchange.key is not None
        ticket = exchange.ticket = parts.admission.enter(
            exchange.key.id, exchange.prompt + exchange.completion, exchange.completion
        )
        # From here on the only thing the client can still say is that it left.
        watcher = asyncio.ensure_future(receive())
        watcher.add_done_callback(lambda _: exchange.stop(LEFT))
        try:
            exchange.queued = await parts.admission.wait(ticket)
            parts.metrics.queue.observe(exchange.queued)
            self.begin(exchange)
            await self.forward(exchange, send)
        finally:
            watcher.cancel()
        if exchange.usage is not None and exchange.outcome == "ok":
            parts.estimates.learn(call.model, len(body), exchange.usage.prompt, exchange.usage.completion)

    async def forward(self, exchange: Exchange, send: Send) -> None:
        """Try engines until one answers. Raises Refusal 502 or 503 when none does."""
        parts, call, later = self.parts, exchange.call, asyncio.get_running_loop().call_later
        assert call is not None
        tried: list[Engine] = []
        while True:
            engine = exchange.engine = parts.engines.choose(call.model, tried)
            tried.append(engine)
            exchange.attempts += 1
            parts.tracing.dispatch(exchange)
            headers = [("content-type", "application/json"), ("x-request-id", exchange.id), *exchange.trace.outgoing()]
            waiting = later(parts.timeouts.first_token, exchange.stop, FIRST_TOKEN) if call.stream else None
            if not engine.in_flight:
                engine.heard_at = time.monotonic()
            engine.in_flight += 1
            try:
                async with engine.post(self.path, call.body, headers) as response:
                    if response.status >= 500 and parts.engines.has_other(call.model, tried):
                        raise EngineFailed
                    if call.stream and response.status == 200:
                        await self.pass_stream(exchange, response, send, waiting)
                    else:
                        await self.pass_whole(exchange, response, send)
                engine.heard_at = time.monotonic()
                return
            except (EngineFailed, aiohttp.ClientError, OSError, TimeoutError) as error:
                if exchange.stopped:
                    return
                if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                    parts.engines.lost(engine)
                if exchange.responding or exchange.attempts == ATTEMPTS:
                    raise Refusal(502, "engine_lost", "The engine broke off; try again.", retry_after=1) from None
                parts.metrics.retries.inc()
            finally:
                engine.in_flight -= 1
                if waiting is not None:
                    waiting.cancel()

    async def pass_whole(self, exchange: Exchange, response: aiohttp.ClientResponse, send: Send) -> None:
        """A response in one piece: a completion, or the engine's refusal."""
        body = await response.read()
        outcome = "ok" if response.status < 400 else "engine_error" if response.status >= 500 else "invalid_request"
        if response.status == 200:
            exchange.usage = _usage_of(body)
            exchange.events = 0 if exchange.usage else exchange.completion
        if exchange.stopped:
            return
        if response.status >= 400 and not _is_error(body):  # a page of some server's own; clients want OpenAI's shape
            if response.status >= 500:
                raise Refusal(502, "engine_error", "The engine failed on this request.")
            raise invalid("The engine refused this request.", status=response.status)
        self.settle(exchange, outcome, response.status)
        headers = [(b"content-type", response.headers.get("content-type", "application/json").encode("latin-1"))]
        await self.respond(exchange, send, response.status, headers, body)

    async def pass_stream(
        self,
        exchange: Exchange,
        response: aiohttp.ClientResponse,
        send: Send,
        waiting: asyncio.TimerHandle | None,
    ) -> None:
        """Server-sent events, block by block, as they come. A slow client slows our reading: nothing piles up here.

        waiting: the deadline of the first block.
        """
        call, engine, metrics = exchange.call, exchange.engine, self.parts.metrics
        assert call is not None
        assert engine is not None
        events = Events(call.hide_usage)
        between = metrics.between.labels(call.model)
        async for block in response.content.iter_any():
            now = exchange.elapsed()
            engine.heard_at = time.monotonic()
            if exchange.first_token is None:
                if waiting is not None:
                    waiting.cancel()
                exchange.first_token = now
                metrics.first_token.labels(call.model).observe(now)
            else:
                between.observe(now - exchange.last_block)
            exchange.last_block = now
            out = events.feed(block)
            exchange.events, exchange.usage = events.events, events.usage
            if exchange.ticket is not None:
                self.parts.admission.progress(exchange.ticket, events.events)
            if exchange.stopped:  # reading on to the engine's counts; nobody is to get the rest
                continue
            if events.done:
                self.settle(exchange, "engine_error" if events.failed else "ok", 200)
            if out:
                await self._send_block(exchange, response, send, out)
        if not exchange.stopped:
            await self._send_block(exchange, response, send, events.finish())
            self.settle(exchange, "engine_error" if events.failed else "ok", 200)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_block(self, exchange: Exchange, response: aiohttp.ClientResponse, send: Send, block: bytes) -> None:
        if not exchange.responding:
            exchange.responding = True
            kind = response.headers.get("content-type", "text/event-stream").encode("latin-1")
            # Proxies like nginx would else collect the stream before they pass it on.
            headers = [(b"content-type", kind), (b"x-accel-buffering", b"no"), (b"cache-control", b"no-cache")]
            headers += exchange.response_headers()
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": block, "more_body": True})


def _is_error(body: bytes) -> bool:
    """Whether an engine's refusal is an error as OpenAI writes it."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict) and bool(found["error"].get("message"))


def _usage_of(body: bytes) -> Usage | None:
    try:
        return read_usage(orjson.loads(body))
    except orjson.JSONDecodeError:
        return None
