"""shared/bfcl.py without its data: the conversion to OpenAI tools, every kind of failure, and each quirk.

    python -m pytest tests/shared/test_bfcl.py

tests/shared/test_bfcl_official.py has the real questions and compares with the leaderboard's own checker.
"""

from typing import Any

import pytest

from shared import bfcl
from shared.bfcl import Call, Item, Verdict
from shared.errors import UserError

NUMBER = {"type": "integer", "description": "a number"}


def item(
    properties: dict[str, Any], required: list[str], *gold: dict[str, list[Any]], category: str = "simple_python"
) -> Item:
    """An item with one function, math.f, and one gold call of it per dict of acceptable values."""
    parameters = {"type": "dict", "properties": properties, "required": required}
    function = {"name": "math.f", "description": "A function.", "parameters": parameters}
    question = {"id": "x_0", "question": [[{"role": "user", "content": "?"}]], "function": [function]}
    answer = {"id": "x_0", "ground_truth": [{"math.f": acceptable} for acceptable in gold]}
    return bfcl.make_item(category, question, answer if gold else None)


def one_value(kind: str, items: str | None, acceptable: list[Any]) -> Item:
    """An item with one argument, p, of the given BFCL type."""
    return item({"p": {"type": kind} | ({"items": {"type": items}} if items else {})}, ["p"], {"p": acceptable})


def test_tools_are_json_schema_at_every_depth() -> None:
    made = item(
        {
            "point": {"type": "tuple", "items": {"type": "float"}, "description": "x, y"},
            "options": {"type": "dict", "properties": {"extra": {"type": "any", "description": "what you like"}}},
            "rows": {"type": "array", "items": {"type": "dict", "properties": {"n": {"type": "float"}}}},
        },
        ["point"],
        {"point": [[1.0, 2.0]]},
    )
    assert made.functions[0]["name"] == "math_f"
    assert made.functions[0]["parameters"]["type"] == "dict"
    assert made.gold == [{"math_f": {"point": [[1.0, 2.0]]}}]
    assert made.messages == [{"role": "user", "content": "?"}]
    parameters = {
        "type": "object",
        "properties": {
            "point": {"type": "array", "items": {"type": "number"}, "description": "x, y"},
            "options": {"type": "object", "properties": {"extra": {"description": "what you like"}}},
            "rows": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "number"}}}},
        },
        "required": ["point"],
    }
    function = {"name": "math_f", "description": "A function.", "parameters": parameters}
    assert made.tools == [{"type": "function", "function": function}]


def test_enums_that_no_value_could_satisfy_are_repaired() -> None:
    listed = {"type": "array", "items": {"type": "string"}, "enum": ["a", "b"]}
    assert bfcl.json_schema(listed) == {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}
    assert "enum" in listed  # the description itself is left as it was
    assert bfcl.json_schema({"type": "boolean", "enum": ["True", "dontcare"]}) == {"type": "boolean"}
    assert bfcl.json_schema({"type": "integer", "enum": [1, 2]}) == {"type": "integer", "enum": [1, 2]}
    assert bfcl.json_schema({"type": "string", "enum": ["1"]}) == {"type": "string", "enum": ["1"]}


@pytest.mark.parametrize(
    ("calls", "kind", "detail"),
    [
        ([("math_f", {"a": 1, "b": 2})], "", ""),
        ([("math_f", {"a": 1})], "", ""),  # b is optional
        ([], "no call", "no function call"),
        ([("math_f", {"a": 1}), ("math_f", {"a": 1})], "wrong count", "2 calls, not 1"),
        ([("math.f", {"a": 1})], "wrong function", "math.f was called, not math_f"),
        ([("math_f", {"b": 2})], "missing argument", "needs the argument a"),
        ([("math_f", {"a": 1, "z": 2})], "invented argument", "was given z"),
        ([("math_f", {"a": 1, "c": 0})], "invented argument", "was given c"),  # the function's, but not in the gold
        ([("math_f", {"a": "1"})], "wrong type", "a is '1', which is not of the type integer"),
        ([("math_f", {"a": True})], "wrong type", "a is True"),
        ([("math_f", {"a": None})], "wrong type", "a is None"),
        ([("math_f", {"a": 3})], "wrong value", "a is 3; acceptable: 1"),
        ([("math_f", [1])], "missing argument", "needs the argument a"),  # not even an object
        ([("math_f", None)], "wrong type", "cannot be compared"),
    ],
)
def test_each_kind_of_failure(calls: list[Call], kind: str, detail: str) -> None:
    made = item({"a": NUMBER, "b": NUMBER, "c": NUMBER}, ["a"], {"a": [1], "b": [2, ""]})
    verdict = bfcl.score(made, calls)
    assert (verdict.correct, verdict.kind) == (kind == "", kind)
    assert detail in verdict.detail


def test_an_argument_the_question_asks_for_is_not_optional() -> None:
    verdict = bfcl.score(item({"a": NUMBER}, [], {"a": [1]}), [("math_f", {})])
    assert verdict == Verdict(False, "missing argument", "math_f was not given a, which the question asks for")


def test_irrelevance_wants_no_call_and_relevance_any() -> None:
    irrelevant = item({"a": NUMBER}, ["a"], category="live_irrelevance")
    relevant = item({"a": NUMBER}, ["a"], category="live_relevance")
    assert bfcl.score(irrelevant, []).correct
    assert bfcl.score(irrelevant, [("math_f", {"a": 1})]).kind == "unexpected call"
    assert bfcl.score(relevant, [("other", {})]).correct
    assert bfcl.score(relevant, []).kind == "no call"
    assert bfcl.gold_calls(irrelevant) == []


# BFCL type, type of the items, acceptable values, the value given, kind of failure. test_bfcl_official.py puts them to
# the official checker too.
VALUES: list[tuple[str, str | None, list[Any], Any, str]] = [
    # numbers: an int is a float, but not inside a list, and a float is never an int
    ("float", None, [5.0], 5, ""),
    ("float", None, [5], 5, ""),
    ("float", None, [5.0], True, "wrong type"),
    ("float", None, [5.0], 10**400, "wrong type"),  # no float is that large: the official checker raises
    ("integer", None, [5], 5.0, "wrong type"),
    ("array", "float", [[1.0, 2.0]], [1, 2], "wrong type"),
    ("array", "float", [[1, 2]], [1, 2], ""),  # the gold has integers itself
    # strings lose case and punctuation, everywhere
    ("string", None, ["April 1, 2024"], "april 1 2024", ""),
    ("string", None, ["it's"], 'IT"S', ""),
    ("string", None, ["1.5"], "-15", ""),
    ("string", None, ["a", ""], "", ""),
    ("string", None, ["a"], "b", "wrong value"),
    # a value of the gold's type passes for a variable, compared as it is
    ("integer", None, ["radius"], "radius", ""),
    ("integer", None, ["radius"], "Radius", "wrong value"),
    ("integer", None, ["radius"], 3, "wrong value"),
    ("any", None, [3], 3, ""),
    ("any", None, ["x"], 3, "wrong type"),
    # lists: order counts, strings are standardised one level deep, "" accepts an empty list and any item type
    ("array", "string", [["A", "b"]], ["a", "B."], ""),
    ("array", "string", [["a", "b"]], ["b", "a"], "wrong value"),
    ("array", "string", [["a"]], "a", "wrong type"),
    ("array", "string", [["a"]], ["a", 1], "wrong type"),
    ("array", "string", [["a"], ""], [], ""),
    ("array", "string", [["a"], ""], [1], "wrong value"),
    ("array", "string", [], [], "wrong type"),  # so two live items have no right answer
    ("array", "array", [[["a"]]], [["a"]], ""),
    ("array", "array", [[["a"]]], [["A"]], "wrong value"),
    ("tuple", "integer", [[1, 2]], [1, 2], ""),
    # dicts: a list of acceptable values for each key, inner dicts as they are
    ("dict", None, [{"k": ["V"], "o": [1, ""]}], {"k": "v."}, ""),
    ("dict", None, [{"k": ["v"]}], {"k": "v", "z": 1}, "wrong value"),
    ("dict", None, [{"k": ["v"], "l": [1]}], {"k": "v"}, "wrong value"),
    ("dict", None, [{"k": ["v"]}, {"k": ["w"]}], {"k": "w"}, ""),
    ("dict", None, [{"k": [{"i": "a"}]}], {"k": {"i": "A"}}, "wrong value"),
    ("dict", None, [""], {}, "wrong value"),
    ("dict", None, [{"k": 5}], {"k": 5}, "wrong type"),  # gold that is no list: the official checker raises
    ("array", "dict", [[{"k": ["v"]}, {"k": ["w"]}]], [{"k": "V"}, {"k": "w"}], ""),
    ("array", "dict", [[{"k": ["v"]}, {"k": ["w"]}]], [{"k": "w"}, {"k": "v"}], "wrong value"),
    ("array", "dict", [[{"k": ["v"]}]], [], "wrong value"),
    ("array", "dict", [[{"k": ["v"]}], ""], [], ""),
    ("array", "dict", [[{"k": ["v"]}], ""], ["v"], "wrong type"),  # passes for a dict, then has no keys
]


@pytest.mark.parametrize(("kind", "items", "acceptable", "value", "verdict"), VALUES)
def test_types_and_values(kind: str, items: str | None, acceptable: list[Any], value: Any, verdict: str) -> None:
    judged = bfcl.score(one_value(kind, items, acceptable), [("math_f", {"p": value})])
    assert (judged.correct, judged.kind) == (verdict == "", verdict)


def test_parallel_calls_come_in_any_order_and_are_matched_greedily() -> None:
    made = item({"a": NUMBER}, ["a"], {"a": [1, 2]}, {"a": [1]}, category="parallel")
    assert bfcl.score(made, [("math_f", {"a": 2}), ("math_f", {"a": 1})]).correct
    # The first gold call takes a=1, which leaves 2 for the second, although swapped they would fit.
    assert bfcl.score(made, [("math_f", {"a": 1}), ("math_f", {"a": 2})]).kind == "wrong value"
    assert bfcl.score(made, [("math_f", {"a": 1})]).kind == "wrong count"
    # The call of the right name is the one reported, not the one before it.
    assert bfcl.score(made, [("other", {}), ("math_f", {"a": 7})]).kind == "wrong value"


def test_gold_calls_take_first_values_and_leave_optional_ones_out() -> None:
    properties = {
        "a": NUMBER,
        "b": NUMBER,
        "s": {"type": "string"},
        "d": {"type": "dict"},
        "l": {"type": "array", "items": {"type": "dict"}},
    }
    acceptable: dict[str, list[Any]] = {
        "a": [1, 2],
        "b": [3, ""],
        "s": [""],
        "d": [{"k": ["v", "w"], "o": [""]}],
        "l": [[{"k": [1]}]],
    }
    made = item(properties, ["a", "s"], acceptable)
    assert bfcl.gold_calls(made) == [("math_f", {"a": 1, "s": "", "d": {"k": "v"}, "l": [{"k": 1}]})]
    assert bfcl.score(made, bfcl.gold_calls(made)).correct


def test_bad_requests_name_the_fix() -> None:
    with pytest.raises(UserError, match="no category 'simple' here; choose one of simple_python, "):
        bfcl.load("simple")
    with pytest.raises(UserError, match="at least 1"):
        bfcl.load("multiple", limit=0)
