"""The HTTP application: OpenAI's routes, each a translation of a request for the engine and of its events back.

What a request may say is in openai_protocol.py, what a response looks like in openai_responses.py, and
`python -m shared.openai_server` (openai_server.py) runs it.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from shared.openai_errors import add_errors
from shared.openai_protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationRequest,
    NamedToolChoice,
    plain_messages,
)
from shared.openai_responses import ChatWriter, CompletionWriter, Writer, embedding_response

if TYPE_CHECKING:
    from shared.embeddings import Embedder
    from shared.engine import Engine
    from shared.generation import Event, Generation
    from shared.generation import Request as EngineRequest
    from shared.grammar import GrammarCompiler, Matcher

EMBEDDING_MODEL = "minilm-l6-v2"


@dataclass
class State:
    """What the handlers share."""

    engine: "Engine"
    embedder: "Embedder | None" = None
    compiler: "GrammarCompiler | None" = None
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def models(self) -> dict[str, str | None]:
        """Served model name → adapter name (None: the base model)."""
        model = self.engine.model
        return {model.name: None, **{name: name for name in model.adapters}}


def create_app(served: "Engine", api_key: str | None = None) -> FastAPI:
    """Return the application. The engine's thread runs while the application does.

    api_key: when given, requests must carry it as a bearer token.
    """
    state = State(served)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.start()
        yield
        await asyncio.to_thread(served.close)

    async def authenticate(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), (api_key or "").encode())
        if api_key and not right and request.url.path != "/health":
            raise ApiError("Incorrect API key provided.", status=401, code="invalid_api_key")

    app = FastAPI(title="llm-engineer-roadmap embedded engine", lifespan=lifespan, dependencies=[Depends(authenticate)])
    add_errors(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        if not served.alive():
            raise ApiError("the engine's thread is not running", status=503)
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [*state.models(), EMBEDDING_MODEL]
        return {"object": "list", "data": [_model_card(name, state) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name not in (*state.models(), EMBEDDING_MODEL):
            raise _unknown_model(name, state)
        return _model_card(name, state)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        tokenizer = served.model.tokenizer
        tools = [] if body.tool_choice == "none" else [tool.as_prompt() for tool in body.tools or []]
        prompt = tokenizer.encode(tokenizer.render(plain_messages(body.messages), tools))
        count = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        matchers = await asyncio.to_thread(lambda: [_matcher(body, state) for _ in range(body.n or 1)])
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        requests = [
            _engine_request(body, state, prompt, count, i, logprobs=logprobs, matcher=matcher)
            for i, matcher in enumerate(matchers)
        ]
        return await _answer(state, http, body, ChatWriter(body, tokenizer, len(requests), bool(tools)), requests)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, http: Request) -> Response:
        tokenizer = served.model.tokenizer
        prompts = [tokenizer.encode(p, add_special=True) if isinstance(p, str) else p for p in _as_list(body.prompt)]
        top, echo = served.model.config.vocabulary, bool(body.echo)
        if any(not 0 <= token < top for prompt in prompts for token in prompt):
            raise ApiError(f"prompt: token ids must lie in 0..{top - 1}", param="prompt")
        # 16 is OpenAI's default here. 0 asks for the prompt's log-probabilities alone; the engine always makes a token.
        count = 16 if body.max_tokens is None else max(body.max_tokens, 1)
        requests = [
            _engine_request(body, state, prompt, count, i, logprobs=body.logprobs, echo=echo)
            for prompt in prompts
            for i in range(body.n or 1)
        ]
        return await _answer(state, http, body, CompletionWriter(body, tokenizer, len(requests)), requests)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> dict[str, Any]:
        if body.model != EMBEDDING_MODEL:
            raise ApiError(f"embeddings come from model {EMBEDDING_MODEL!r}", status=404, code="model_not_found")
        async with state.loading:
            if state.embedder is None:
                from shared.embeddings import load_embedder

                state.embedder = await asyncio.to_thread(load_embedder, EMBEDDING_MODEL)
        embedder, texts = state.embedder, [body.input] if isinstance(body.input, str) else body.input
        if body.dimensions not in (None, embedder.dimensions):
            raise ApiError(f"{EMBEDDING_MODEL} has {embedder.dimensions} dimensions", param="dimensions")
        vectors, counts = await asyncio.to_thread(lambda: (embedder.encode(texts), embedder.count_tokens(texts)))
        return embedding_response(body, vectors, sum(counts))

    return app


def _engine_request(
    body: GenerationRequest,
    state: State,
    prompt: list[int],
    max_tokens: int | None,
    index: int,
    *,
    logprobs: int | None,
    matcher: "Matcher | None" = None,
    echo: bool = False,
) -> "EngineRequest":
    """Translate HTTP fields into an engine request. index: which of the n answers; each gets its own seed."""
    from shared.generation import Request as EngineRequest
    from shared.sampling import Sampling

    if body.model not in state.models():
        raise _unknown_model(body.model, state)
    vocabulary = state.engine.model.config.vocabulary
    if any(not 0 <= token < vocabulary for token in body.logit_bias or {}):
        raise ApiError(f"logit_bias: token ids must lie in 0..{vocabulary - 1}", param="logit_bias")
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        seed=None if body.seed is None else body.seed + index,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        logit_bias=body.logit_bias or {},
    )
    return EngineRequest(
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=body.stop_texts(),
        ignore_eos=body.ignore_eos,
        adapter=state.models()[body.model],
        logprobs=logprobs,
        prompt_logprobs=echo and logprobs is not None,
        matcher=matcher,
    )


async def _answer(
    state: State, http: Request, body: GenerationRequest, writer: Writer, requests: "list[EngineRequest]"
) -> Response:
    """Run the requests and answer as one JSON document or as server-sent events; a client that leaves cancels them."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def deliver(index: int, event: "Event") -> None:
        loop.call_soon_threadsafe(events.put_nowait, (index, event))

    generations: list[Generation] = []
    try:
        generations.extend(state.engine.submit(request, partial(deliver, i)) for i, request in enumerate(requests))
    except BaseException:
        for generation in generations:
            generation.cancel()
        raise

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        open_answers = len(generations)
        try:
            while open_answers:
                index, event = await events.get()
                if event.finish == "error":
                    raise ApiError(event.error, status=500)
                if event.finish == "cancelled":
                    raise ApiError("the server is shutting down", status=503)
                open_answers -= event.finish is not None
                for chunk in writer.write(index, generations[index], event):
                    yield chunk
        finally:
            for generation in generations:
                generation.cancel()

    if body.stream:
        return _CancellingStream(_server_sent_events(chunks(), writer), generations)

    async def collect() -> None:
        async for _ in chunks():
            pass

    finished = asyncio.ensure_future(collect())
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not finished.done():
            return Response(status_code=499)  # nobody is there to read it; the log shows why
        await finished
        return JSONResponse(writer.document())
    finally:
        finished.cancel()
        gone.cancel()


class _CancellingStream(StreamingResponse):
    """A stream that cancels its generations however it ends, also when the client leaves before the first chunk."""

    def __init__(self, content: AsyncIterator[str], generations: "list[Generation]") -> None:
        super().__init__(content, media_type="text/event-stream")
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for generation in self._generations:
                generation.cancel()


async def _server_sent_events(chunks: AsyncIterator[dict[str, Any]], writer: Writer) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        for chunk in writer.last_chunks():
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    except ApiError as error:  # the status line is long gone: the error goes into the stream, as OpenAI does it
        yield f"data: {json.dumps(error.body(), ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _matcher(body: ChatRequest, state: State) -> "Matcher | None":
    """The grammar that tool_choice, strict tools or response_format ask for. Imports xgrammar on first use."""
    form = body.response_format
    wants_json = form is not None and form.type != "text"
    tools = [tool.model_dump() for tool in body.tools or []]
    forced = body.tool_choice == "required" or isinstance(body.tool_choice, NamedToolChoice)
    strict = body.tool_choice in (None, "auto") and any(tool.function.strict for tool in body.tools or [])
    if not (wants_json or forced or strict):
        return None
    if state.compiler is None:
        from shared.grammar import GrammarCompiler

        config = state.engine.model.config
        state.compiler = GrammarCompiler(state.engine.model.tokenizer, config.vocabulary, config.eos)
    if forced or strict:
        if isinstance(body.tool_choice, NamedToolChoice):
            tools = [tool for tool in tools if tool["function"]["name"] == body.tool_choice.function.name]
        parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedToolChoice)
        return state.compiler.tool_calls(tools, required=forced, parallel=parallel)
    assert form is not None
    if form.json_schema is not None and form.type == "json_schema":
        return state.compiler.json_schema(form.json_schema.schema_)
    return state.compiler.json_object()


def _as_list(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Any]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _model_card(name: str, state: State) -> dict[str, Any]:
    card: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "llm-engineer-roadmap"}
    if name != EMBEDDING_MODEL:
        card["max_model_len"] = state.engine.model.config.context
        card["parent"] = None if state.models()[name] is None else state.engine.model.name  # as vLLM says it
    return card


def _unknown_model(name: str, state: State) -> ApiError:
    served = ", ".join([*state.models(), EMBEDDING_MODEL])
    return ApiError(f"The model {name!r} does not exist; served here: {served}", status=404, code="model_not_found")
