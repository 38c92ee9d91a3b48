"""Says whether an answer to one of our own examples is right, and if not, in which way.

The leaderboard's matcher (shared/bfcl.py) judges by lists of acceptable values; an example has one gold answer. Right
means the same calls in any order: the same functions, the same arguments, equal values. Two texts are equal when only
case, spaces or a last full stop differ, two numbers when their values are; and an optional argument may be written out
when it has its default. Where no call is right, any text without one is.
"""

import json
from typing import Any

from shared.bfcl import RIGHT, Call, Verdict
from shared.tool_calls import BEGIN
from step4_finetune.examples import Example


def judge(example: Example, answer: dict[str, Any]) -> Verdict:
    """Judge an assistant message in OpenAI's form against the example's last message."""
    content = answer.get("content") or ""
    if BEGIN in content:
        return Verdict(False, "invalid JSON", f"a call that cannot be read: {content[content.index(BEGIN) :][:80]!r}")
    calls: list[Call] = []
    for call in answer.get("tool_calls") or []:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except json.JSONDecodeError as error:
            return Verdict(False, "invalid JSON", f"the arguments of {call['function']['name']}: {error}")
        if not isinstance(arguments, dict):
            return Verdict(False, "invalid JSON", f"the arguments of {call['function']['name']} are not an object")
        calls.append((call["function"]["name"], arguments))
    gold = example.calls()
    if not gold:
        if calls:
            return Verdict(False, "unexpected call", f"{calls[0][0]} was called")
        return RIGHT if content.strip() else Verdict(False, "no call", "the answer is empty")
    if not calls:
        return Verdict(False, "no call", f"the answer is text: {content[:80]!r}")
    if len(calls) != len(gold):
        return Verdict(False, "wrong count", f"{len(calls)} calls, not {len(gold)}")
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in example.tools}
    free = list(calls)
    for name, expected in gold:
        verdicts = [_compare(schemas[name], (name, expected), call) for call in free]
        right = next((place for place, verdict in enumerate(verdicts) if verdict.correct), None)
        if right is None:
            # Which call was meant for this one? One of the right name tells more than "wrong function".
            return next((v for v in verdicts if v.kind != "wrong function"), verdicts[0])
        del free[right]
    return RIGHT


def _compare(schema: dict[str, Any], gold: Call, call: Call) -> Verdict:
    (name, expected), (called, given) = gold, call
    if called != name:
        return Verdict(False, "wrong function", f"{called} was called, not {name}")
    defaults = {key: value["default"] for key, value in schema.get("properties", {}).items() if "default" in value}
    for key in expected.keys() - given.keys():
        if key not in defaults or not same(expected[key], defaults[key]):
            return Verdict(False, "missing argument", f"{name} was not given {key}")
    for key in given.keys() - expected.keys():
        if key not in defaults or not same(given[key], defaults[key]):
            return Verdict(False, "invented argument", f"{name} was given {key} = {given[key]!r}")
    for key in expected.keys() & given.keys():
        if not same(expected[key], given[key]):
            return Verdict(False, "wrong value", f"{key} is {given[key]!r}, not {expected[key]!r}")
    return RIGHT


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values mean the same."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, str) and isinstance(b, str):
        return _plain(a) == _plain(b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return a is None and b is None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
