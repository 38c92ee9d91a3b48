"""What a measured run comes to: accuracies with intervals, failure kinds, tokens; and two runs compared in pairs."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.bfcl import Item, Verdict
from shared.errors import UserError
from shared.results import Metric, Row, metric
from shared.stats import auroc, mcnemar_exact, paired_bootstrap, wilson_ci
from step2_tool_calling.evaluate import Outcome, at_threshold, schema_valid, verdict

FAILURES = (
    "no call",
    "unexpected call",
    "invalid JSON",
    "wrong function",
    "wrong count",
    "missing argument",
    "invented argument",
    "wrong type",
    "wrong value",
    "refused",  # by the endpoint
)


def row(name: str, items: Sequence[Item], outcomes: Sequence[Outcome], dollars: float | None) -> Row:
    """One line of the table. dollars: for all items together, None when the model has no known price."""
    verdicts = [verdict(item, outcome) for item, outcome in zip(items, outcomes, strict=True)]
    metrics: dict[str, Metric] = {}
    for category in dict.fromkeys(item.category for item in items):
        right = [v.correct for item, v in zip(items, verdicts, strict=True) if item.category == category]
        metrics[category] = _percent(right)
    metrics["all"] = _percent([v.correct for v in verdicts])
    validity = [valid for i, o in zip(items, outcomes, strict=True) if (valid := schema_valid(i, o)) is not None]
    metrics["schema-valid"] = _percent(validity) if validity else metric(None)
    count = len(outcomes)
    metrics["prompt tokens"] = metric(sum(o.usage.prompt for o in outcomes) / count)
    metrics["answer tokens"] = metric(sum(o.usage.completion for o in outcomes) / count)
    metrics["s/item"] = metric(statistics.median(o.seconds for o in outcomes))
    metrics["USD/1,000"] = metric(None if dollars is None else 1000 * dollars / count)
    kinds = Counter[str](v.kind for v in verdicts if not v.correct)
    for kind in FAILURES:
        metrics[kind] = metric(kinds[kind])
    return {"name": name, "metrics": metrics}


def _percent(right: Sequence[bool]) -> Metric:
    estimate = wilson_ci(sum(right), len(right))
    return metric(100 * estimate.value, (100 * estimate.ci95[0], 100 * estimate.ci95[1]), unit="%")


@dataclass(frozen=True)
class Calibration:
    """How well the probability of calling tells items that need a call from those that do not.

    threshold: maximises the mean of the two accuracies. auroc: 1 is perfect, 0.5 is chance.
    """

    threshold: float
    balanced_accuracy: float
    auroc: float
    ci95: tuple[float, float]
    n: int


def calibrate(items: Sequence[Item], outcomes: Sequence[Outcome]) -> Calibration:
    """Choose the call threshold on these items, which must not be the ones it is then judged by.

    Items that the endpoint refused say nothing and are left out.
    Raises UserError when the run has no probabilities, or not both kinds of items.
    """
    pairs = [(o.probability, i.gold is not None) for i, o in zip(items, outcomes, strict=True) if not o.error]
    scores = [probability for probability, _ in pairs if probability is not None]
    labels = [needed for _, needed in pairs]
    if len(scores) < len(pairs) or len(set(labels)) < 2:
        raise UserError("calibration needs a constrained run over items that need a call and items that do not")
    needed = [score for score, label in zip(scores, labels, strict=True) if label]
    other = [score for score, label in zip(scores, labels, strict=True) if not label]

    def balanced(threshold: float) -> float:
        called = sum(score >= threshold for score in needed) / len(needed)
        left = sum(score < threshold for score in other) / len(other)
        return (called + left) / 2

    best = max(sorted({*scores, 1.0}), key=balanced)
    area = auroc(scores, labels)
    return Calibration(best, balanced(best), area.value, area.ci95, len(pairs))


@dataclass(frozen=True)
class Comparison:
    """Run b against run a on the same items. difference: in percentage points, b - a.

    only_a_right, only_b_right: the items that tell the runs apart. p: of "equally many", McNemar's exact test.
    fixed, broken: the ids of these items, as seen from a.
    """

    n: int
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    only_a_right: int
    only_b_right: int
    p: float
    fixed: list[str]
    broken: list[str]


def compare(items: Sequence[Item], a: Mapping[str, Outcome], b: Mapping[str, Outcome]) -> Comparison:
    """Pair the outcomes of two runs by item. Raises UserError when they have none in common."""
    both = [item for item in items if item.id in a and item.id in b]
    if not both:
        raise UserError("the two runs have no item in common")
    right_a = [verdict(item, a[item.id]).correct for item in both]
    right_b = [verdict(item, b[item.id]).correct for item in both]
    change = paired_bootstrap(right_b, right_a)
    test = mcnemar_exact(right_a, right_b)
    pairs = list(zip(both, right_a, right_b, strict=True))
    return Comparison(
        len(both),
        100 * sum(right_a) / len(both),
        100 * sum(right_b) / len(both),
        100 * change.value,
        (100 * change.ci95[0], 100 * change.ci95[1]),
        test.only_a,
        test.only_b,
        test.p,
        [item.id for item, x, y in pairs if y and not x],
        [item.id for item, x, y in pairs if x and not y],
    )


def thresholded(outcomes: Sequence[Outcome], threshold: float) -> list[Outcome]:
    """The same run, calling only from this probability on."""
    return [at_threshold(outcome, threshold) for outcome in outcomes]


def describe(item: Item, outcome: Outcome) -> tuple[Verdict, str]:
    """An item's verdict and what was said, in one line."""
    calls = "; ".join(f"{call['name']}({call['arguments']})" for call in outcome.calls)
    return verdict(item, outcome), calls or outcome.content or outcome.error or "(nothing)"
