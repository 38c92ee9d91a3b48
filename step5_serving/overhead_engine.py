"""A fake engine, for measuring the gateway alone: it computes nothing and answers at once.

python -m step5_serving.overhead_engine --port 9000

A plain ASGI application under uvicorn: `/health`, `/v1/models`, `/v1/chat/completions`. A streamed answer is one token
a second, `max_tokens` times: streams that stay open, as many as wanted.
"""

import asyncio
import json
from typing import Annotated, Any

import orjson
import typer
import uvicorn
from starlette.types import Receive, Scope, Send

MODEL = "fake-engine"
USAGE = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "fake"}]}
COMMON = {"id": "chatcmpl-fake", "created": 0, "model": MODEL}
WHOLE = json.dumps(
    {
        **COMMON,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
).encode()


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    document = {**COMMON, "object": "chat.completion.chunk", "choices": choices, **more}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


TOKEN = _event([{"index": 0, "delta": {"role": "assistant", "content": "w "}, "finish_reason": None}])
LAST = _event([{"index": 0, "delta": {}, "finish_reason": "length"}])


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    if scope["path"] != "/v1/chat/completions":
        await _whole(send, json.dumps(MODELS).encode() if scope["path"] == "/v1/models" else b"")
        return
    call = orjson.loads(body)
    if not call.get("stream"):
        await _whole(send, WHOLE)
        return
    await send(_start(b"text/event-stream"))
    tokens = int(call.get("max_tokens") or 1)
    for _ in range(tokens):
        await send({"type": "http.response.body", "body": TOKEN, "more_body": True})
        await asyncio.sleep(1.0)
    usage = {**USAGE, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    end = LAST + _event([], usage=usage) + b"data: [DONE]\n\n"
    await send({"type": "http.response.body", "body": end})


def _start(kind: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


async def _whole(send: Send, body: bytes) -> None:
    start = _start(b"application/json")
    start["headers"].append((b"content-length", str(len(body)).encode()))
    await send(start)
    await send({"type": "http.response.body", "body": body})


def main(port: Annotated[int, typer.Option(min=1, max=65535)]) -> None:
    """Serve on the loopback until killed."""
    uvicorn.run(
        application, host="127.0.0.1", port=port, lifespan="off", access_log=False, log_level="warning", backlog=4096
    )


if __name__ == "__main__":
    typer.run(main)
