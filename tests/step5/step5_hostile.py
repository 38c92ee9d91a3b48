"""Requests that no client library sends: half of them missing, lies about their length, somebody who hangs up.

Used by the storm (step5_fuzz.py), a few thousand times among other requests, and one by one (test_serving_protocol.py).
"""

import json
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fake_engine import MODEL

CHAT = b"/v1/chat/completions"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"  # as Java does
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) (?:.*\r\n)(?:(?i:content-length: (\d+))\r\n|.+\r\n)*\r\n")
PATIENCE = 60  # seconds for an answer on a busy machine


@dataclass(frozen=True)
class Raw:
    """The bytes of chat requests. identity: their x-request-id."""

    identity: str
    key: str

    def head(self, more: bytes = b"", path: bytes = CHAT, version: bytes = b"1.1") -> bytes:
        """Everything before the body, without a length."""
        lines = (
            b"POST %s HTTP/%s" % (path, version), b"host: gateway", b"content-type: application/json",
            b"authorization: Bearer " + self.key.encode(), b"x-request-id: " + self.identity.encode(),
        )  # fmt: skip
        return b"\r\n".join(lines) + b"\r\n" + more

    def whole(self, more: bytes = b"", **head: Any) -> bytes:
        """A request that is right."""
        content = self.body()
        return self.head(b"content-length: %d\r\n" % len(content) + more, **head) + b"\r\n" + content

    def chunked(self, chunks: bytes, more: bytes = b"") -> bytes:
        """A request whose body comes in chunks."""
        return self.head(b"transfer-encoding: chunked\r\n" + more) + b"\r\n" + chunks

    def body(self, **more: object) -> bytes:
        """The JSON of a chat request for six tokens."""
        message = {"role": "user", "content": "one two three"}
        return json.dumps({"model": MODEL, "messages": [message], "max_tokens": 6, **more}).encode()

    def streaming(self) -> bytes:
        """A request for a stream."""
        content = self.body(stream=True)
        return self.head(b"content-length: %d\r\n" % len(content)) + b"\r\n" + content

    def next(self) -> "Raw":
        """Another request on the same connection."""
        return Raw(f"{self.identity}.2", self.key)


@dataclass(frozen=True)
class Hostile:
    """What is sent, and what is to come of it.

    answers: statuses, in order; when there are none the client hangs up without waiting. logged: how many requests
    reach an endpoint and have a line in the log, at least and at most. listen: bytes to read before hanging up.
    reset: hang up with a TCP reset.
    """

    name: str
    send: Callable[[Raw], bytes]
    answers: tuple[int, ...] = ()
    logged: tuple[int, int] = (0, 0)
    listen: int = 0
    reset: bool = False


def _whole_chunk(raw: Raw) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(raw.body()), raw.body())


HOSTILE: Sequence[Hostile] = (
    Hostile("nothing at all", lambda _: b""),
    Hostile("half of the headers", lambda raw: raw.head()[:-40]),
    Hostile("headers and half of the body", lambda raw: raw.whole()[:-20], logged=(1, 1)),
    Hostile("a chunk shorter than it says", lambda raw: raw.chunked(b'ff\r\n{"model"'), logged=(1, 1)),
    Hostile("a chunk whose size is no number", lambda raw: raw.chunked(b"size\r\n{}\r\n"), (400,), (1, 1)),
    Hostile("a chunk of 16 exabytes", lambda raw: raw.chunked(b"fffffffffffffffff\r\n{}\r\n"), (400,), (1, 1)),
    Hostile("a length and chunks", lambda raw: raw.chunked(b"0\r\n\r\n", b"content-length: 9\r\n"), (400,)),
    Hostile("two lengths", lambda raw: raw.whole(b"content-length: 3\r\n"), (400,)),
    Hostile("a negative length", lambda raw: raw.head(b"content-length: -3\r\n") + b"\r\n{}", (400,)),
    Hostile("an exabyte announced", lambda raw: raw.head(b"content-length: 1%018d\r\n" % 0) + b"\r\n", (413,), (1, 1)),
    Hostile("a header of 100 kB", lambda raw: raw.whole(b"x: " + b"a" * 100_000 + b"\r\n"), (431,)),
    Hostile("50,000 headers", lambda raw: raw.whole(b"x: a\r\n" * 50_000), (431,)),
    Hostile("an address of 100 kB", lambda raw: raw.whole(path=CHAT + b"?" + b"a" * 100_000), (431,)),
    Hostile("an address that is no ASCII", lambda raw: raw.whole(path=b"/v1/\xff"), (400,)),
    Hostile("a line feed within a header", lambda raw: raw.whole(b"x: a\nb: c\r\n"), (400,)),
    Hostile("TLS", lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, (400,)),
    Hostile("HTTP/2", lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    Hostile("a proxy wanted", lambda _: b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: elsewhere\r\n\r\n", (400,)),
    Hostile("another protocol offered", lambda raw: raw.whole(H2C), (200,), (1, 1)),
    Hostile("another protocol offered, and chunks", lambda raw: raw.chunked(_whole_chunk(raw), H2C), (200,), (1, 1)),
    Hostile("100-continue", lambda raw: raw.whole(b"expect: 100-continue\r\n"), (100, 200), (1, 1)),
    Hostile("HTTP/1.0", lambda raw: raw.whole(version=b"1.0"), (200,), (1, 1)),
    Hostile("two at once", lambda raw: raw.whole() + raw.next().whole(), (200, 200), (2, 2)),
    Hostile("two at once and nonsense", lambda raw: raw.whole() + raw.next().whole() + b"\0\r\n", (400,), (1, 2)),
    Hostile("two at once, hung up", lambda raw: raw.whole() + raw.next().whole(), logged=(1, 2)),
    Hostile("hung up at once", Raw.streaming, logged=(1, 1)),
    Hostile("hung up in the stream", Raw.streaming, logged=(1, 1), listen=600),
    Hostile("reset at once", Raw.streaming, logged=(0, 1), reset=True),
    Hostile("reset in the stream", Raw.streaming, logged=(1, 1), listen=600, reset=True),
)  # fmt: skip


def attack(address: tuple[str, int], hostile: Hostile, raw: Raw) -> list[tuple[int, bytes]]:
    """Send it; return the statuses and bodies of the answers, as far as they came.

    Who is refused in the middle of sending may see the connection reset in place of the answer.
    """
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        got, answers = b"", list[tuple[int, bytes]]()
        try:
            connection.sendall(hostile.send(raw))
            while len(answers) < len(hostile.answers) and (part := connection.recv(65536)):
                got += part
                answers = _answers(got)
            while len(got) < hostile.listen and (part := connection.recv(hostile.listen)):
                got += part
        except ConnectionError:
            pass
        if hostile.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return answers


def _answers(got: bytes) -> list[tuple[int, bytes]]:
    """The answers that are complete."""
    answers = []
    while (head := ANSWER.match(got)) and len(got) >= (end := head.end() + int(head[2] or 0)):
        answers.append((int(head[1]), got[head.end() : end]))
        got = got[end:]
    return answers


def as_expected(hostile: Hostile, statuses: Sequence[int]) -> bool:
    """Whether these answers are what was to come."""
    return tuple(statuses) == hostile.answers or (hostile.answers == (431,) and not statuses)
