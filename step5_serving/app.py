"""The routes. Those that carry the traffic are gateway.py's and embeddings.py's ASGI classes; FastAPI does the rest.

GET /health    the process is alive            GET /v1/models          what this key may use
GET /ready     an engine answers               GET /v1/usage           this key's tokens and money
GET /metrics   Prometheus                      GET /v1/usage/{id}      one request's, by our x-request-id
GET /openapi.json                              GET /, GET /live         the page (web/)
"""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.routing import Route

from shared.openai_errors import add_errors
from shared.openai_protocol import ChatRequest, CompletionRequest, EmbeddingRequest
from shared.openai_server import is_loopback
from step5_serving.database import connect
from step5_serving.embeddings import CARD, Embeddings
from step5_serving.gateway import Completions
from step5_serving.limits import Account
from step5_serving.refusals import Refusal, invalid
from step5_serving.usage import request_row, usage_rows
from step5_serving.web.page import add_page

if TYPE_CHECKING:
    from step5_serving.service import Parts

PAID: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
}
REFUSALS = {
    "400": "the request is not valid", "401": "no usable key", "403": "the key's scope does not include the model",
    "404": "no such model or request", "413": "the body is too large", "429": "a limit is reached or the queue is full",
    "500": "the engine failed, in its own words", "502": "the engine broke off", "503": "no engine is ready",
    "504": "a deadline passed",
}  # fmt: skip
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "minLength": 1},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},  # engines say 400, we say why
            },
        }
    },
}


def create_app(parts: "Parts") -> FastAPI:
    """Return the application over these parts."""
    # The interactive documentation would load its scripts from elsewhere.
    app = FastAPI(title="step5_serving", docs_url=None, redoc_url=None, openapi_url=None)
    add_errors(app)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        headers = {name.decode(): value.decode() for name, value in refusal.headers()}
        return JSONResponse(refusal.body(), refusal.status, headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        parts.log.write("bug", error=repr(error))
        return JSONResponse(Refusal(500, "internal_error", "The gateway failed; see its log.").body(), 500)

    async def account(request: Request) -> Account:
        authorization = request.headers.get("authorization")
        return parts.keys.authenticate(authorization.encode("latin-1") if authorization else None)

    async def operator(request: Request) -> None:
        # What the figures say about the business is nobody's but the operator's: elsewhere they take a key, which
        # Prometheus can send (authorization: credentials).
        if request.client is None or not is_loopback(request.client.host):
            await account(request)

    Key = Annotated[Account, Depends(account)]

    # Starlette gives a class that is no function the bare request: no body is read, no response object made.
    for path in ("/v1/chat/completions", "/v1/completions"):
        app.router.routes.append(Route(path, Completions(parts, path), methods=["POST"]))
    app.router.routes.append(Route("/v1/embeddings", Embeddings(parts), methods=["POST"]))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        engines = [
            {"url": e.url, "engine": e.name, "ready": e.ready, "models": list(e.models)} for e in parts.engines.all
        ]
        if not any(engine.ready for engine in parts.engines.all):
            raise parts.engines.unavailable()
        return {"status": "ready", "engines": engines}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(operator)])
    async def metrics() -> Response:
        return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models(key: Key) -> dict[str, Any]:
        return {"object": "list", "data": [card for name, card in _cards(parts).items() if key.may_use(name)]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str, key: Key) -> dict[str, Any]:
        card = _cards(parts).get(name)
        if card is None or not key.may_use(name):
            raise Refusal(404, "model_not_found", f"The model {name[:100]!r} does not exist or is not for this key.")
        return card

    @app.get("/v1/usage")
    async def usage(key: Key, days: Annotated[int, Query(ge=1, le=3660)] = 30) -> dict[str, Any]:
        def read() -> list[dict[str, Any]]:
            parts.ledger.flush()
            database = connect(parts.database_path)
            try:
                return usage_rows(database, ["day", "model"], days=days, key=key.id)
            finally:
                database.close()

        rows = await asyncio.to_thread(read)
        return {"object": "usage", "key": key.name, "spent": key.spent, "cap": key.cap, "data": rows}

    @app.get("/v1/usage/{identity}")
    async def one_request(identity: str, key: Key) -> dict[str, Any]:
        def read() -> dict[str, Any] | None:
            parts.ledger.flush()
            database = connect(parts.database_path)
            try:
                return request_row(database, identity, key.id)
            finally:
                database.close()

        row = await asyncio.to_thread(read)
        if row is None:
            raise invalid("No request of this key has that id.", "request_not_found", 404)
        return row

    add_page(app, parts.live, operator)

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> dict[str, Any]:
        return openapi(app)

    return app


def _cards(parts: "Parts") -> dict[str, dict[str, Any]]:
    return {**parts.engines.models(), CARD["id"]: CARD}  # type: ignore[dict-item]


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the paths that FastAPI does not see. Engines accept more fields than it names."""
    document = get_openapi(
        title="step5_serving: an OpenAI-compatible gateway", version="1", routes=app.routes, openapi_version="3.1.0"
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {code: {"description": what, "content": content} for code, what in REFUSALS.items()}
    for path, operations in document["paths"].items():
        for responses in (operation["responses"] for operation in operations.values()):
            if responses.pop("422", None):  # FastAPI's; shared/openai_errors.py answers as OpenAI does
                responses["400"] = refusals["400"]
            if "{" in path:
                responses["404"] = refusals["404"]
    document["paths"]["/ready"]["get"]["responses"]["503"] = refusals["503"]
    document["paths"]["/metrics"]["get"]["responses"]["401"] = refusals["401"]
    for path, model in PAID.items():
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
        document["paths"][path] = {
            "post": {
                "summary": path.removeprefix("/v1/"),
                "requestBody": {"required": True, "content": content},
                "responses": {"200": {"description": "OpenAI's response, or its events"}, **refusals},
            }
        }
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
                operation["responses"].setdefault("401", refusals["401"])
    return document
