"""Put one item to a model, in the way that the run says (task.py explains the three). Only OpenAI's protocol is used.

`constrained` and `choice` need an endpoint that returns log-probabilities, `constrained` one that obeys strict tools
too: the embedded engine and vLLM do both.
"""

import json
import math
import time
from typing import TYPE_CHECKING, Any

from shared.endpoint import hang_up
from shared.errors import UserError
from shared.tool_calls import BEGIN
from step4_finetune.evaluation.task import Answer, Item, Run

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from step4_finetune.evaluation.prompt import Message

TOP = 20  # alternatives per token: the most that OpenAI's API gives


async def ask(client: "AsyncOpenAI", run: Run, item: Item) -> Answer:
    """Return the model's answer to one item.

    Raises UserError (exit code 1) when the endpoint fails after the client's retries, refuses the key, the model or
    the request, or does not return the log-probabilities that the strategy needs.
    """
    import openai

    way = {"native": _native, "constrained": _constrained, "choice": _choice}[run.strategy]
    messages = run.prompt.before(item.messages) if run.prompt else item.messages
    begun = time.perf_counter()
    try:
        found = await way(client, run, messages, item.tools)
    except openai.APIError as error:
        if not _too_long(error):
            raise _as_user_error(error) from error
        found = {"refused": _message(error)}
    return Answer(item.id, item.digest, seconds=round(time.perf_counter() - begun, 3), **found)


async def _native(
    client: "AsyncOpenAI", run: Run, messages: "list[Message]", tools: list[dict[str, Any]]
) -> dict[str, Any]:
    response = await client.chat.completions.create(**_request(run, messages, tools))
    message = _first_choice(response).message
    calls = [{"name": c.function.name, "arguments": c.function.arguments} for c in message.tool_calls or []]
    return {"text": message.content or "", "calls": calls, "prompt_tokens": _prompt_tokens(response)}


async def _choice(
    client: "AsyncOpenAI", run: Run, messages: "list[Message]", tools: list[dict[str, Any]]
) -> dict[str, Any]:
    found, tokens = await _first_token(client, run, messages, tools)
    return {"text": max(found, key=lambda token: found[token]), "probability": _yes(found), "prompt_tokens": tokens}


def _yes(found: dict[str, float]) -> float:
    """P(yes) / (P(yes) + P(no)), over all spellings of the two.

    A word outside the top 20 is given what the last of them has, the most it can have: with 0 instead, all items whose
    list lacks "no" would tie at 1. Neither in the list: 0.5.
    """

    def mass(word: str) -> float:
        begins = [p for token, p in found.items() if token.strip() and word.startswith(token.strip().lower())]
        return sum(math.exp(p) for p in begins) or math.exp(min(found.values()))

    yes, no = mass("yes"), mass("no")
    return yes / (yes + no)


async def _constrained(
    client: "AsyncOpenAI", run: Run, messages: "list[Message]", tools: list[dict[str, Any]]
) -> dict[str, Any]:
    found, tokens = await _first_token(client, run, messages, tools)
    probability = sum(math.exp(p) for token, p in found.items() if token and BEGIN.startswith(token))
    calls = await _forced_calls(client, run, messages, tools)
    return {"calls": calls, "probability": min(probability, 1.0), "prompt_tokens": tokens}


async def _first_token(
    client: "AsyncOpenAI", run: Run, messages: "list[Message]", tools: list[dict[str, Any]]
) -> tuple[dict[str, float], int | None]:
    """The log-probabilities of the answer's first token, and the prompt's length."""
    more = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
    response = await client.chat.completions.create(**_request(run, messages, tools) | more)
    logprobs = _first_choice(response).logprobs
    if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
        raise UserError(
            f"the endpoint returns no logprobs, which the strategy {run.strategy} needs: use native", exit_code=1
        )
    # Two tokens may have the same text (bytes of a character); their order decides nothing here.
    return {entry.token: entry.logprob for entry in logprobs.content[0].top_logprobs}, _prompt_tokens(response)


async def _forced_calls(
    client: "AsyncOpenAI", run: Run, messages: "list[Message]", tools: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """Calls under a grammar, without repetitions.

    Streamed, because a small untuned model that must call does not know when to stop and repeats its calls up to
    max_tokens: reading ends, and with it the generation, as soon as it only repeats. A stream that breaks off is asked
    for once more; the client itself retries only what has not begun.
    """
    strict = [tool | {"function": tool["function"] | {"strict": True}} for tool in tools]
    request = _request(run, messages, strict) | {"tool_choice": "required", "stream": True}
    for _ in range(2):
        calls = await _read_stream(await client.chat.completions.create(**request))
        if calls is not None:
            return calls
    raise UserError("the endpoint's stream broke off twice in a row; look at its log", exit_code=1)


async def _read_stream(stream: Any) -> list[dict[str, str]] | None:
    """The calls in a stream; None when it broke off."""
    import openai

    parts: dict[int, dict[str, str]] = {}
    finished = False
    async with stream:
        try:
            async for chunk in stream:
                for choice in chunk.choices:
                    finished = finished or choice.finish_reason is not None
                    for part in choice.delta.tool_calls or []:
                        call = parts.setdefault(part.index, {"name": "", "arguments": ""})
                        call["name"] += part.function.name or ""
                        call["arguments"] += part.function.arguments or ""
                calls, repeats = distinct(list(parts.values()))
                if repeats:
                    await hang_up(stream)
                    return calls
        except (openai.APIConnectionError, json.JSONDecodeError, UnicodeDecodeError):
            return None
    return distinct(list(parts.values()))[0] if finished else None


def distinct(calls: list[dict[str, str]]) -> tuple[list[dict[str, str]], bool]:
    """The calls without repetitions, in order, and whether the model only repeats itself by now.

    The call before it again, or any second repetition, says so; one slip back (Lisbon, Oslo, Lisbon, Rome) does not.
    """
    kept = [call for number, call in enumerate(calls) if call not in calls[:number]]
    repeated = len(calls) - len(kept)
    return kept, repeated >= 2 or (repeated == 1 and calls[-1] == calls[-2])


# -- requests and errors -----------------------------------------------------------------------------------------------


def _request(run: Run, messages: "list[Message]", tools: list[dict[str, Any]]) -> dict[str, Any]:
    request = {"model": run.model, "messages": messages, "max_tokens": run.max_tokens, "temperature": 0.0}
    return request | {"tools": tools} if tools else request


def _first_choice(response: Any) -> Any:
    try:
        return response.choices[0]
    except (AttributeError, TypeError, IndexError):
        raise UserError("the endpoint does not answer in OpenAI's form: check OPENAI_BASE_URL", exit_code=1) from None


def _prompt_tokens(response: Any) -> int | None:
    return response.usage.prompt_tokens if response.usage else None  # legal: some endpoints do not count


def _too_long(error: Any) -> bool:
    """Whether the endpoint says that the prompt does not fit the model. The words are vLLM's and OpenAI's."""
    return getattr(error, "status_code", None) == 400 and (
        error.code == "context_length_exceeded" or "maximum context length" in _message(error)
    )


def _as_user_error(error: Any) -> UserError:
    """Turn what the openai client raises into one sentence that names the fix."""
    import openai

    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return UserError("the endpoint refuses the key: set OPENAI_API_KEY", exit_code=1)
    if isinstance(error, openai.APITimeoutError):
        return UserError("the endpoint did not answer in time: lower the concurrency", exit_code=1)
    if isinstance(error, openai.APIConnectionError):
        return UserError(f"the endpoint cannot be reached: {error.__cause__ or error}", exit_code=1)
    if isinstance(error, openai.APIStatusError):
        return UserError(f"the endpoint refuses the request ({error.status_code}): {_message(error)}", exit_code=1)
    return UserError(f"the endpoint failed: {_message(error)}", exit_code=1)


def _message(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error", body)
    text = inner.get("message") if isinstance(inner, dict) else None
    return " ".join(str(text or error.message).split())[:300]
