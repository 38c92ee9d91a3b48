"""The gateway's log: one JSON object a line, one line a request.

    tail -f ~/.cache/llm-engineer-roadmap/step5/log/gateway.jsonl | jq 'select(.outcome != "ok")'

What people wrote and what the model answered is never logged, nor is a key: only its id. Lines are written at once, so
that a crash loses none. A file that is full is renamed to .1, whose predecessor goes.
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from step5_serving.exchange import Exchange

LARGEST = 64 << 20  # bytes, about 150,000 requests
STDERR = Path("-")


class Log:
    """Writes to one file, or to stderr for the path "-", where container platforms collect it."""

    def __init__(self, path: Path) -> None:
        self._path = None if path == STDERR else path
        self._open()

    def write(self, event: str, **fields: Any) -> None:
        """Write one line. A log that cannot be written is no reason to refuse a request."""
        line = orjson.dumps(
            {"time": time.time(), "event": event, **fields}, default=str, option=orjson.OPT_APPEND_NEWLINE
        )
        try:
            self._size += os.write(self._file, line)
        except OSError:
            return
        if self._path and self._size > LARGEST:
            os.close(self._file)
            self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
            self._open()

    def request(self, exchange: "Exchange", cost: float | None) -> None:
        """Write the line of a request that is over."""
        call, usage = exchange.call, exchange.usage
        self.write(
            "request",
            id=exchange.id,
            client_id=exchange.shown_id.decode(),
            trace=exchange.trace.trace,
            key=exchange.key.id if exchange.key else None,
            endpoint=exchange.endpoint,
            model=call.model[:100] if call else None,
            stream=call.stream if call else None,
            status=exchange.status,
            outcome=exchange.outcome,
            engine=exchange.engine.url if exchange.engine else None,
            attempts=exchange.attempts,
            queued=round(exchange.queued, 6),
            first_token=exchange.first_token and round(exchange.first_token, 6),
            seconds=round(exchange.elapsed(), 6),
            prompt_tokens=usage and usage.prompt,
            cached_tokens=usage and usage.cached,
            completion_tokens=usage and usage.completion,
            estimated=exchange.estimated,
            cost=cost,
        )

    def close(self) -> None:
        """Close the file."""
        if self._path:
            os.close(self._file)

    def _open(self) -> None:
        if self._path is None:
            self._file, self._size = sys.stderr.fileno(), 0
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size
