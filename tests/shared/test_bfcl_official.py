"""shared/bfcl.py on the real questions, and beside the leaderboard's own checker on 62,800 right and wrong answers.

python -m pytest tests/shared/test_bfcl_official.py -m real    # 20 s; fetches the data and the checker (1.9 MB)
"""

import copy
import importlib
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_bfcl import VALUES, one_value

from shared import bfcl
from shared.artifacts import fetch
from shared.bfcl import Call, Item

pytestmark = pytest.mark.real

WITH_GOLD = [category for category in bfcl.CATEGORIES if category not in bfcl.WITHOUT_GOLD]


@pytest.fixture(scope="module")
def items() -> dict[str, list[Item]]:
    """All items, by category."""
    return {category: bfcl.load(category) for category in bfcl.CATEGORIES}


@pytest.fixture(scope="module")
def official() -> Iterator[Callable[[Item, list[Call]], bool]]:
    """The leaderboard's ast_checker, without the packages of its model handlers; an exception counts as not correct."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "bfcl_eval"}
    for name in before:
        del sys.modules[name]
    package = ModuleType("bfcl_eval")
    package.__path__ = [str(fetch("bfcl-v4-checker"))]
    models: Any = ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"ours": SimpleNamespace(underscore_to_dot=True)}
    sys.modules |= {"bfcl_eval": package, models.__name__: models}
    try:
        checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
        python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON
        # Its own view of the data: the names with dots, from the files themselves.
        raw: dict[str, tuple[Any, Any]] = {}
        for category in WITH_GOLD:
            name = f"BFCL_v4_{category}.json"
            questions = (fetch("bfcl-v4") / name).read_text(encoding="utf-8").strip().split("\n")
            answers = (fetch("bfcl-v4") / "possible_answer" / name).read_text(encoding="utf-8").strip().split("\n")
            for question, answer in zip(map(json.loads, questions), map(json.loads, answers), strict=True):
                assert question["id"] == answer["id"]
                raw[question["id"]] = question["function"], answer["ground_truth"]

        def check(made: Item, calls: list[Call]) -> bool:
            functions, gold = raw.get(made.id, (made.functions, made.gold))  # hand-written ones are in no file
            output = [{name: arguments} for name, arguments in calls]
            try:
                return bool(checker(functions, output, gold, python, made.category, "ours")["valid"])
            except Exception:
                return False

        yield check
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "bfcl_eval"]:
            del sys.modules[name]
        sys.modules |= before


def test_categories_and_limit(items: dict[str, list[Item]]) -> None:
    assert {category: len(loaded) for category, loaded in items.items()} == bfcl.CATEGORIES
    for loaded in items.values():
        for made in loaded:
            assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"]) for function in made.functions)
            assert {message["role"] for message in made.messages} <= {"system", "user", "assistant"}
    assert [made.id for made in bfcl.load("multiple", limit=4)] == [f"multiple_{n}" for n in (0, 50, 100, 150)]
    assert len(bfcl.load("live_parallel", limit=100)) == 16


# Items whose gold answer the official checker itself rejects, whatever the call. (Empty lists of acceptable values; a
# gold argument that the function does not have; a required argument that the gold answer leaves out.)
UNANSWERABLE = {"live_simple_106-63-0", "live_simple_112-68-0", "live_multiple_862-181-3", "live_multiple_964-207-0"}


def test_gold_answers_are_right(items: dict[str, list[Item]], official: Callable[[Item, list[Call]], bool]) -> None:
    ours, theirs = set(), set()
    for category in WITH_GOLD:
        for made in items[category]:
            calls = bfcl.gold_calls(made)
            ours |= set() if bfcl.score(made, calls).correct else {made.id}
            theirs |= set() if official(made, calls) else {made.id}
    assert ours == theirs == UNANSWERABLE  # 2347 of 2351 right; all of the five other categories


# Live items repeat: some neighbours ask the same in other words, and one answer is right for both.
SAME_ANSWER = {"live_simple": 8, "live_multiple": 21, "live_parallel": 2, "live_parallel_multiple": 1}


@pytest.mark.parametrize("category", WITH_GOLD)
def test_another_items_gold_answer_is_wrong(
    items: dict[str, list[Item]], official: Callable[[Item, list[Call]], bool], category: str
) -> None:
    right = 0
    for made, other in zip(items[category], items[category][1:] + items[category][:1], strict=True):
        calls = bfcl.gold_calls(other)
        right += (ours := bfcl.score(made, calls).correct)
        assert ours == official(made, calls), made.id
        if ours:
            assert [name for name, _ in calls] == [name for name, _ in bfcl.gold_calls(made)]
    assert right == SAME_ANSWER.get(category, 0)


def test_the_quirks_are_the_official_ones(official: Callable[[Item, list[Call]], bool]) -> None:
    for kind, items, acceptable, value, verdict in VALUES:
        made = one_value(kind, items, acceptable)
        assert official(made, [("math_f", {"p": value})]) == (verdict == ""), (kind, items, acceptable, value)


def change(value: Any, rng: random.Random) -> Any:
    """A value near the given one, in a way models get it wrong, or right in another form."""
    choices: list[Any] = [None, True, "", [], {}, [value], [value, value], {"value": value}, str(value), 0, 7.5]
    if isinstance(value, str):
        choices += [value.upper(), f" {value}. ", value.replace(" ", "_"), value.replace("'", '"'), value + "x", 1, 1.0]
    elif isinstance(value, bool):
        choices += [not value, int(value), str(value).lower()]
    elif isinstance(value, int | float):
        choices += [value + 1, -value, f"{value}", bool(value), 10**400]
        choices += [int(value), float(value)] if abs(value) < 1e300 else []
    elif isinstance(value, list):
        choices += [value[::-1], value[:-1], value + value[:1], [*value, None], sorted(value, key=str)]
        for _ in range(6 if value else 0):
            place = rng.randrange(len(value))
            choices.append([*value[:place], change(value[place], rng), *value[place + 1 :]])
    elif isinstance(value, dict):
        choices += [value | {"extra": 1}, [value], dict(reversed(value.items()))]
        for _ in range(6 if value else 0):
            key = rng.choice(list(value))
            choices.append({k: v for k, v in value.items() if k != key})
            choices.append(value | {key: change(value[key], rng)})
    return rng.choice(choices)


def perturb(made: Item, calls: list[Call], rng: random.Random) -> list[Call]:
    """The calls with one to three things changed."""
    calls = copy.deepcopy(calls)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not calls:
            break
        index = rng.randrange(len(calls))
        arguments = calls[index][1]
        kind = rng.choice(["value"] * 6 + ["acceptable"] * 3 + ["drop", "add", "rename", "double", "remove", "order"])
        if kind == "value" and arguments:
            key = rng.choice(list(arguments))
            arguments[key] = change(arguments[key], rng)
        elif kind == "acceptable":  # another acceptable value, "" and all
            acceptable = {key: values for gold in made.gold or [] for key, values in next(iter(gold.values())).items()}
            key, values = rng.choice([*acceptable.items(), ("none", [0])])
            arguments[key] = copy.deepcopy(rng.choice(values or [[]]))
        elif kind == "drop" and arguments:
            del arguments[rng.choice(list(arguments))]
        elif kind == "add":
            parameters = rng.choice(made.functions)["parameters"]["properties"]
            arguments[rng.choice([*parameters, "invented"])] = rng.choice(["", 1, 1.0, "x", [], {}, None, False])
        elif kind == "rename":
            calls[index] = (rng.choice([function["name"] for function in made.functions] + ["other"]), arguments)
        elif kind == "double":
            calls.insert(rng.randrange(len(calls) + 1), copy.deepcopy(calls[index]))
        elif kind == "remove":
            del calls[index]
        elif kind == "order":
            rng.shuffle(calls)
    return calls


def test_verdicts_equal_the_official_ones_on_wrong_answers(
    items: dict[str, list[Item]], official: Callable[[Item, list[Call]], bool]
) -> None:
    rng = random.Random(20260323)
    compared, right, kinds = 0, 0, set()
    for category in WITH_GOLD:
        # The small categories have the most intricate items: more draws for them.
        for made in items[category]:
            gold = bfcl.gold_calls(made)
            for _ in range(100 if len(items[category]) < 100 else 20 if category == "live_multiple" else 30):
                calls = perturb(made, gold, rng)
                verdict = bfcl.score(made, calls)
                assert verdict.correct == official(made, calls), (made.id, calls, verdict)
                assert bool(verdict.kind) != verdict.correct
                compared, right = compared + 1, right + verdict.correct
                kinds.add(verdict.kind)
    assert compared > 60_000
    assert 0.1 < right / compared < 0.6  # both answers are common, so agreement means something
    assert kinds >= {"no call", "wrong function", "wrong count", "missing argument", "invented argument"}
    assert kinds >= {"wrong type", "wrong value"}


# Gold answers that break their function's own schema, which is the data's mistake.
BREAK_THEIR_SCHEMA = {
    "parallel_multiple_21",  # the name of a variable where a list is described
    "parallel_multiple_94",  # strings in a list of integers
    "live_multiple_552-153-1",  # True where the string "True" is described; 731, 733, 735 too
    "live_multiple_731-167-2",
    "live_multiple_733-167-4",
    "live_multiple_735-167-6",
    "live_multiple_595-158-1",  # 2 where the string "2" is described; 596 too
    "live_multiple_596-158-2",
    "live_multiple_87-38-4",  # outside the enum: misspelt, in another case, translated, or a new value
    "live_multiple_750-169-5",
    "live_multiple_756-169-11",
    "live_multiple_835-178-10",
    "live_multiple_871-182-8",
    "live_multiple_947-197-0",
    "live_parallel_multiple_2-2-0",
    "live_multiple_964-207-0",  # a required argument left out
    "live_multiple_1038-265-0",  # null for a date
}


def test_tools_are_valid_and_gold_answers_fit_them(items: dict[str, list[Item]]) -> None:
    from jsonschema import Draft202012Validator

    checked: dict[str, Draft202012Validator] = {}  # most live items share their tools with others
    breaking = set()
    for loaded in items.values():
        for made in loaded:
            validators = {}
            for function in (tool["function"] for tool in made.tools):
                text = json.dumps(function["parameters"])
                if text not in checked:
                    Draft202012Validator.check_schema(function["parameters"])
                    checked[text] = Draft202012Validator(function["parameters"])
                validators[function["name"]] = checked[text]
            if not all(validators[name].is_valid(arguments) for name, arguments in bfcl.gold_calls(made)):
                breaking.add(made.id)
    assert breaking == BREAK_THEIR_SCHEMA
