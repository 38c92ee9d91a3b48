"""Run a logged conversation again, offline, and say what came out differently.

    step2 replay 7                  the recorded turns and results through today's loop: no model, no network
    step2 replay 7 --ask-again      today's model, prompt and strategy with the recorded results: what changed?

Tools never run in a replay: a call that was logged ends as it did then (a result, an error, a refusal, a timeout), one
that was not gets an error that says so. Compared are the model's words and calls, each call's status and output, the
ending and the answer. Offline that tests the loop: which calls it lets through, repeats, refuses or takes away, what
it does to outputs, and when it stops. It does not test the tools' schemas, which the log does not keep.
A conversation that was killed is replayed up to its last complete step.
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from step2_tool_calling.conversation import Call, CallDone, Event, Finished, Message, Result, Turn, TurnDone
from step2_tool_calling.loop import Ask, Limits, run
from step2_tool_calling.tool import Tool, ToolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from step2_tool_calling.log import Conversation


class EndOfRecordingError(Exception):
    """The loop asks for a turn that was never logged."""


@dataclass(frozen=True)
class Difference:
    """What came out differently: a turn and its calls, or (step None) how it all ended; a missing side is empty."""

    step: int | None
    logged: str
    replayed: str


@dataclass(frozen=True)
class Replay:
    """What a replay made. steps: turns that were compared. ending: None when the recording stops in the middle."""

    steps: int
    ending: str | None
    answer: str
    differences: list[Difference]


async def replay(
    logged: "Conversation", tools: Sequence[Tool], ask: Ask | None = None, opening: list[Message] | None = None
) -> Replay:
    """Run the conversation through the loop. ask: a model for new turns; None plays the logged ones.

    tools: today's, for their schemas and names; a logged tool that is gone is offered by name, with an open schema.
    opening: messages to begin with in place of the logged ones (another prompt).
    """
    recorded = [turn for turn in logged.turns if turn.complete]
    tape = _Tape([result for turn in recorded for result in turn.results])
    turns: list[Turn] = []
    results: list[list[Result]] = []  # of each turn

    def observe(event: Event) -> None:
        if isinstance(event, TurnDone):
            turns.append(event.turn)
            results.append([])
        elif isinstance(event, CallDone):
            results[-1].append(event.result)

    async def play(_: Sequence[Message], __: Sequence[Tool], ___: Any) -> Turn:
        if len(turns) >= len(recorded):
            raise EndOfRecordingError
        turn = recorded[len(turns)].turn
        if logged.ending == "step limit" and len(turns) == len(recorded) - 1:
            # The loop ended it because the last turn asked for a call that nobody would run; which, was not logged.
            return replace(turn, calls=(Call("", "not_logged", "{}"),))
        return turn

    steps = len(recorded) + (0 if logged.ending == "step limit" else 2 if ask else 1)
    finished: Finished | None = None
    with contextlib.suppress(EndOfRecordingError):
        finished = await run(
            ask or play,
            [dict(message) for message in opening or logged.messages],
            [tape.tool(name, tools) for name in logged.tools],
            approve=tape.approve,
            observe=observe,
            limits=Limits(steps=max(steps, 1), tokens=10**9, dollars=float("inf")),
        )
    before = [_described(turn.turn, turn.results) for turn in recorded]
    after = [_described(turn, made) for turn, made in zip(turns, results, strict=True)]
    differences = [
        Difference(step, *sides)
        for step, sides in enumerate(zip_longest(before, after, fillvalue=""), start=1)
        if sides[0] != sides[1]
    ]
    ending, answer = (finished.ending, finished.answer) if finished else (None, "")
    # Other endings came from outside (a budget, Ctrl-C, the endpoint), and after another turn another end is no news.
    if (
        not differences
        and logged.ending in ("answer", "step limit")
        and (ending, answer) != (logged.ending, logged.answer)
    ):
        differences = [Difference(None, f"{logged.ending}: {logged.answer}", f"{ending or 'no end'}: {answer}")]
    return Replay(len(turns), ending, answer, differences)


class _Tape:
    """The logged results, given out again: those of equal calls in their order, and the last one for any further."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._left: dict[tuple[str, str], list[Result]] = {}
        self._approved: dict[tuple[str, str], list[Result | None]] = {}
        for result in results:
            self._left.setdefault(_key(result.call), []).append(result)

    def _next(self, key: tuple[str, str]) -> Result | None:
        left = self._left.get(key, [None])
        return left.pop(0) if len(left) > 1 else left[0]

    def refusal(self, name: str, arguments: "Mapping[str, Any]") -> str | None:
        """What was wrong with these arguments, if that is what became of the call."""
        key = name, _frozen(dict(arguments))
        left = self._left.get(key)
        if not left or left[0].status != "invalid":
            return None
        result = self._next(key)
        return result.output if result else None

    async def approve(self, tool: Tool, arguments: dict[str, Any]) -> bool:
        """Whether the call was allowed; one that was not logged is, for nothing runs."""
        key = tool.name, _frozen(arguments)
        result = self._next(key)
        if result is not None and result.status == "denied":
            return False
        self._approved.setdefault(key, []).append(result)
        return True

    async def answer(self, name: str, arguments: dict[str, Any]) -> str:
        """End as the logged call did."""
        result = self._approved[name, _frozen(arguments)].pop(0)
        if result is None:
            raise ToolError(f"this call of {name} is not in the log, so its result is unknown")
        match result.status:
            case "ok":
                return result.output
            case "timeout":
                raise TimeoutError
            case "cancelled":
                raise asyncio.CancelledError
        raise ToolError(result.output)

    def tool(self, name: str, tools: Sequence[Tool]) -> Tool:
        """A tool that answers from here: today's of that name, or a stand-in that knows which arguments were wrong."""

        async def recorded(arguments: dict[str, Any]) -> str:
            return await self.answer(name, arguments)

        for tool in tools:
            if tool.name == name:
                return replace(tool, run=recorded)
        return _Logged(name, "", {"type": "object"}, recorded, source="log", tape=self)


@dataclass(frozen=True)
class _Logged(Tool):
    """A tool of which only the log is left."""

    tape: _Tape | None = None

    def problem(self, arguments: "Mapping[str, Any]") -> str | None:
        return self.tape.refusal(self.name, arguments) if self.tape else None


def _key(call: Call) -> tuple[str, str]:
    return call.name, _frozen(call.arguments())


def _frozen(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True)


def _described(turn: Turn, results: Sequence[Result]) -> str:
    """A turn in one comparable text: its words, then its calls, whatever their ids, each with what came of it.

    Of a timeout without its sentence, which names the tool's time limit: the log does not keep that.
    """
    lines = [turn.content.strip()] if turn.content.strip() else []
    left = list(results)
    for call in turn.calls:
        lines.append(f"→ {call.name}({_frozen(call.arguments())})")
        result = next((one for one in left if one.call == call), None)
        if result is not None:
            left.remove(result)
            lines.append(f"  {result.status}" + ("" if result.status == "timeout" else f": {result.output}"))
    return "\n".join(lines)
