"""Run a logged conversation again, offline, and say what came out differently.

    step2 replay 7                  the recorded turns and results through today's loop: no model, no network
    step2 replay 7 --ask-again      today's model, prompt and strategy with the recorded results: what changed?

Tools never run in a replay: a call that was logged gets its logged result, one that was not gets an error that says so.
A conversation that was killed is replayed up to its last complete step.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from step2_tool_calling.conversation import Call, Event, Finished, Message, Result, Turn, TurnDone
from step2_tool_calling.loop import Ask, Limits, run
from step2_tool_calling.tool import Tool, ToolError

if TYPE_CHECKING:
    from step2_tool_calling.log import Conversation


class EndOfRecordingError(Exception):
    """The loop asks for a turn that was never logged."""


@dataclass(frozen=True)
class Difference:
    """One turn that came out differently; a side that has no such turn is empty."""

    step: int
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
    results = {_key(result.call): result for turn in recorded for result in turn.results}
    turns: list[Turn] = []

    def observe(event: Event) -> None:
        if isinstance(event, TurnDone):
            turns.append(event.turn)

    async def play(_: Sequence[Message], __: Sequence[Tool], ___: Any) -> Turn:
        if len(turns) >= len(recorded):
            raise EndOfRecordingError
        return recorded[len(turns)].turn

    finished: Finished | None = None
    with contextlib.suppress(EndOfRecordingError):
        finished = await run(
            ask or play,
            [dict(message) for message in opening or logged.messages],
            _recorded_tools(logged, tools, results),
            approve=_allowed,
            observe=observe,
            limits=Limits(steps=max(len(recorded), 1) + (2 if ask else 1), tokens=10**9, dollars=float("inf")),
        )
    differences = [
        Difference(step, before, after)
        for step in range(1, max(len(turns), len(recorded)) + 1)
        if (before := _described(recorded[step - 1].turn if step <= len(recorded) else None))
        != (after := _described(turns[step - 1] if step <= len(turns) else None))
    ]
    return Replay(len(turns), finished.ending if finished else None, finished.answer if finished else "", differences)


async def _allowed(_: Tool, __: dict[str, Any]) -> bool:
    return True  # nothing runs


def _recorded_tools(
    logged: "Conversation", tools: Sequence[Tool], results: dict[tuple[str, Any], Result]
) -> list[Tool]:
    """The logged conversation's tools; each answers from the log."""
    today = {tool.name: tool for tool in tools}

    def answering(name: str) -> Tool:
        async def recorded(arguments: dict[str, Any]) -> str:
            result = results.get((name, _frozen(arguments)))
            if result is None:
                raise ToolError(f"this call of {name} is not in the log, so its result is unknown")
            if result.status != "ok":
                raise ToolError(result.output)
            return result.output

        tool = today.get(name) or Tool(name, "", {"type": "object"}, recorded, source="log")
        return replace(tool, run=recorded)

    return [answering(name) for name in logged.tools]


def _key(call: Call) -> tuple[str, Any]:
    return call.name, _frozen(call.arguments())


def _frozen(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True)


def _described(turn: Turn | None) -> str:
    """A turn in one comparable text: its words, then its calls, whatever their ids."""
    if turn is None:
        return ""
    calls = [f"→ {call.name}({_frozen(call.arguments())})" for call in turn.calls]
    return "\n".join(filter(None, [turn.content.strip(), *calls]))
