"""uvicorn's HTTP/1.1, and what a server that strangers can reach needs beyond it.

- **Headers are bounded**, in bytes and in seconds: before them nobody has shown a key, and uvicorn's fast parser
  collects them for as long as they come.
- **`Upgrade` is declined by going on in HTTP/1.1**, as RFC 9110 section 7.8 has it. Every Java HttpClient offers h2c on
  http:// addresses, with its first POST; httptools then takes the body for the other protocol's and the request comes
  without one (github.com/Kludex/uvicorn/issues/2722).
- **Who hangs up is noticed** also when it had sent its next request already: uvicorn tells only the newest one.
- **What is no HTTP gets OpenAI's error shape**, like everything else that is refused.

    python -m pytest tests/step5/test_serving_protocol.py
"""

import asyncio
from collections import deque
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from step5_serving.refusals import invalid

LARGEST_HEAD = 64 << 10  # bytes of address and headers; what h11 allows. One read of the socket may come on top.
HEAD_SECONDS = 30.0  # from the connection, or a request's first byte, to its last header


class Protocol(HttpToolsProtocol):
    """One connection. The methods that are overridden are called by asyncio and by the parser."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unfinished: deque[RequestResponseCycle] = deque()  # in the order of their answers
        self._in_head, self._head_size, self._large = False, 0, False
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        for cycle in self._unfinished:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unfinished.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        begun = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("This is not a valid HTTP/1.1 request.")
            return
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        if self._in_head:
            self._head_size += len(data) if begun else 0
            if self._head_size > LARGEST_HEAD:
                self._large = True
                self.send_400_response("")
            elif self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_size = True, 0

    def on_headers_complete(self) -> None:
        self._head_is_here()
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > LARGEST_HEAD:
            self._large = True
            raise ValueError  # the parser's way to stop
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # where an upgrade is offered nothing has begun
            while self._unfinished and self._unfinished[0].response_complete:
                self._unfinished.popleft()
            self._unfinished.append(self.cycle)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be answered, and close. Within an answer there is no place for another one."""
        refusal = invalid(msg, "invalid_http")
        if self._large:
            refusal = invalid(f"Address and headers are larger than {LARGEST_HEAD:,} bytes.", "headers_too_large", 431)
        if not any(cycle.response_started and not cycle.response_complete for cycle in self._unfinished):
            body = orjson.dumps(refusal.body())
            reason = b"Bad Request" if refusal.status == 400 else b"Request Header Fields Too Large"
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (refusal.status, reason, len(body), body)
            )
        self.transport.close()

    def _head_is_here(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if self._unfinished and not self._unfinished[-1].response_complete:  # reading may be paused: not its fault
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)
        else:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        return True  # so that uvicorn starts nothing: data_received sees to it

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again without the offer. rest: what came after its headers."""
        scope: Any = self.scope
        if scope["method"] == "CONNECT":
            self.send_400_response("This is no proxy.")
            return
        headers = [(name, value) for name, value in self.headers if name != b"upgrade"]
        lines = [b"%s: %s\r\n" % header for header in headers]
        version = scope["http_version"].encode()
        self.data_received(
            b"%s %s HTTP/%s\r\n%s\r\n%s" % (scope["method"].encode(), self.url, version, b"".join(lines), rest)
        )
