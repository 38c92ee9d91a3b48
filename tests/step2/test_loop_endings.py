"""How a conversation ends: last turns, limits, Ctrl-C and failures, and that it always ends, whatever the model says.

python -m pytest tests/step2/test_loop_endings.py
"""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_world import LISBON, OSLO, WEATHER, conversation, tool, turn, weather

from shared.errors import UserError
from step2_tool_calling.conversation import CallDone, CallStarted, Event, Finished, Turn, TurnDone
from step2_tool_calling.loop import Limits
from step2_tool_calling.tool import Tool

# -- the last turn -----------------------------------------------------------------------------------------------------


def test_a_call_in_the_last_turn_is_left_out() -> None:
    seen = conversation([turn(OSLO), turn(LISBON, text="4.5 in Oslo.")], [WEATHER], limits=Limits(steps=2))
    assert seen.offered == [["weather"], []]
    assert seen.finished is not None
    assert (seen.finished.answer, seen.finished.ending) == ("4.5 in Oslo.", "step limit")
    assert "tool_calls" not in seen.messages[-1]


def test_an_answer_in_the_last_turn_is_an_answer() -> None:
    seen = conversation([turn(OSLO), turn(text="4.5 in Oslo.")], [WEATHER], limits=Limits(steps=2))
    assert seen.offered == [["weather"], []]
    assert seen.finished is not None
    assert (seen.finished.answer, seen.finished.ending) == ("4.5 in Oslo.", "answer")


def test_with_one_step_no_tool_is_offered() -> None:
    for said, ending in [(turn(text="Hi."), "answer"), (turn(OSLO, text="Hi."), "step limit")]:
        seen = conversation([said], [WEATHER], limits=Limits(steps=1))
        assert seen.offered == [[]]
        assert seen.finished is not None
        assert (seen.finished.answer, seen.finished.ending, seen.done()) == ("Hi.", ending, [])


# -- limits ------------------------------------------------------------------------------------------------------------


def ever(number: int) -> Turn:
    return turn(("weather", f'{{"city": "{number}"}}'), text=f"turn {number + 1}", tokens=100)


@pytest.mark.parametrize(
    ("limits", "ending", "turns"),
    [
        (Limits(steps=5), "step limit", 5),
        (Limits(tokens=250), "token limit", 3),
        (Limits(dollars=0.2), "money limit", 2),
    ],
)
def test_a_model_that_calls_for_ever_is_stopped(limits: Limits, ending: str, turns: int) -> None:
    seen = conversation(ever, [WEATHER], limits=limits, price=lambda used: used.total / 1000)
    assert seen.finished is not None
    assert (seen.finished.ending, len(seen.offered)) == (ending, turns)
    assert seen.finished.answer == f"turn {turns}"
    assert seen.messages[-1]["role"] == ("assistant" if ending == "step limit" else "tool")


@pytest.mark.parametrize("price", [0.0, None])
def test_what_costs_nothing_never_reaches_a_money_limit(price: float | None) -> None:
    turns = [turn(OSLO), turn(text="4.5")]
    seen = conversation(turns, [WEATHER], limits=Limits(dollars=0), price=lambda _: price)
    assert seen.finished is not None
    assert (seen.finished.ending, seen.finished.cost) == ("answer", price)


# -- Ctrl-C and failures -----------------------------------------------------------------------------------------------


def test_ctrl_c_cancels_running_calls_and_leaves_a_whole_history() -> None:
    stopped = []

    async def slow(arguments: dict[str, Any]) -> str:
        try:
            await asyncio.sleep(30)
        finally:
            stopped.append(arguments["city"])
        return "too late"

    calls = turn(("slow", '{"city": "Rome"}'), OSLO, ("slow", '{"city": "Bonn"}'))
    seen = conversation(
        [turn(LISBON), calls],
        [tool("slow", slow), WEATHER],
        cancel_at=lambda e: isinstance(e, CallStarted) and e.step > 1,
    )
    assert sorted(stopped) == ["Bonn", "Rome"]
    assert sorted(seen.done()[1:]) == [("slow", "cancelled"), ("slow", "cancelled"), ("weather", "ok")]
    last = seen.events[-1]
    assert isinstance(last, Finished)
    assert (last.ending, last.usage.total) == ("cancelled", 20)
    # The turn that was cut short is not in the history: an endpoint would refuse calls without results.
    assert [message["role"] for message in seen.messages] == ["user", "assistant", "tool"]


def test_a_model_that_fails_is_told_to_the_observer_and_raised() -> None:
    def fail(number: int) -> Turn:
        if number == 1:
            raise UserError("the endpoint failed", exit_code=1)
        return turn(OSLO)

    events: list[Event] = []
    with pytest.raises(UserError, match="the endpoint failed"):
        conversation(fail, [WEATHER], observer=events.append)
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.ending, last.error, last.usage.total) == ("failed", "the endpoint failed", 10)


@pytest.mark.parametrize("kind", [TurnDone, CallStarted, CallDone, Finished])
def test_an_observer_that_fails_ends_the_conversation_with_its_error(kind: type) -> None:
    """The disk is full: what cannot be logged must not go on. Not an ExceptionGroup: the program prints a UserError."""

    def full(event: Event) -> None:
        if isinstance(event, kind):
            raise UserError("the log cannot be written", exit_code=1)

    with pytest.raises(UserError, match="the log cannot be written"):
        conversation([turn(OSLO, LISBON), turn(text="4.5")], [WEATHER], observer=full)


# -- whatever the model says -------------------------------------------------------------------------------------------

ARGUMENTS = st.sampled_from(
    ['{"city": "Oslo"}', '{"city": "Rome"}', '{"city": 1}', "{}", "{", "[]", "", '{"city": "Oslo", "x": 1}']
)
CALLS = st.lists(st.tuples(st.sampled_from(["weather", "broken", "denied", "nothing", ""]), ARGUMENTS), max_size=4)
TURNS = st.lists(st.tuples(CALLS, st.sampled_from(["", "text"])), max_size=10)


@settings(max_examples=100)
@given(TURNS, st.integers(1, 6), st.integers(1, 200))
def test_every_conversation_ends_and_every_call_has_one_result(
    said: list[tuple[list[tuple[str, str]], str]], steps: int, tokens: int
) -> None:
    async def broken(_: dict[str, Any]) -> str:
        raise RuntimeError("broken")

    async def approve(asked: Tool, _: dict[str, Any]) -> bool:
        return asked.name != "denied"

    turns = [turn(*calls, text=text) for calls, text in said]
    tools = [WEATHER, tool("broken", broken), tool("denied", weather)]
    seen = conversation(
        lambda number: turns[number % len(turns)] if turns else turn(OSLO),
        tools,
        approve=approve,
        limits=Limits(steps, tokens),
    )
    assert seen.finished is not None
    assert seen.events[-1] == seen.finished
    assert len(seen.offered) <= steps
    waiting: list[str] = []
    for message in seen.messages[1:]:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
        else:
            assert waiting == []
            waiting = [call["id"] for call in message.get("tool_calls", [])]
    assert waiting == []
    called = sum(len(event.turn.calls) for event in seen.events if isinstance(event, TurnDone))
    assert called == len(seen.done()) == len(seen.outputs())
    assert all(status in ("ok", "error", "invalid", "unknown", "denied") for _, status in seen.done())
