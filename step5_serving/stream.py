"""Server-sent events on their way through: bytes unchanged, token counts read in passing.

    data: {"choices": [{"delta": {"content": "Hel"}}], …}        passed on
    data: {"choices": [], "usage": {"prompt_tokens": 12, …}}     read; passed on only if the client asked for it
    data: [DONE]                                                 passed on once the request is accounted for

The engine is always asked for the usage chunk, because counting tokens from outside is guessing. Blocks are passed on
as they arrive; JSON is parsed only where the text `"usage"` stands outside a JSON string, which is that one chunk (in
strings, quotes are escaped).
"""

from dataclasses import dataclass
from typing import Any

import orjson

ENDS = b"\n\n", b"\r\n\r\n"  # of an event: vLLM's and OpenAI's, and what other servers write
LONGEST_EVENT = 1 << 20  # bytes held back while an event is incomplete; whatever is longer is no engine's


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request. prompt includes cached, those found in the prefix cache."""

    prompt: int
    cached: int
    completion: int


def read_usage(document: Any) -> Usage | None:
    """OpenAI's usage object in a response or chunk, or None where there is none that makes sense."""
    found = document.get("usage") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        return None
    details = found.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts = (found.get("prompt_tokens"), cached or 0, found.get("completion_tokens") or 0)
    if any(type(count) is not int or count < 0 for count in counts):
        return None
    return Usage(*counts)  # type: ignore[arg-type]


class Events:
    """One stream. usage: once it has passed. events: how many had content. done: feed has returned [DONE]."""

    def __init__(self, hide_usage: bool) -> None:
        self._hide = hide_usage
        self._rest = b""
        self._end = ENDS[0]
        self.usage: Usage | None = None
        self.events = 0
        self.failed = self.done = False

    def feed(self, block: bytes) -> bytes:
        """Take what arrived, return what the client gets: whole events, so that none is shown in halves and hidden."""
        if self._rest:
            block, self._rest = self._rest + block, b""
        if self._end not in block and ENDS[1] in block:
            self._end = ENDS[1]
        end = self._end
        if not block.endswith(end):
            whole = block.rfind(end) + len(end) if end in block else 0
            block, self._rest = block[:whole], block[whole:]
            if len(self._rest) > LONGEST_EVENT:
                block, self._rest = block + self._rest, b""
                return block
        self.events += block.count(end)
        if b'"usage"' in block or b"[DONE]" in block or b'data: {"error"' in block:
            return b"".join(map(self._pass, block.split(end)[:-1]))
        return block

    def finish(self) -> bytes:
        """The stream is over: return what an engine left without an end."""
        rest, self._rest = self._rest, b""
        return rest

    def _pass(self, event: bytes) -> bytes:
        """Look at one event of a block that is not plain text; return its bytes, or none to hide it."""
        payload = event.partition(b"data:")[2].strip()
        if payload == b"[DONE]":
            self.done = True
            self.events -= 1
        elif b'"usage"' in payload or payload.startswith(b'{"error"'):
            try:
                chunk = orjson.loads(payload)
            except orjson.JSONDecodeError:
                chunk = None
            usage = read_usage(chunk)
            if usage is not None:
                self.usage = usage
            if isinstance(chunk, dict):
                self.failed |= "error" in chunk and "choices" not in chunk
                if chunk.get("choices") == [] and usage is not None:
                    self.events -= 1
                    if self._hide:
                        return b""
        return event + self._end
