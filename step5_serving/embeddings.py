"""/v1/embeddings: MiniLM, on this machine's CPU, in one thread beside the event loop.

One thread, because a forward pass already uses every core it may; those who wait for it wait in line, at most so many
texts, like chat requests wait for a slot. Loading takes seconds and happens with the first request.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import orjson
from pydantic import ValidationError
from starlette.types import Receive, Send

from shared.errors import UserError
from shared.openai_protocol import EmbeddingRequest
from step5_serving.body import Call, parse
from step5_serving.exchange import Exchange
from step5_serving.gateway import JSON, Endpoint
from step5_serving.refusals import Refusal, invalid
from step5_serving.stream import Usage

if TYPE_CHECKING:
    from shared.embeddings import Embedder
    from step5_serving.service import Parts

MODEL = "minilm-l6-v2"
CARD = {"id": MODEL, "object": "model", "created": 0, "owned_by": "llm-engineer-roadmap"}
MOST_TEXTS, MOST_WAITING = 2048, 4096  # texts of one request (OpenAI's limit), of all that wait


class Embeddings(Endpoint):
    """The route. The embedder is loaded in the thread that uses it."""

    def __init__(self, parts: "Parts", path: str = "/v1/embeddings") -> None:
        super().__init__(parts, path)
        self._thread = ThreadPoolExecutor(1, "embeddings")
        self._embedder: Embedder | None = None
        self._waiting = 0

    async def answer(self, exchange: Exchange, body: bytes, receive: Receive, send: Send) -> None:
        """See Endpoint."""
        request = _request(body)
        texts = [request.input] if isinstance(request.input, str) else request.input
        self.check_scope(exchange, request.model)
        if request.model != MODEL:
            raise Refusal(404, "model_not_found", f"Embeddings come from the model {MODEL!r}.")
        if not 0 < len(texts) <= MOST_TEXTS:
            raise invalid(f"input: give 1 to {MOST_TEXTS} texts.")
        exchange.call = Call(MODEL, False, 0, 1, 1, False, b"")
        exchange.known = True
        self.reserve(exchange, body, MODEL, 0, 1, len(texts))
        if self._waiting and self._waiting + len(texts) > MOST_WAITING:
            raise Refusal(429, "queue_full", f"{self._waiting} texts are waiting; try again later.", retry_after=5)
        self._waiting += len(texts)
        self.begin(exchange)
        try:
            loop = asyncio.get_running_loop()
            answer, tokens = await loop.run_in_executor(self._thread, self._embed, request, texts)
        except UserError as error:
            raise Refusal(503, "embeddings_unavailable", str(error), retry_after=60) from None
        finally:
            self._waiting -= len(texts)
        exchange.usage = Usage(tokens, 0, 0)
        self.parts.estimates.learn(MODEL, len(body), tokens, 0)
        self.settle(exchange, "ok", 200)
        await self.respond(exchange, send, 200, JSON, answer)

    def _embed(self, request: EmbeddingRequest, texts: list[str]) -> tuple[bytes, int]:
        """In the thread: the response and the tokens it took."""
        from shared.openai_responses import embedding_response

        if self._embedder is None:
            from shared.embeddings import load_embedder

            self._embedder = load_embedder(MODEL)
        embedder = self._embedder
        if request.dimensions not in (None, embedder.dimensions):
            raise invalid(f"dimensions: {MODEL} has {embedder.dimensions}.")
        vectors, tokens = embedder.encode(texts), sum(embedder.count_tokens(texts))
        return orjson.dumps(embedding_response(request, vectors, tokens)), tokens


def _request(body: bytes) -> EmbeddingRequest:
    try:
        return EmbeddingRequest.model_validate(parse(body))
    except ValidationError as error:
        first = error.errors()[0]
        raise invalid(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
