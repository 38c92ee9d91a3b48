"""What an outcome is worth: kinds of failure, rows, thresholds, paired comparison.

python -m pytest tests/step2/test_scoreboard.py
"""

import asyncio
from dataclasses import replace

import pytest
from eval_items import ITEMS, RIGHT, WRONG, item, outcome

from shared.errors import UserError
from step2_tool_calling.evaluate import as_tools, schema_valid, verdict
from step2_tool_calling.scoreboard import FAILURES, calibrate, compare, describe, row, thresholded


@pytest.mark.parametrize(
    ("calls", "kind", "valid"),
    [
        ([RIGHT], "", True),
        ([], "no call", None),
        ([("weather_now", '{"city": ')], "invalid JSON", False),
        ([("weather_now", "[]")], "invalid JSON", False),
        ([("weather", "{}")], "wrong function", False),
        ([RIGHT, RIGHT], "wrong count", True),
        ([("weather_now", "{}")], "missing argument", False),
        ([("weather_now", '{"city": "Oslo", "unit": "C"}')], "invented argument", True),
        ([("weather_now", '{"city": 7}')], "wrong type", False),
        ([WRONG], "wrong value", True),
    ],
)
def test_kinds_of_failure(calls: list[tuple[str, str]], kind: str, valid: bool | None) -> None:
    made = outcome(ITEMS[0], *calls)
    assert verdict(ITEMS[0], made).kind == kind
    assert schema_valid(ITEMS[0], made) is valid


def test_tools_of_an_item_cannot_be_run() -> None:
    (tool,) = as_tools(ITEMS[0])
    assert tool.name == "weather_now"
    with pytest.raises(AssertionError):
        asyncio.run(tool.run({}))


def test_a_row_counts_by_category_and_kind() -> None:
    items = [item(0), item(1), item(2), item(0, "irrelevance"), item(1, "irrelevance")]
    made = [
        outcome(items[0], RIGHT, seconds=1.0),
        outcome(items[1], WRONG, seconds=2.0),
        outcome(items[2], seconds=9.0),
        outcome(items[3]),
        outcome(items[4], RIGHT),
    ]
    metrics = row("a", items, made, 0.5)["metrics"]
    value = {name: metric["value"] for name, metric in metrics.items()}
    assert value["simple_python"] == pytest.approx(100 / 3)
    assert (value["irrelevance"], value["all"], value["schema-valid"]) == (50, 40, 100)
    assert (value["prompt tokens"], value["answer tokens"], value["s/item"]) == (100, 10, 1)
    assert value["USD/1,000"] == 100
    assert {kind: value[kind] for kind in FAILURES if value[kind]} == {
        "no call": 1,
        "unexpected call": 1,
        "wrong value": 1,
    }
    low, high = metrics["all"]["ci95"] or (0, 0)
    assert 0 < low < 40 < high < 100
    assert row("b", items[2:4], made[2:4], None)["metrics"]["schema-valid"]["value"] is None


def test_calibration_finds_the_threshold_that_separates() -> None:
    needed = [item(n) for n in range(4)]
    other = [item(n, "irrelevance") for n in range(4)]
    made = [outcome(i, RIGHT, probability=p) for i, p in zip(needed, (0.9, 0.8, 0.3, 0.2), strict=True)]
    made += [outcome(i, RIGHT, probability=p) for i, p in zip(other, (0.25, 0.1, 0.05, 0.01), strict=True)]
    found = calibrate([*needed, *other], made)
    assert found.threshold in (0.2, 0.3)  # both make one mistake in eight
    assert found.balanced_accuracy == pytest.approx(7 / 8)
    assert found.auroc == pytest.approx(15 / 16)
    assert found.n == 8
    refused = replace(outcome(needed[0]), error="too long")
    assert calibrate([*needed, *other, needed[0]], [*made, refused]) == found
    limited = thresholded(made, 0.3)
    assert [bool(one.calls) for one in limited] == [True, True, True, False, False, False, False, False]


@pytest.mark.parametrize("probability", [None, 0.5])
def test_calibration_needs_probabilities_and_both_kinds(probability: float | None) -> None:
    with pytest.raises(UserError, match="calibration needs a constrained run"):
        calibrate(ITEMS, [outcome(one, probability=probability) for one in ITEMS])


def test_comparison_pairs_items_by_id() -> None:
    a = {one.id: outcome(one, RIGHT if n < 2 else WRONG) for n, one in enumerate(ITEMS)}
    b = {one.id: outcome(one, RIGHT if n > 0 else WRONG) for n, one in enumerate(ITEMS[:5])}
    found = compare(ITEMS, a, b)
    assert (found.n, found.a, found.b) == (5, 40, 80)
    assert found.difference == pytest.approx(40)
    assert found.ci95[0] <= 40 <= found.ci95[1]
    assert (found.fixed, found.broken) == ([one.id for one in ITEMS[2:5]], [ITEMS[0].id])
    assert (found.only_a_right, found.only_b_right) == (1, 3)
    assert found.p == pytest.approx(0.625)
    with pytest.raises(UserError, match="no item in common"):
        compare(ITEMS, a, {})


def test_describe_says_what_was_said() -> None:
    score, said = describe(ITEMS[0], outcome(ITEMS[0], WRONG))
    assert (score.kind, said) == ("wrong value", 'weather_now({"city": "Rome"})')
    assert describe(ITEMS[0], outcome(ITEMS[0]))[1] == "(nothing)"
