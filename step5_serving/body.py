"""A request's body: read under a limit, parsed once, and the few fields a gateway has to know.

Everything else is the engine's business: it validates the body, and the gateway forwards the bytes as they came. Only
a stream whose client did not ask for token counts is changed: `stream_options` is put in front of the other members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Receive

from step5_serving.refusals import Refusal, invalid

ASK_FOR_USAGE = b'{"stream_options":{"include_usage":true},'


class ClientLeft(Exception):  # noqa: N818  not an error: people close tabs
    """The client hung up before its request was complete."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the gateway knows of a request. most: max_tokens, if given. answers: completions asked for in all.

    prompts: how many prompts a plain completion has. hide_usage: the client did not ask for the token counts that the
    engine is going to send. body: what the engine gets.
    """

    model: str
    stream: bool
    most: int | None
    answers: int
    prompts: int
    hide_usage: bool
    body: bytes


async def read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """Return the whole body. Raises Refusal 413 beyond `limit` bytes, as early as that is known; ClientLeft."""
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Refusal 400."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"The body is not valid JSON: {error}", "invalid_json") from None
    if not isinstance(document, dict):
        raise invalid("The body must be a JSON object.", "invalid_json")
    return document


def understand(body: bytes) -> Call:
    """Read what the gateway needs of a chat or completion request. Raises Refusal 400 for wrong types of that.

    Of a member that stands twice the last one counts, here and in the engines' parsers alike.
    """
    document = parse(body)
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model: name the model to use (GET /v1/models lists them).")
    stream = _field(document, "stream", bool) or False
    limits = [_field(document, name, int) for name in ("max_tokens", "max_completion_tokens")]
    given = [limit for limit in limits if limit is not None]
    if any(limit < 0 for limit in given):  # it would lower the reservation of the spending cap
        raise invalid("max_tokens must not be negative.")
    most = max(given, default=None)  # which of two counts depends on the route and the engine
    prompts = _prompts(document.get("prompt"))
    answers = max(1, _field(document, "n", int) or 1)
    if answers > 128:  # OpenAI's limit. Estimates a million times the others' would drown these in admission's sums.
        raise invalid("n must be at most 128.")
    answers *= prompts
    hide = False
    if stream:
        options = _field(document, "stream_options", dict)
        if not (options or {}).get("include_usage"):
            hide = True
            if "stream_options" in document:
                document["stream_options"] = {**(options or {}), "include_usage": True}
                body = orjson.dumps(document)
            else:
                body = ASK_FOR_USAGE + body[body.index(b"{") + 1 :]
    return Call(model, stream, most, answers, prompts, hide, body)


def _field(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if value is not None and type(value) is not kind:
        expected = {bool: "true or false", int: "an integer", dict: "an object"}[kind]
        raise invalid(f"{name} must be {expected}.")
    return value


def _prompts(prompt: Any) -> int:
    """How many prompts: a text, or one list of token ids, is one; a list of either is as many as it is long."""
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body is larger than this service's limit of {limit:,} bytes.")
