"""Tables and comparisons, on answers whose figures can be counted by hand."""

import math
from random import Random

import numpy as np
import pytest

from shared.errors import UserError
from shared.stats import auroc
from step4_finetune.evaluation.calibration import auroc_difference, best_threshold, calibration
from step4_finetune.evaluation.comparison import compare, failures, judge, row, said
from step4_finetune.evaluation.task import Answer, Item, Score, Task
from step4_finetune.tables import p_value


def score(item: Item, answer: Answer, threshold: float) -> Score:
    text = "yes" if (answer.probability or 0) >= threshold else "no"
    text = answer.text or text
    return Score(True) if text == item.gold else Score(False, f"said {text}")


def task_of(*golds: str, group: str = "g") -> Task:
    items = [Item(str(i), group, [{"role": "user", "content": f"q{i}"}], gold) for i, gold in enumerate(golds)]
    return Task("toy", items, ("choice",), score, lambda item: item.gold == "yes")


def answers(task: Task, *texts: str, probabilities: tuple[float, ...] = ()) -> dict[str, Answer]:
    found = {}
    for i, item in enumerate(task.items):
        probability = probabilities[i] if probabilities else None
        text = texts[i] if texts else ""
        found[item.id] = Answer(
            item.id, item.digest, text, probability=probability, seconds=1.0 + i, prompt_tokens=10 * (i + 1)
        )
    return found


def test_a_row_counts_by_hand() -> None:
    task = task_of("yes", "yes", "no", "no")
    judged = judge(task, answers(task, probabilities=(0.9, 0.4, 0.2, 0.6)))
    line = row("base", task, judged)
    metrics = line["metrics"]
    assert line["name"] == "base"
    assert metrics["g"]["value"] == 50.0
    assert metrics["g"]["ci95"] == pytest.approx([15.0, 85.0], abs=0.1)  # Wilson, 2 of 4
    assert metrics["AUROC"]["value"] == 0.75  # 0.9 above both, 0.4 above one of two
    # One item in each of four bins, gaps 0.1, 0.6, 0.2, 0.6, each weighing a quarter.
    assert metrics["ECE"]["value"] == pytest.approx(0.375)
    assert metrics["Brier"]["value"] == pytest.approx((0.01 + 0.36 + 0.04 + 0.36) / 4)
    assert (metrics["prompt tokens"]["value"], metrics["s/item"]["value"]) == (25.0, 2.5)
    assert (metrics["said yes"]["value"], metrics["said no"]["value"]) == (1, 1)
    assert "all" not in metrics  # one group is all


def test_groups_are_counted_apart_and_together() -> None:
    one, two = task_of("yes", "yes"), task_of("no", "no", "no", group="h")
    items = [*one.items, *(Item("h" + i.id, i.group, i.messages, i.gold) for i in two.items)]
    task = Task("toy", items, ("native",), score, lambda item: item.gold == "yes")
    judged = judge(task, answers(task, "yes", "no", "no", "no", "yes"))
    metrics = row("x", task, judged)["metrics"]
    assert [round(metrics[name]["value"] or 0) for name in ("g", "h", "all")] == [50, 67, 60]
    assert "AUROC" not in metrics
    assert failures(judged) == {"said no": 1, "said yes": 1}


def test_the_threshold_decides_and_refused_items_are_wrong() -> None:
    task = task_of("yes", "no")
    given = answers(task, probabilities=(0.3, 0.2))
    assert [j.score.correct for j in judge(task, given)] == [False, True]
    assert [j.score.correct for j in judge(task, given, threshold=0.25)] == [True, True]
    given["1"] = Answer("1", task.items[1].digest, refused="too long")
    assert [j.score.kind for j in judge(task, given)] == ["said no", "refused"]
    assert "AUROC" not in row("x", task, judge(task, given))["metrics"]  # a probability is missing


def test_answers_to_another_version_or_none_at_all_are_refused() -> None:
    task = task_of("yes")
    with pytest.raises(UserError, match="no answers to toy"):
        judge(task, {})
    with pytest.raises(UserError, match="0 was answered in another version"):
        judge(task, {"0": Answer("0", "other")})


def test_two_columns_are_compared_in_pairs() -> None:
    task = task_of(*["yes"] * 10)
    a = judge(task, answers(task, *["yes"] * 3 + ["no"] * 7))
    b = judge(task, answers(task, *["no"] + ["yes"] * 9))
    [change] = (result := compare(task, a, b)).changes
    assert (change.n, change.a, change.b, change.difference) == (10, 30.0, 90.0, pytest.approx(60.0))
    assert change.ci95[0] > 0
    assert (change.mcnemar.only_a, change.mcnemar.only_b) == (1, 7)
    assert change.mcnemar.p == pytest.approx(2 * (1 + 8) / 2**8)  # 0 or 1 of 8 coin tosses, twice
    assert [e.id for e in result.fixed] == ["3", "4", "5", "6", "7", "8", "9"]
    [broken] = result.broken
    assert (broken.question, broken.a.said, broken.a.kind, broken.b.said, broken.b.kind) == (
        "q0", "yes", "", "no", "said no",
    )  # fmt: skip
    assert result.auroc is None


def test_only_items_of_both_columns_count() -> None:
    task = task_of("yes", "yes", "yes")
    given = answers(task, "yes", "yes", "yes")
    a, b = judge(task, {i: given[i] for i in "01"}), judge(task, {i: given[i] for i in "12"})
    assert compare(task, a, b).changes[0].n == 1
    with pytest.raises(UserError, match="no item in common"):
        compare(task, a[:1], b)


def test_what_was_said_fits_a_line() -> None:
    calls = [{"name": "f", "arguments": '{"a": 1}'}, {"name": "g", "arguments": "{}"}]
    assert said(Answer("i", "", calls=calls, probability=0.875)) == 'f({"a": 1}); g({})  [p = 0.88]'
    assert said(Answer("i", "", text="one\n two")) == "one two"
    assert said(Answer("i", "")) == "(nothing)"


def test_calibration_bins_hold_their_items() -> None:
    found = calibration([0.95, 1.0, 0.05, 0.0, 0.31], [True, False, False, False, True])
    assert [(b.low, b.n, b.probability, b.positive.value) for b in found.bins] == [
        (0.0, 2, 0.025, 0.0),
        (0.3, 1, 0.31, 1.0),
        (0.9, 2, 0.975, 0.5),
    ]
    assert found.ece.value == pytest.approx((2 * 0.025 + 0.69 + 2 * 0.475) / 5)
    assert found.ece.ci95[0] <= found.ece.value <= found.ece.ci95[1]
    for p, y in (([0.5, 1.2], [True, False]), ([0.5], [True, False]), ([], [])):
        with pytest.raises(ValueError, match="probabilities in"):
            calibration(p, y)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large_one() -> None:
    rng = Random(1)
    p = [rng.random() for _ in range(4000)]
    labels = [rng.random() < value for value in p]
    assert calibration(p, labels).ece.value < 0.03
    sharpened = [1.0 if value > 0.5 else 0.0 for value in p]
    assert calibration(sharpened, labels).ece.value == pytest.approx(0.25, abs=0.02)


def test_the_paired_auroc_is_delongs() -> None:
    rng = Random(2)
    labels = [i % 3 == 0 for i in range(150)]
    a = [label + rng.gauss(0, 1) for label in labels]
    b = [value * 0.5 + rng.gauss(0, 0.7) for value in a]
    found = auroc_difference(a, b, labels)
    assert found.value == pytest.approx(auroc(a, labels).value - auroc(b, labels).value)

    # The published form: var(a) + var(b) - 2 cov(a, b), from the two matrices of structural components.
    def components(scores: list[float]) -> tuple[list[float], list[float]]:
        x = [s for s, label in zip(scores, labels, strict=True) if label]
        y = [s for s, label in zip(scores, labels, strict=True) if not label]
        psi = [[1.0 if p > q else 0.5 if p == q else 0.0 for q in y] for p in x]
        return [sum(line) / len(y) for line in psi], [sum(column) / len(x) for column in zip(*psi, strict=True)]

    (xa, ya), (xb, yb) = components(a), components(b)
    s10, s01 = np.cov(xa, xb) / len(xa), np.cov(ya, yb) / len(ya)
    error = math.sqrt((s10 + s01)[0, 0] + (s10 + s01)[1, 1] - 2 * (s10 + s01)[0, 1])
    assert found.ci95 == pytest.approx((found.value - 1.959964 * error, found.value + 1.959964 * error))
    assert 0 < found.p < 0.05
    assert auroc_difference(a, a, labels) == (0.0, (0.0, 0.0), 1.0)


def test_a_few_items_never_claim_a_certain_difference_of_rankings() -> None:
    labels = [True, True, True, False, False, False]
    found = auroc_difference([3, 3, 3, 1, 1, 1], [1] * 6, labels)
    assert (found.value, found.p) == (0.5, 1.0)
    assert found.ci95[0] < 0
    with pytest.raises(ValueError, match="two positive and two negative"):
        auroc_difference([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [True, False, False])


def test_rankings_are_compared_where_both_columns_have_probabilities() -> None:
    task = task_of("yes", "yes", "no", "no")
    a = judge(task, answers(task, probabilities=(0.9, 0.4, 0.2, 0.6)))
    b = judge(task, answers(task, probabilities=(0.9, 0.8, 0.2, 0.1)))
    found = compare(task, a, b).auroc
    assert found is not None
    assert found.value == pytest.approx(0.25)
    few = task_of("yes", "yes", "no")  # one negative item has no spread
    few_a, few_b = (judge(few, answers(few, probabilities=p)) for p in ((0.9, 0.4, 0.2), (0.9, 0.8, 0.2)))
    assert compare(few, few_a, few_b).auroc is None


def test_the_best_threshold_weighs_both_kinds_alike() -> None:
    # Nine calls are needed and one is not; calling always would be right in nine of ten.
    probabilities, labels = [0.2, *[0.3] * 8, 0.1], [True] * 9 + [False]
    assert best_threshold(probabilities, labels) == 0.2
    with pytest.raises(UserError, match="both kinds"):
        best_threshold([0.1], [True])


def test_no_p_value_is_zero() -> None:
    assert p_value(0.0123) == "p = 0.012"
    assert p_value(0.0) == "p < 1e-15"
