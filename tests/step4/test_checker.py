"""What the checker says of an answer: right, or what is wrong with it.

python -m pytest tests/step4/test_checker.py
"""

from typing import Any

import pytest
from calls_world import BERGEN, OSLO, TEXT, example

from step4_finetune.checker import judge, same
from step4_finetune.examples import answer_with_calls


@pytest.mark.parametrize(
    ("gold", "said", "kind"),
    [
        ([OSLO], [OSLO], ""),
        ([OSLO], [("weather", {"city": "oslo."})], ""),
        ([OSLO], [("weather", {"city": "Oslo", "days": 1})], ""),  # the default, written out
        ([OSLO], [("weather", {"city": "Oslo", "days": 2})], "invented argument"),
        ([OSLO], [("weather", {"city": "Oslo", "lat": 60})], "invented argument"),
        ([BERGEN], [("weather", {"city": "Bergen"})], "missing argument"),
        ([("weather", {"city": "Bergen", "days": 1})], [("weather", {"city": "Bergen"})], ""),
        ([BERGEN], [("weather", {"city": "Bergen", "days": 3.0})], ""),
        ([BERGEN], [("weather", {"city": "Bergen", "days": "3"})], "wrong value"),
        ([OSLO], [("traffic", {"city": "Oslo"})], "wrong function"),
        ([OSLO], [OSLO, OSLO], "wrong count"),
        ([OSLO], [], "no call"),
        ([OSLO, BERGEN], [BERGEN, OSLO], ""),  # in any order
        ([OSLO, BERGEN], [OSLO, OSLO], "missing argument"),
        ([OSLO, BERGEN], [OSLO, ("traffic", {"city": "Bergen"})], "wrong function"),
        ([], [OSLO], "unexpected call"),
        ([], [], ""),
    ],
)
def test_verdicts(gold: list[Any], said: list[Any], kind: str) -> None:
    verdict = judge(example("1", *gold), answer_with_calls(said) if said else TEXT)
    assert (verdict.kind, verdict.correct) == (kind, kind == "")


def test_calls_that_cannot_be_read_are_wrong_also_where_none_is_right() -> None:
    broken = {"role": "assistant", "content": '<tool_call>\n{"name": "weather", "arguments": {"city"'}
    assert judge(example("1", OSLO), broken).kind == "invalid JSON"
    assert judge(example("1"), broken).kind == "invalid JSON"
    raw = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{"}}]}
    assert judge(example("1", OSLO), raw).kind == "invalid JSON"
    raw = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "[1]"}}]}
    assert judge(example("1", OSLO), raw).kind == "invalid JSON"
    assert judge(example("1"), {"role": "assistant", "content": None}).kind == "no call"


def test_values_are_the_same_by_what_they_mean() -> None:
    assert same({"a": [1, "New  York"]}, {"a": [1.0, "new york."]})
    assert not same([1, 2], [2, 1])
    assert not same(True, 1)
    assert not same("15", "1.5")
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert same(None, None)
    assert not same(None, "")
