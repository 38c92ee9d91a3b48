"""The agent loop: ask the model, check what it wants to call, run it, show it the results, until it answers.

    messages → model → validate → approve → run in parallel, each with its own timeout → results → model → … → answer

Everything that can go wrong with a call (no such tool, arguments that do not fit, a refusal, a timeout, a tool's own
failure) becomes a message that the model can read and act on; the loop itself only ends with an answer, at a limit,
by Ctrl-C, or when the endpoint fails. The loop knows no terminal and no database: it reports events to an observer.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared.foreign_text import encodable, unmarked
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
# So much of an output is looked at, whatever its size, and so much may a secret at the end of that have: a private key
# of 16,384 bits has 12,000 characters.
READ_CHARACTERS, LONGEST_SECRET = 100_000, 20_000


@dataclass(frozen=True)
class Limits:
    """When to stop. steps: model turns. tokens: prompt and completion of all turns. dollars: by prices.toml.

    The last step is for the answer: it gets no tools, so with steps=1 none is ever offered. What the model says there
    is its answer like any other, for it has seen the result of every call. The ending is "step limit" only when even
    then it asks for a call, which nobody runs.
    """

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

    A call that succeeded, or was refused, is not run again in a later turn of the same question: repeated, it gets the
    result it had. Small models repeat themselves, and a mail must not be sent twice for that. The price: a tool cannot
    be polled ("is it done yet?") unless some argument differs each time.
    """
    begun, used = time.perf_counter(), Usage()

    def finished(answer: str, ending: Ending, error: str = "") -> Finished:
        event = Finished(answer, ending, used, time.perf_counter() - begun, price(used), error)
        observe(event)
        return event

    memory = _Memory(by_name(tools))
    answer = ""
    try:
        for step in range(1, limits.steps + 1):
            # The last turn gets no tools: an answer from what is known is worth more than a call nobody will run.
            last = step == limits.steps
            offered = [] if last else list(memory.offered.values())
            turn = await ask(messages, offered, lambda text: observe(TextDelta(text)))
            used += turn.usage
            answer = turn.content
            unmet = last and bool(turn.calls)
            if unmet:
                turn = replace(turn, calls=())
            observe(TurnDone(step, turn))
            if not turn.calls:
                messages.append(turn.as_message())
                return finished(answer, "step limit" if unmet else "answer")

            done = await _run_calls(turn.calls, memory, step, approve, observe)
            # Only now: a call without its result, left by Ctrl-C, would make the history one that endpoints refuse.
            messages += [turn.as_message(), *(result.as_message() for result in done)]
            memory.learn(done)
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


@dataclass
class _Memory:
    """What one question's turns have taught. offered: the tools still on offer. known: results to give again.

    wrong: tools that were once called with arguments that do not fit.
    """

    offered: dict[str, Tool]
    known: dict[tuple[str, str], Result] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)

    def learn(self, done: Sequence[Result]) -> None:
        """Draw the conclusions from one turn's results."""
        stale = all(_key(result.call) in self.known for result in done)
        for result in done:
            if result.status in ("ok", "denied"):
                self.known.setdefault(_key(result.call), result)
        # A wrong call goes back once, with the reason. Wrong in a second turn, the tool is taken away: small models
        # repeat a mistake until a limit stops them.
        invalid = {result.call.name for result in done if result.status == "invalid"}
        for name in invalid & self.wrong:
            self.offered.pop(name, None)
        self.wrong |= invalid
        if stale:
            self.offered = {}  # nothing new was asked for: time to answer


def _key(call: Call) -> tuple[str, str]:
    return call.name, json.dumps(call.arguments(), sort_keys=True)


async def _run_calls(
    calls: Sequence[Call], memory: _Memory, step: int, approve: Approve, observe: Observe
) -> list[Result]:
    """Check all calls, ask about them one after the other, then run the permitted ones together; results in order."""
    results: dict[int, Result] = {}
    runnable: dict[int, tuple[Tool, dict[str, Any]]] = {}

    def settle(index: int, status: Status, output: str, seconds: float = 0.0) -> None:
        results[index] = Result(calls[index], status, as_data(output), seconds)
        observe(CallDone(step, results[index]))

    for index, call in enumerate(calls):
        offered, arguments, repeated = memory.offered, call.arguments(), memory.known.get(_key(call))
        tool = offered.get(call.name)
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
        observe(CallStarted(step, calls[index]))
        begun = time.perf_counter()
        try:
            status, output = await run_tool(*runnable[index])
        except asyncio.CancelledError:
            settle(index, "cancelled", "cancelled", time.perf_counter() - begun)
            raise
        settle(index, status, output, time.perf_counter() - begun)

    try:
        async with asyncio.TaskGroup() as group:
            for index in runnable:
                group.create_task(run_one(index))
    except* Exception as errors:  # an observer failed: the log's disk is full, the terminal is gone
        raise errors.exceptions[0] from None
    return [results[index] for index in range(len(calls))]


async def run_tool(tool: Tool, arguments: dict[str, Any]) -> tuple[Status, str]:
    """Run a tool within its time; return how that ended and what the model reads, which `as_data` has yet to clean."""
    try:
        async with asyncio.timeout(tool.timeout):
            return "ok", as_text(await tool.run(arguments))
    except TimeoutError:
        return "timeout", f"{tool.name} did not finish within {tool.timeout:g} s"
    except ToolError as error:
        return "error", str(error)
    except Exception as error:  # a bug in a tool must not end the conversation
        return "error", f"{tool.name} failed: {type(error).__name__}: {error}"


def as_data(text: str) -> str:
    """A tool's output, bounded, in characters that UTF-8 has, without secrets and known chat-template tokens.

    Secrets are masked: a tool that prints its environment must not send the key to whoever runs the model. Special
    tokens (<|im_start|>, <tool_response>, [INST]) are broken up, or a web page that contains them could open a new
    turn where the endpoint's tokenizer reads them in content. That is defence in depth, for the markers of templates
    known here (foreign_text.py), not a guarantee: a model can be steered in plain words.
    """
    begin = encodable(text[:READ_CHARACTERS])
    clean = redact(begin)
    if len(text) > READ_CHARACTERS:
        clean = clean[:-LONGEST_SECRET]  # a secret that the cut went through has lost the form it is known by
    clean = unmarked(clean)
    if len(clean) <= RESULT_CHARACTERS and len(text) <= READ_CHARACTERS:
        return clean
    kept = clean[: RESULT_CHARACTERS - 50]  # room for the remark, so that a logged result passes again unchanged
    return f"{kept} … ({max(len(text), len(clean)) - len(kept)} more characters left out)"
