"""Three ways to get tool calls out of a model, weakest demand on the endpoint last.

    native        send `tools`, let the model decide and write. Right for models that were trained to call tools.
    constrained   decide from log-probabilities whether to call at all, then force calls that obey the tools' schemas.
                  What a small model gets wrong in form (JSON, names, required arguments) it then cannot get wrong.
    text          tools described in the prompt, calls found in the answer's text. Needs nothing but chat.

Each is one coroutine: messages and tools in, one `Turn` out. They use only OpenAI's protocol, so each works on the
embedded engine, on vLLM and on hosted models as far as those implement it (`constrained` needs logprobs and strict
tools; vLLM and the embedded engine have both).
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from shared.endpoint import hang_up
from shared.errors import UserError
from shared.foreign_text import encodable
from shared.tool_calls import BEGIN
from step2_tool_calling.conversation import Call, Message, Turn, Usage
from step2_tool_calling.text_calls import as_text_messages, find_calls
from step2_tool_calling.tool import Tool

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Name = Literal["native", "constrained", "text"]
OnText = Callable[[str], None]

RESTATE = "Write the results as a short answer to my question. Keep all the numbers."


@dataclass(frozen=True)
class Model:
    """A model at an endpoint, and how to ask it.

    call_threshold: `constrained` calls a tool when the model gives at least this probability to beginning a call;
    0 always calls on the first turn. extra: further request fields, as the endpoint knows them.
    """

    client: "AsyncOpenAI"
    name: str
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = None
    call_threshold: float = 0.5
    extra: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """The request fields that every request carries."""
        fields = {"model": self.name, "temperature": self.temperature, "max_tokens": self.max_tokens, **self.extra}
        return fields if self.seed is None else fields | {"seed": self.seed}


async def take_turn(
    strategy: Name, model: Model, messages: Sequence[Message], tools: Sequence[Tool], on_text: OnText
) -> Turn:
    """Ask the model for its next turn. on_text: is given the text as it streams.

    Raises UserError (exit code 1) when the endpoint fails for good: refused key, refused request, no answer after the
    client's retries, or a stream that broke off twice.
    """
    ask = {"native": _native, "constrained": _constrained, "text": _text}[strategy]
    return await ask(model, messages, tools, on_text)


async def _native(model: Model, messages: Sequence[Message], tools: Sequence[Tool], on_text: OnText) -> Turn:
    return await _stream(model, messages, on_text, **_tools(tools))


async def _constrained(model: Model, messages: Sequence[Message], tools: Sequence[Tool], on_text: OnText) -> Turn:
    if not tools:
        return await _stream(model, messages, on_text)
    answering = messages[-1]["role"] == "tool"
    before = Usage()
    seconds = 0.0
    # A threshold of 0 always calls, once: after results there must be a way to end.
    if model.call_threshold > 0 or answering:
        probability, decision = await call_probability(model, messages, tools)
        before, seconds = decision.usage, decision.seconds
        if probability < (model.call_threshold or 0.5):
            asked = as_restatement(messages) if answering else messages
            turn = await _stream(model, asked, on_text)
            return _after(turn, before, seconds)
    # A small model that was made to call does not know when to stop: it repeats its calls until max_tokens cuts it off
    # (SmolLM2-135M on BFCL simple_python: 40 of 40). So repetition ends the turn, and saves its tokens.
    forced = _tools(tools, strict=True) | {"tool_choice": "required"}
    turn = await _stream(model, messages, lambda _: None, until_repeated=True, **forced)
    return _after(replace(turn, content="" if turn.calls else turn.content), before, seconds)


async def call_probability(model: Model, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[float, Turn]:
    """The probability that the model's next turn begins with a tool call, and what asking cost.

    One token is generated and its alternatives are read: the mass of all tokens that can begin "<tool_call>". Tokens
    outside the endpoint's top 20 count as 0.
    """
    begun = time.perf_counter()
    fields = model.fields() | {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
    try:
        # "none" would take the tools out of the prompt; "auto" leaves the model its choice, which is what is measured.
        answer = await model.client.chat.completions.create(
            messages=cast("Any", list(messages)), **fields, **_tools(tools)
        )
    except Exception as error:
        raise _endpoint_error(error) from error
    try:
        logprobs = answer.choices[0].logprobs
        top = logprobs.content[0].top_logprobs if logprobs and logprobs.content else None
        masses = {entry.token: math.exp(entry.logprob) for entry in top or []}
    except (AttributeError, TypeError, LookupError, OverflowError):
        raise UserError("the endpoint does not answer in OpenAI's form: check OPENAI_BASE_URL", exit_code=1) from None
    if not top:
        raise UserError(
            "this endpoint returns no logprobs, which --strategy constrained needs: use native", exit_code=1
        )
    mass = sum(mass for token, mass in masses.items() if token and BEGIN.startswith(token))
    seconds = time.perf_counter() - begun
    return min(mass, 1.0), Turn("", usage=_usage(answer.usage), seconds=seconds)


def as_restatement(messages: Sequence[Message]) -> list[Message]:
    """The last question and its results as a plain request to write them up: no tools, no tags, no earlier turns.

    Seeing tool calls, a small model writes another one, or echoes the tags around a result. Asked to restate a
    numbered list it keeps every figure (SmolLM2-135M: 6 of 6 questions with one to three results; without the numbers
    it stops after the second line, 3 of 6). The system message is left out too: this was measured without it, and what
    it says about calling tools cannot be followed in a request that has none. A style it asks for is lost with it.
    """
    start = max(index for index, message in enumerate(messages) if message["role"] == "user")
    results = [message["content"] for message in messages[start:] if message["role"] == "tool"]
    numbered = "\n".join(f"{number}. {result}" for number, result in enumerate(results, 1))
    return [
        {"role": "user", "content": messages[start]["content"]},
        {"role": "assistant", "content": "I will look it up."},
        {"role": "user", "content": f"Results:\n{numbered}\n\n{RESTATE}"},
    ]


async def _text(model: Model, messages: Sequence[Message], tools: Sequence[Tool], on_text: OnText) -> Turn:
    turn = await _stream(model, as_text_messages(messages, tools), on_text)
    content, calls = find_calls(turn.content, tools)
    return replace(turn, content=content, calls=tuple(calls))


def _tools(tools: Sequence[Tool], *, strict: bool = False) -> dict[str, Any]:
    return {"tools": [tool.as_openai(strict=strict) for tool in tools]} if tools else {}


def _after(turn: Turn, before: Usage, seconds: float) -> Turn:
    return replace(
        turn, usage=before + turn.usage, seconds=seconds + turn.seconds, first_token=seconds + turn.first_token
    )


# -- one streamed request ----------------------------------------------------------------------------------------------


class _BrokenStreamError(Exception):
    """The stream ended before the model did."""


async def _stream(
    model: Model, messages: Sequence[Message], on_text: OnText, *, until_repeated: bool = False, **more: Any
) -> Turn:
    """One request, streamed. A stream that breaks off is asked for once more: generating again has no side effect.

    until_repeated: stop reading, and with that the generation, when the model only repeats its calls.
    """
    try:
        return await _stream_once(model, messages, on_text, until_repeated, more)
    except _BrokenStreamError:
        on_text("\n")
    except Exception as error:
        raise _endpoint_error(error) from error
    try:
        return await _stream_once(model, messages, on_text, until_repeated, more)
    except Exception as error:
        raise _endpoint_error(error) from error


async def _stream_once(
    model: Model, messages: Sequence[Message], on_text: OnText, until_repeated: bool, more: dict[str, Any]
) -> Turn:
    import openai

    begun = time.perf_counter()
    first = 0.0
    text: list[str] = []
    calls: list[_Streamed] = []
    finish, usage = None, None
    options = {"include_usage": True}
    if until_repeated:
        options["continuous_usage_stats"] = True  # vLLM's extension: the counts are known wherever reading stops
    stream = await model.client.chat.completions.create(
        messages=cast("Any", list(messages)),
        stream=True,
        stream_options=cast("Any", options),
        **model.fields(),
        **more,
    )
    async with stream:
        try:
            async for chunk in stream:
                piece, reason = _read_chunk(chunk, calls)
                usage, finish = chunk.usage or usage, reason or finish
                if piece or calls:
                    first = first or time.perf_counter() - begun
                if piece:
                    text.append(piece)
                    on_text(piece)
                if until_repeated and _distinct(calls)[1]:
                    finish = "tool_calls"
                    await hang_up(stream)
                    break
        except (openai.APIConnectionError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _BrokenStreamError(f"the stream broke off ({type(error).__name__})") from error
    if finish is None:
        raise _BrokenStreamError("the stream ended without a finish reason")
    parts = _distinct(calls)[0] if until_repeated else calls
    found = tuple(part.call(number) for number, part in enumerate(parts))
    return Turn(encodable("".join(text)), found, _usage(usage), time.perf_counter() - begun, first, finish)


@dataclass
class _Streamed:
    """A call while its parts arrive."""

    index: int | None
    id: str = ""
    name: str = ""
    arguments: str = ""

    def call(self, number: int) -> Call:
        return Call(encodable(self.id) or f"call_{number}", encodable(self.name), encodable(self.arguments))


def _read_chunk(chunk: Any, calls: list[_Streamed]) -> tuple[str, str | None]:
    """Add a chunk's parts to the calls; return its text and finish reason. The client does not check what it parses."""
    text, finish = "", None
    try:
        for choice in chunk.choices or []:
            finish = choice.finish_reason or finish
            if choice.delta is None:
                continue
            text += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                call = _call_of(part, calls)
                call.id = call.id or str(part.id or "")
                if part.function:
                    call.name += part.function.name or ""
                    call.arguments += part.function.arguments or ""
    except (AttributeError, TypeError) as error:
        raise _BrokenStreamError("the stream is not in OpenAI's form") from error
    return text, finish


def _call_of(part: Any, calls: list[_Streamed]) -> _Streamed:
    """The call that a streamed part continues, or a new one, added to `calls`.

    By OpenAI's protocol the index tells. Gemini's endpoint gives every call the index 0, and others leave it out; then
    a name together with another id (without an index: any name) begins the next call. An id alone does not: some
    servers send a fresh one with every piece of the arguments (BerriAI/litellm #28223).
    """
    index = getattr(part, "index", None)
    same = [call for call in calls if call.index == index]
    for call in same:
        if part.id and call.id == str(part.id):
            return call
    named = part.function and part.function.name
    if same and not (named and (index is None or (part.id and same[-1].id))):
        return same[-1]
    calls.append(_Streamed(index))
    return calls[-1]


def _distinct(calls: Sequence[_Streamed]) -> tuple[list[_Streamed], bool]:
    """The calls without repetitions, and whether the model only repeats itself by now.

    One that repeats the call before it, or a second repetition, says so; a single slip back (Lisbon, Oslo, Lisbon,
    euros) does not.
    """
    distinct: list[_Streamed] = []
    repetitions = 0
    for call in calls:
        if any(call.name == other.name and call.arguments == other.arguments for other in distinct):
            repetitions += 1 if call.arguments != distinct[-1].arguments else 2
        else:
            distinct.append(call)
    return distinct, repetitions >= 2


def _usage(usage: Any) -> Usage:
    if usage is None:  # legal: some endpoints do not count
        return Usage(requests=1)
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", 0) or 0
    return Usage(usage.prompt_tokens or 0, cached, usage.completion_tokens or 0, 1)


def _endpoint_error(error: Exception) -> Exception:
    """Turn what the openai client raises into one sentence that names the fix; other errors are bugs and pass."""
    import openai

    if isinstance(error, UnicodeEncodeError):  # argv and stdin hand on bytes that are no UTF-8 as half surrogate pairs
        return UserError("the question holds bytes that are not UTF-8: check the terminal's encoding")
    if isinstance(error, _BrokenStreamError):
        return UserError(f"the endpoint failed twice in a row: {error}", exit_code=1)
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return UserError("the endpoint refuses the key: set OPENAI_API_KEY", exit_code=1)
    if isinstance(error, openai.RateLimitError):
        return UserError("the endpoint is over its rate limit, also after retries: wait a little", exit_code=1)
    if isinstance(error, openai.APITimeoutError):
        return UserError("the endpoint did not answer in time (--timeout)", exit_code=1)
    if isinstance(error, openai.APIConnectionError):
        return UserError(f"the endpoint cannot be reached: {error.__cause__ or error}", exit_code=1)
    if isinstance(error, openai.APIStatusError):
        return UserError(f"the endpoint refuses the request ({error.status_code}): {_message(error)}", exit_code=1)
    if isinstance(error, openai.APIError):
        return UserError(f"the endpoint failed: {_message(error)}", exit_code=1)
    return error


def _message(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error", body)
    text = inner.get("message") if isinstance(inner, dict) else None
    return " ".join(str(text or error.message).split())[:300]
