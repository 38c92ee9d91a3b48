"""The Berkeley Function Calling Leaderboard, version 4: the questions, and a matcher for the calls a model makes.

The data is the pinned artifact `bfcl-v4` (shared/catalog.toml): single-turn Python categories, as published. Each gold
argument is a list of acceptable values, where "" means that the argument may be left out. `score` compares calls with
it the way the leaderboard's own checker does (bfcl_eval/eval_checker/ast_eval/ast_checker.py). The two agree on right
and wrong, quirks included; tests/shared/test_bfcl_official.py holds them to that. Ours says more about what went wrong
and is short enough to read. Where we would have judged otherwise, a comment starts with "Quirk".

    from shared import bfcl
    for item in bfcl.load("simple_python", limit=50):
        verdict = bfcl.score(item, calls_of_my_model(item.messages, item.tools))

Source: Patil et al., The Berkeley Function Calling Leaderboard, ICML 2025; github.com/ShishirPatil/gorilla.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from shared.artifacts import fetch
from shared.errors import UserError

Call = tuple[str, dict[str, Any]]  # function name, arguments as parsed from JSON

# Category -> number of items. "multiple": several tools, one call; "parallel": several calls; "live": sent by users.
CATEGORIES = {
    "simple_python": 400,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
    "live_irrelevance": 884,
    "live_relevance": 16,
}
WITHOUT_GOLD = ("irrelevance", "live_irrelevance", "live_relevance")  # judged by whether there is a call at all

# BFCL's type names in JSON Schema. None: any value (the official conversion says "string", which is not what is meant).
JSON_TYPES = {
    "string": "string",
    "integer": "integer",
    "float": "number",
    "boolean": "boolean",
    "array": "array",
    "tuple": "array",
    "dict": "object",
    "any": None,
}
# The type that the checker wants to see. Quirk: "any" means a string, unless the gold answer is of another type.
PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}

FailureKind = Literal[
    "no call",
    "unexpected call",
    "wrong function",
    "wrong count",
    "missing argument",
    "invented argument",
    "wrong type",
    "wrong value",
    "invalid JSON",  # these two never from `score`: for a caller whose model wrote a call that does not parse,
    "refused",  # or whose endpoint would not take the question
]


@dataclass(frozen=True)
class Item:
    """One question. `functions` are BFCL's descriptions (its own type names), `tools` the same as OpenAI tools.

    gold: one {function: {argument: acceptable values}} per expected call; None in the categories WITHOUT_GOLD.
    Function names have "_" for "." everywhere, as BFCL has for OpenAI models: OpenAI allows ^[a-zA-Z0-9_-]{1,64}$.
    """

    id: str
    category: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    gold: list[dict[str, dict[str, list[Any]]]] | None


@dataclass(frozen=True)
class Verdict:
    """Whether the calls are right; if not, the kind of failure and a sentence about it (both "" when right)."""

    correct: bool
    kind: FailureKind | Literal[""] = ""
    detail: str = ""


RIGHT = Verdict(True)


def load(category: str, limit: int | None = None) -> list[Item]:
    """Return a category's items in the published order, fetching the data first if it is not there.

    limit: at most so many, evenly spaced over the category from its first item, so the same ones every time (similar
    items are neighbours in BFCL; the first 50 would be a biased sample). Raises UserError for an unknown category, a
    limit below 1, and what shared.artifacts.fetch raises.
    """
    if category not in CATEGORIES:
        raise UserError(f"BFCL has no category {category!r} here; choose one of {', '.join(CATEGORIES)}")
    if limit is not None and limit < 1:
        raise UserError(f"the limit is {limit}; ask for at least 1 item")
    folder = fetch("bfcl-v4")
    name = f"BFCL_v4_{category}.json"
    # JSON lines; some files end without a newline, and only "\n" separates (splitlines knows ten other separators).
    questions = (folder / name).read_text(encoding="utf-8").strip().split("\n")
    answers: list[str] | None = None
    if category not in WITHOUT_GOLD:
        answers = (folder / "possible_answer" / name).read_text(encoding="utf-8").strip().split("\n")
    count = min(limit or len(questions), len(questions))
    chosen = [i * len(questions) // count for i in range(count)]
    # Questions and answers are in the same order; a test compares their ids.
    return [make_item(category, json.loads(questions[i]), json.loads(answers[i]) if answers else None) for i in chosen]


def make_item(category: str, question: dict[str, Any], answer: dict[str, Any] | None) -> Item:
    """Turn a line of a BFCL file, and the line of its possible_answer file if it has one, into an Item."""
    functions = [function | {"name": _openai_name(function["name"])} for function in question["function"]]
    gold = None
    if answer is not None:
        gold = [{_openai_name(name): args for name, args in call.items()} for call in answer["ground_truth"]]
    return Item(
        id=question["id"],
        category=category,
        messages=question["question"][0],  # one turn in all these categories
        tools=[
            {"type": "function", "function": function | {"parameters": json_schema(function["parameters"])}}
            for function in functions
        ],
        functions=functions,
        gold=gold,
    )


def _openai_name(name: str) -> str:
    return name.replace(".", "_")


def json_schema(description: dict[str, Any]) -> dict[str, Any]:
    """Convert BFCL's description of a parameter (or of all of a function's) to JSON Schema, at every depth.

    Two kinds of `enum` that no value could satisfy are repaired: one that stands on an array and lists the choices of
    its items (it is moved there), and one with only strings on a number or boolean (it is left out).
    """
    schema = {key: value for key, value in description.items() if key != "type"}
    kind = JSON_TYPES[description["type"]]
    if kind is not None:
        schema = {"type": kind} | schema
    choices = schema.get("enum", [])
    if choices and kind == "array" and not any(isinstance(choice, list) for choice in choices):
        schema["items"] = schema["items"] | {"enum": schema.pop("enum")}
    if choices and kind in ("integer", "number", "boolean") and all(isinstance(choice, str) for choice in choices):
        del schema["enum"]
    if "properties" in schema:
        schema["properties"] = {name: json_schema(value) for name, value in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = json_schema(schema["items"])
    return schema


def gold_calls(item: Item) -> list[Call]:
    """Return one right answer: the first acceptable value of each argument, without those that may be left out.

    Empty for irrelevance and relevance items (for relevance that is not a right answer: BFCL gives none).
    """
    calls = []
    for name, acceptable in (next(iter(call.items())) for call in item.gold or []):
        parameters = _function(item, name)["parameters"]
        arguments = {}
        for parameter, values in acceptable.items():
            if "" in values and parameter not in parameters["required"]:
                continue
            # Required and only "" acceptable: for an array that means [] (see _match_value).
            is_array = parameters["properties"].get(parameter, {}).get("type") in ("array", "tuple")
            value = next((v for v in values if v != ""), [] if is_array else "")
            if isinstance(value, list):
                value = [_first_of_each(v) if isinstance(v, dict) else v for v in value]
            arguments[parameter] = _first_of_each(value) if isinstance(value, dict) else value
        calls.append((name, arguments))
    return calls


def _first_of_each(acceptable: dict[str, list[Any]]) -> dict[str, Any]:
    # The keys of a dict have lists of acceptable values too; dicts inside these have not, they are compared raw.
    return {key: values[0] for key, values in acceptable.items() if "" not in values}


def _function(item: Item, name: str) -> dict[str, Any]:
    return next(function for function in item.functions if function["name"] == name)


def score(item: Item, calls: list[Call]) -> Verdict:
    """Judge the calls a model made for an item; arguments are values as json.loads returns them.

    Correct means: irrelevance, no call; relevance, any call; else the expected number of calls, each matching its gold
    call, in any order where the category is parallel. On odd values (a dict where the gold has text, an integer too
    large for a float) the official checker raises an exception; that is judged as not correct.
    """
    if item.gold is None:
        return _score_presence(item, calls)
    if not calls:
        return Verdict(False, "no call", "the answer has no function call")
    if len(calls) != len(item.gold):
        return Verdict(False, "wrong count", f"the answer has {len(calls)} calls, not {len(item.gold)}")
    try:
        return _match_calls(item, item.gold, calls)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        return Verdict(False, "wrong type", f"an argument cannot be compared with the gold answer: {error}")


def _score_presence(item: Item, calls: list[Call]) -> Verdict:
    if "irrelevance" in item.category:
        if calls:
            return Verdict(False, "unexpected call", f"{calls[0][0]} was called, but no function fits the question")
        return RIGHT
    return RIGHT if calls else Verdict(False, "no call", "the answer has no function call")


def _match_calls(item: Item, gold: list[dict[str, dict[str, list[Any]]]], calls: list[Call]) -> Verdict:
    # Quirk: greedy. Each gold call takes the first free call that matches, and never gives it back to a later one.
    free = list(calls)
    for expected, acceptable in (next(iter(call.items())) for call in gold):
        failures = []
        for index, (name, arguments) in enumerate(free):
            verdict = _match_call(_function(item, expected), acceptable, name, arguments)
            if verdict.correct:
                del free[index]
                break
            failures.append(verdict)
        else:
            # Which call was meant for this gold call? One of the right name tells more than "wrong function".
            return next((v for v in failures if v.kind != "wrong function"), failures[0])
    return RIGHT


def _match_call(
    function: dict[str, Any], acceptable: dict[str, list[Any]], name: str, arguments: dict[str, Any]
) -> Verdict:
    if name != function["name"]:
        return Verdict(False, "wrong function", f"{name} was called, not {function['name']}")
    for parameter in function["parameters"]["required"]:
        if parameter not in arguments:
            return Verdict(False, "missing argument", f"{name} needs the argument {parameter}")
    for parameter, value in arguments.items():
        # Quirk: a parameter that the function has and the gold answer does not mention is as wrong as an invented one.
        if parameter not in function["parameters"]["properties"] or parameter not in acceptable:
            return Verdict(False, "invented argument", f"{name} was given {parameter}, which does not belong there")
        verdict = _match_value(parameter, value, acceptable[parameter], function["parameters"]["properties"][parameter])
        if not verdict.correct:
            return verdict
    for parameter, values in acceptable.items():
        if parameter not in arguments and "" not in values:
            return Verdict(False, "missing argument", f"{name} was not given {parameter}, which the question asks for")
    return RIGHT


def _match_value(parameter: str, value: Any, acceptable: list[Any], description: dict[str, Any]) -> Verdict:
    kind = description["type"]
    expected = PYTHON_TYPES[kind]
    inner = PYTHON_TYPES[description["items"]["type"]] if expected is list else None
    # Quirk: an integer is a float here, but not inside a list.
    if kind == "float" and type(value) is int:
        value = float(value)
    typed = _type_match(value, acceptable, expected, inner)
    if typed == "none":
        of = f" of {description['items']['type']}" if inner else ""
        return Verdict(False, "wrong type", f"{parameter} is {value!r}, which is not of the type {kind}{of}")
    if typed == "variable":
        matches = value in acceptable
    elif expected is dict:
        matches = any(_dict_matches(value, answer) for answer in acceptable if answer != "")
    elif inner is dict:
        matches = any(_dicts_match(value, answers) for answers in acceptable)
    elif expected is list:
        # Quirk: "" (may be left out) becomes [] and accepts an empty list. Strings inside inner lists stay as they are.
        matches = _standard_list(value) in [_standard_list(answer) for answer in acceptable]
    elif expected is str:
        matches = _standard(value) in [_standard(answer) for answer in acceptable if isinstance(answer, str)]
    else:
        matches = value in acceptable
    if matches:
        return RIGHT
    return Verdict(False, "wrong value", f"{parameter} is {value!r}; acceptable: {', '.join(map(repr, acceptable))}")


def _type_match(
    value: Any, acceptable: list[Any], expected: type, inner: type | None
) -> Literal["literal", "variable", "none"]:
    """Say whether the value has the described type ("literal"), only the gold answer's ("variable"), or neither.

    "variable", for example a name where a number is described, is also said when the gold answer's type is not the
    described one; such values are compared as they are. Types are compared exactly: True is not an integer.
    """
    # Quirk: the first acceptable value's type stands for all.
    gold_type = next((type(answer) for answer in acceptable if answer != ""), None)
    if type(value) is not expected:
        return "variable" if type(value) is gold_type else "none"
    if inner is not None and not any(_items_match(value, answer, inner) for answer in acceptable):
        return "none"
    return "literal" if gold_type in (None, expected) else "variable"


def _items_match(values: Any, answer: Any, inner: type) -> bool:
    # Quirks: one level deep only; and a gold answer that is not a list (the "" of an optional one) accepts any items.
    return type(answer) is not list or all(_type_match(value, answer, inner, None) != "none" for value in values)


def _standard(text: str) -> str:
    # Quirk: the punctuation is dropped everywhere, so 1.5 in a string equals 15, and -5 equals 5.
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _standard_list(values: Any) -> list[Any]:
    # By index, as the official one does: it fails on what has no order, and takes text for a list of characters.
    return [_standard(values[i]) if type(values[i]) is str else values[i] for i in range(len(values))]


def _dict_matches(value: dict[str, Any], answer: dict[str, list[Any]]) -> bool:
    """Whether each key has an acceptable value and none is missing. Quirk: inner dicts are compared as they are."""
    matches = all(
        key in answer and (_standard(given) if type(given) is str else given) in _standard_list(answer[key])
        for key, given in value.items()
    )
    # Looked at even when a value was wrong: on odd gold answers this line raises, as the official one does.
    missing = any(key not in value and "" not in acceptable for key, acceptable in answer.items())
    return matches and not missing


def _dicts_match(values: list[dict[str, Any]], answers: list[Any]) -> bool:
    # In order. Quirk: "" (may be left out) has length 0 and accepts an empty list.
    return len(values) == len(answers) and all(
        answer != "" and _dict_matches(value, answer) for value, answer in zip(values, answers, strict=True)
    )
