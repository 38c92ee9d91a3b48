"""The gateway of a storm, in a process of its own: what it holds is then the gateway's, not the storm's.

    python tests/step5/step5_fuzz_gateway.py HOME ENGINE-URL

prints {"url", "keys"}, then for each line on stdin one JSON object with what it holds at that moment.
"""

import asyncio
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

HOME, ENGINE_URL = sys.argv[1:]
os.environ["LLM_ROADMAP_HOME"] = HOME
for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "ENGINE_API_KEY"):
    os.environ.pop(name, None)

import aiohttp  # noqa: E402  after the environment
import numpy as np  # noqa: E402
from fake_engine import ADAPTER, MODEL  # noqa: E402
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle  # noqa: E402

from shared import embeddings  # noqa: E402
from step5_serving import keys  # noqa: E402
from step5_serving.admission import Ticket  # noqa: E402
from step5_serving.database import connect  # noqa: E402
from step5_serving.exchange import Exchange  # noqa: E402
from step5_serving.service import Options, Parts, serve_in_thread  # noqa: E402

SLOTS = 4  # of the engine: fewer than the storm has senders, so that there is a queue
PER_REQUEST = (Exchange, Ticket, RequestResponseCycle, aiohttp.ClientResponse)  # none is left when a request is over
KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one model": {"models": [ADAPTER]},
    "few requests": {"requests_per_minute": 600},
    "little money": {"models": [MODEL, ADAPTER], "cap": 0.0005},
}


class Encoder:
    """Stands for MiniLM: a token is a word."""

    dimensions = 2
    tokens = 0

    def encode(self, texts: Sequence[str]) -> Any:
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        counts = [len(text.split()) for text in texts]
        self.tokens += sum(counts)
        return counts


def look(parts: Parts, encoder: Encoder) -> dict[str, Any]:
    """What the gateway holds right now, with everything settled so far in the database."""
    parts.ledger.flush()
    gc.collect()
    objects = gc.get_objects()
    alive = Counter(type(item).__name__ for item in objects if isinstance(item, PER_REQUEST))
    tasks = asyncio.all_tasks(parts.engines._tasks[0].get_loop())
    admission = parts.admission
    return {
        "running": admission.running,
        "queued": admission.queued,
        "queued tokens": admission.queued_tokens,
        "free slots": admission.slots - admission.running,
        "at the engine": sum(engine.in_flight for engine in parts.engines.all),
        "tasks": dict(Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)),
        "alive": dict(alive),
        "objects": len(objects),
        "embedded": encoder.tokens,
        "spent": {account.name: account.spent for account in parts.keys._accounts.values()},
        "reserved": sum(account.reserved for account in parts.keys._accounts.values()),
    }


def main() -> None:
    """Serve until stdin ends."""
    encoder = Encoder()
    embeddings.load_embedder = lambda _: encoder  # type: ignore[assignment, return-value]
    with closing(connect()) as database:
        made = {name: keys.create(database, name, **limits) for name, limits in KEYS.items()}
    with serve_in_thread(Options(port=0, urls=[ENGINE_URL], slots=SLOTS)) as (url, parts):
        print(json.dumps({"url": url, "keys": made}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(look(parts, encoder)), flush=True)


if __name__ == "__main__":
    main()
