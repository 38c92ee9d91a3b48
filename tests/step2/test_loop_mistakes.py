"""The loop when the model repeats itself or calls tools wrongly: what it answers, and when it takes a tool away.

python -m pytest tests/step2/test_loop_mistakes.py
"""

import json
from collections import Counter
from typing import Any

import pytest
from loop_world import LISBON, OSLO, WEATHER, conversation, tool, turn, weather

from step2_tool_calling.tool import Tool, ToolError


def test_a_repeated_call_is_answered_from_what_is_known() -> None:
    ran: Counter[str] = Counter()

    async def counting(arguments: dict[str, Any]) -> str:
        ran[arguments["city"]] += 1
        return "4.5"

    # Beside a new call the repetition is a slip; on its own it means that the model goes in circles.
    turns = [turn(OSLO), turn(OSLO, LISBON), turn(OSLO), turn(text="4.5")]
    seen = conversation(turns, [tool("weather", counting)])
    assert ran == {"Oslo": 1, "Lisbon": 1}
    assert seen.outputs() == ["4.5"] * 4
    assert seen.offered == [["weather"], ["weather"], ["weather"], []]


def test_the_order_of_arguments_makes_no_new_call() -> None:
    ran = []

    async def work(arguments: dict[str, Any]) -> str:
        ran.append(arguments)
        return "ok"

    turns = [turn(("f", '{"a": 1, "b": 2}')), turn(("f", '{"b": 2, "a": 1}')), turn(text="ok")]
    conversation(turns, [tool("f", work, parameters={"type": "object"})])
    assert len(ran) == 1


def test_a_failed_call_may_be_tried_again() -> None:
    attempts = []

    async def flaky(_: dict[str, Any]) -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise ToolError("busy, try again")
        return "4.5"

    seen = conversation([turn(OSLO), turn(OSLO), turn(text="4.5")], [tool("weather", flaky)])
    assert seen.outputs() == ["busy, try again", "4.5"]


def test_a_denied_call_is_not_asked_about_twice() -> None:
    asked = []

    async def approve(_: Tool, __: dict[str, Any]) -> bool:
        asked.append(1)
        return False

    seen = conversation([turn(OSLO), turn(OSLO), turn(text="no")], [WEATHER], approve=approve)
    assert len(asked) == 1
    assert [status for _, status in seen.done()] == ["denied", "denied"]


def test_wrong_arguments_in_a_second_turn_take_the_tool_away() -> None:
    wrong = ("weather", '{"town": "Oslo"}')
    seen = conversation([turn(wrong, wrong), turn(wrong), turn(text="?")], [WEATHER, tool("other", weather)])
    # Two mistakes of one turn are one: the model had not been told yet.
    assert seen.offered == [["weather", "other"], ["weather", "other"], ["other"]]


@pytest.mark.parametrize("text", ['{"city": ' + "9" * 5000 + "}", '{"a":' * 3000 + "1" + "}" * 3000])
def test_arguments_that_python_refuses_to_read_are_invalid(text: str) -> None:
    seen = conversation([turn(("weather", text)), turn(text="?")], [WEATHER])
    assert seen.outputs() == ["the arguments of weather are not a JSON object"]


def nested(levels: int) -> str:
    return '{"city": ' * levels + "{}" + "}" * levels


def test_arguments_that_only_json_reads_are_invalid_too() -> None:
    """Near 900 levels json.loads still takes them, and what comes next (jsonschema, repr) ends in a RecursionError."""
    for levels in range(600, 1000, 2):
        seen = conversation([turn(("weather", nested(levels))), turn(text="?")], [WEATHER])
        assert seen.outputs() == ["the arguments of weather are not a JSON object"]
    anything = {"type": "object"}
    for levels, status in [(99, "ok"), (100, "invalid")]:
        deep = turn(("weather", nested(levels)))
        assert conversation([deep, turn(text="?")], [tool("weather", weather, parameters=anything)]).done() == [
            ("weather", status)
        ]


@pytest.mark.parametrize("number", ["1" + "0" * 400, "NaN", "Infinity"])
def test_numbers_that_cannot_be_divided_are_invalid(number: str) -> None:
    halves = {"type": "object", "properties": {"x": {"multipleOf": 0.5}}}
    seen = conversation([turn(("f", f'{{"x": {number}}}')), turn(text="?")], [tool("f", weather, parameters=halves)])
    assert seen.done() == [("f", "invalid")]
    assert "invalid arguments for f: they cannot be checked" in seen.outputs()[0]


def test_half_a_surrogate_pair_does_not_end_the_conversation() -> None:
    """JSON's backslash-u can write one; the next request could not be encoded."""

    async def work(_: dict[str, Any]) -> str:
        return "cut \ud83d, whole \ud83d\ude00"

    seen = conversation([turn(OSLO), turn(text="?")], [tool("weather", work)])
    assert seen.outputs() == ["cut �, whole 😀"]
    json.dumps(seen.messages, ensure_ascii=False).encode()
