"""The agent loop: ask the model, check what it wants to call, run it, show it the results, until it answers.

    messages → model → validate → approve → run in parallel, each with its own timeout → results → model → … → answer

Everything that can go wrong with a call (no such tool, arguments that do not fit, a refusal, a timeout, a tool's own
failure) becomes a message that the model can read and act on; the loop itself only ends with an answer, at a limit,
by Ctrl-C, or when the endpoint fails. The loop knows no terminal and no database: it reports events to an observer.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from step2_tool_calling.conversation import (
    Call,
    CallDone,
    CallStarted,
    Ending,
    Event,
    Finished,
    Message,
    Result,
    Status,
    TextDelta,
    Turn,
    TurnDone,
    Usage,
)
from step2_tool_calling.redaction import redact
from step2_tool_calling.tool import Tool, ToolError, as_text, by_name

Ask = Callable[[Sequence[Message], Sequence[Tool], Callable[[str], None]], Awaitable[Turn]]
Approve = Callable[[Tool, dict[str, Any]], Awaitable[bool]]
Observe = Callable[[Event], None]

RESULT_CHARACTERS = 6000  # about 2,000 tokens; a whole web page would push the question out of a small model's context


@dataclass(frozen=True)
class Limits:
    """When to stop. steps: model turns. tokens: prompt and completion of all turns. dollars: by prices.toml."""

    steps: int = 8
    tokens: int = 50_000
    dollars: float = 1.0


async def run(
    ask: Ask,
    messages: list[Message],
    tools: list[Tool],
    *,
    approve: Approve,
    observe: Observe,
    limits: Limits = Limits(),
    price: Callable[[Usage], float | None] = lambda _: 0.0,
) -> Finished:
    """Bring the conversation to its next answer. `messages` grows by each turn together with its results.

    ask: the model (strategies.take_turn, or a recording). approve: asked before each call runs; False refuses it.
    price: what the tokens so far cost in US dollars, None when nobody knows.
    Raises what `ask` raises, after the observer was told; asyncio.CancelledError likewise, running calls cancelled.
    """
    begun, used = time.perf_counter(), Usage()

    def finished(answer: str, ending: Ending, error: str = "") -> Finished:
        event = Finished(answer, ending, used, time.perf_counter() - begun, price(used), error)
        observe(event)
        return event

    offered = by_name(tools)
    known: dict[tuple[str, str], Result] = {}  # calls that need no second run
    wrong: set[str] = set()  # tools that were once called with arguments that do not fit
    answer = ""
    try:
        for step in range(1, limits.steps + 1):
            # The last turn gets no tools: an answer from what is known is worth more than a call nobody will run.
            last = step == limits.steps
            turn = await ask(messages, [] if last else list(offered.values()), lambda text: observe(TextDelta(text)))
            used += turn.usage
            answer = turn.content
            if last and turn.calls:
                turn = Turn(turn.content, (), turn.usage, turn.seconds, turn.first_token, turn.finish)
            observe(TurnDone(step, turn))
            if not turn.calls:
                messages.append(turn.as_message())
                return finished(answer, "step limit" if last and step > 1 else "answer")

            stale = all(_key(call) in known for call in turn.calls)
            done = await _run_calls(turn.calls, offered, known, step, approve, observe)
            # Only now: a call without its result, left by Ctrl-C, would make the history one that endpoints refuse.
            messages += [turn.as_message(), *(result.as_message() for result in done)]
            for result in done:
                if result.status in ("ok", "denied"):
                    known.setdefault(_key(result.call), result)
            # A wrong call goes back once, with the reason. Wrong in a second turn, the tool is taken away: small models
            # repeat a mistake until a limit stops them.
            invalid = {result.call.name for result in done if result.status == "invalid"}
            for name in invalid & wrong:
                offered.pop(name, None)
            wrong |= invalid
            if stale:
                offered = {}  # nothing new was asked for: time to answer
            if used.total >= limits.tokens:
                return finished(answer, "token limit")
            if (cost := price(used)) and cost >= limits.dollars:
                return finished(answer, "money limit")
        return finished(answer, "step limit")
    except asyncio.CancelledError:
        finished(answer, "cancelled")
        raise
    except Exception as error:
        finished(answer, "failed", str(error))
        raise


def _key(call: Call) -> tuple[str, str]:
    return call.name, json.dumps(call.arguments(), sort_keys=True)


async def _run_calls(
    calls: Sequence[Call],
    offered: dict[str, Tool],
    known: dict[tuple[str, str], Result],
    step: int,
    approve: Approve,
    observe: Observe,
) -> list[Result]:
    """Check all calls, ask about them one after the other, then run the permitted ones together; results in order."""
    results: dict[int, Result] = {}
    runnable: dict[int, tuple[Tool, dict[str, Any]]] = {}

    def settle(index: int, status: Status, output: str, seconds: float = 0.0) -> None:
        results[index] = Result(calls[index], status, as_data(output), seconds)
        observe(CallDone(step, results[index]))

    for index, call in enumerate(calls):
        tool, arguments, repeated = offered.get(call.name), call.arguments(), known.get(_key(call))
        if tool is None:
            settle(index, "unknown", f"there is no tool {call.name!r}; the tools are: {', '.join(offered) or 'none'}")
        elif arguments is None:
            settle(index, "invalid", f"the arguments of {call.name} are not a JSON object")
        elif problem := tool.problem(arguments):
            settle(index, "invalid", problem)
        elif repeated is not None:
            settle(index, repeated.status, repeated.output)
        elif not await approve(tool, arguments):
            settle(index, "denied", "the user did not allow this call")
        else:
            runnable[index] = (tool, arguments)

    async def run_one(index: int) -> None:
        tool, arguments = runnable[index]
        observe(CallStarted(step, calls[index]))
        begun = time.perf_counter()
        status: Status = "ok"
        try:
            async with asyncio.timeout(tool.timeout):
                output = as_text(await tool.run(arguments))
        except TimeoutError:
            status, output = "timeout", f"{tool.name} did not finish within {tool.timeout:g} s"
        except ToolError as error:
            status, output = "error", str(error)
        except asyncio.CancelledError:
            settle(index, "cancelled", "cancelled", time.perf_counter() - begun)
            raise
        except Exception as error:  # a bug in a tool must not end the conversation
            status, output = "error", f"{tool.name} failed: {type(error).__name__}: {error}"
        settle(index, status, output, time.perf_counter() - begun)

    try:
        async with asyncio.TaskGroup() as group:
            for index in runnable:
                group.create_task(run_one(index))
    except* Exception as errors:  # an observer failed: the log's disk is full, the terminal is gone
        raise errors.exceptions[0] from None
    return [results[index] for index in range(len(calls))]


def as_data(text: str) -> str:
    """A tool's output, bounded, and unable to pose as anything else in the prompt.

    Chat templates mark who speaks with special tokens (<|im_start|>) and tags (<tool_response>). A web page that
    contains them could open a new system turn, so they are broken up: the text stays readable, the tokens are gone.
    Secrets are masked: a tool that prints its environment must not send the key to whoever runs the model.
    """
    text = redact(text)
    text = re.sub(r"<(?=[|/]?\w*(?:tool_call|tool_response|tools|_of_turn|SYS>|\||｜)|/?s>)", "<\u200b", text)
    text = re.sub(r"\[(?=/?(?:INST|SYS|TOOL))", "[\u200b", text)
    if len(text) > RESULT_CHARACTERS:
        kept = RESULT_CHARACTERS - 50  # room for the remark, so that a logged result passes a second time unchanged
        text = f"{text[:kept]} … ({len(text) - kept} more characters left out)"
    return text
