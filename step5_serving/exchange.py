"""One request from arrival to accounting: what is known about it, and how it is stopped before its end.

Everything that writes about a request (ledger, log, metrics, traces) reads this object; only gateway.py changes it.
"""

import asyncio
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from step5_serving.admission import Ticket
from step5_serving.body import Call
from step5_serving.limits import Account
from step5_serving.prices import Price
from step5_serving.refusals import Headers
from step5_serving.stream import Usage
from step5_serving.tracing import Trace

if TYPE_CHECKING:
    from step5_serving.engines import Engine

PRINTABLE = re.compile(rb"[\w.:/+=-]{1,128}", re.ASCII)  # a client's request id goes into our log and headers

# An engine may not know a request yet that it is asked to abort (it is still reading the prompt): so often it is asked,
# so many seconds apart, before the connection is cut.
ABORTS, ABORT_SECONDS = 10, 0.5


@dataclass(slots=True, eq=False)
class Exchange:
    """Times are seconds since `begun` (monotonic) unless said otherwise; started is Unix time.

    outcome: "ok", or the kind of what went wrong. prompt, completion: estimated tokens. money: reserved US dollars.
    usage: exact counts from the engine. events: of the stream so far, about one per token. known: the model is served.
    responding: the client has got the first byte. stopped: why it ends early.
    """

    endpoint: str
    headers: dict[bytes, bytes]
    trace: Trace
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    started: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.perf_counter)
    key: Account | None = None
    call: Call | None = None
    price: Price | None = None
    prompt: int = 0
    completion: int = 0
    money: float = 0.0
    ticket: Ticket | None = None
    engine: "Engine | None" = None
    attempts: int = 0
    queued: float = 0.0
    first_token: float | None = None
    last_block: float = 0.0
    events: int = 0
    usage: Usage | None = None
    estimated: bool = False
    status: int = 0
    outcome: str = ""
    known: bool = False
    reserved: bool = False
    responding: bool = False
    settled: bool = False
    stopped: str = ""
    task: "asyncio.Task[None] | None" = None
    aborting: "asyncio.Task[None] | None" = None

    @property
    def shown_id(self) -> bytes:
        """The id in the client's headers: its own if it sent a plain one. Engines and the ledger always get ours."""
        given = self.headers.get(b"x-request-id", b"")
        return given if PRINTABLE.fullmatch(given) else self.id.encode()

    def elapsed(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.begun

    def response_headers(self) -> Headers:
        """What every answer carries."""
        headers = [(b"x-request-id", self.shown_id), *self.trace.response()]
        return headers + self.key.headers() if self.key else headers

    def engine_ids(self) -> list[str]:
        """The names under which vLLM runs this request, made from the x-request-id that we send it."""
        if self.endpoint == "/v1/chat/completions":
            return [f"chatcmpl-{self.id}"]
        return [f"cmpl-{self.id}-{index}" for index in range(self.call.prompts if self.call else 1)]

    def stop(self, reason: str) -> None:
        """End it early: the client left, or a deadline passed. A callback of the event loop; the first reason counts.

        An engine that can abort by name is asked to: it then ends its answer with the exact token counts, and the
        gateway reads on to that end. Otherwise the connection is cut, which stops every engine, but silently.
        """
        if self.stopped or self.settled or self.task is None:
            return
        self.stopped = reason
        if self.engine is None or not self.engine.can_abort:
            self.task.cancel()
        else:
            self.aborting = asyncio.get_running_loop().create_task(self._abort())

    async def _abort(self) -> None:
        for _ in range(ABORTS):
            if self.engine is None or not await self.engine.abort(self.engine_ids()):
                break
            await asyncio.sleep(ABORT_SECONDS)
        if self.task is not None:
            self.task.cancel()

    def release(self) -> None:
        """Nothing may stop it any more."""
        self.task = None
        if self.aborting is not None:
            self.aborting.cancel()
