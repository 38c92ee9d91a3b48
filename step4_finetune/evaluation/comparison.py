"""What answers come to: a row of the table, and one column against another on the same items.

Two 95 % intervals that overlap say little: both columns met the same easy and hard items. What decides is the items
on which they differ, so the comparison is paired: the exact McNemar test for right and wrong, DeLong's interval for
rankings. And it ends with examples, the items that b fixed and those that it broke, since a number cannot say why.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import UserError
from shared.results import Metric, Row, metric
from shared.stats import Difference, McNemar, auroc, mcnemar_exact, paired_bootstrap, wilson_ci
from step4_finetune.evaluation.calibration import auroc_difference, calibration
from step4_finetune.evaluation.task import Answer, Item, Score, Task

ALL = "all"  # the row over all groups


@dataclass(frozen=True)
class Judged:
    """An item with an answer to it and what that is worth."""

    item: Item
    answer: Answer
    score: Score


def judge(task: Task, answers: Mapping[str, Answer], threshold: float = 0.5) -> list[Judged]:
    """Score the answers (by item id), in the task's order; items without one are left out.

    threshold: from this probability on an answer is a call, or a yes. Raises UserError when an item was changed since
    it was answered, since the score would be of another question, and when there is no answer at all.
    """
    judged = []
    for item in task.items:
        answer = answers.get(item.id)
        if answer is None:
            continue
        if answer.asked != item.digest:
            raise UserError(f"{task.name}: {item.id} was answered in another version; run the evaluation again")
        score = Score(False, "refused", answer.refused) if answer.refused else task.score(item, answer, threshold)
        judged.append(Judged(item, answer, score))
    if not judged:
        raise UserError(f"there are no answers to {task.name}: run the evaluation first")
    return judged


def probabilities(task: Task, judged: Sequence[Judged]) -> tuple[list[float], list[bool]] | None:
    """The probability of every item and whether it is positive; None when one is missing or there is only one kind."""
    values = [entry.answer.probability for entry in judged]
    labels = [task.positive(entry.item) for entry in judged]
    known = [value for value in values if value is not None]
    return (known, labels) if len(known) == len(labels) and len(set(labels)) == 2 else None


def row(label: str, task: Task, judged: Sequence[Judged]) -> Row:
    """One line of the table: accuracy in percent by group and over all, ranking, calibration, cost, failures.

    AUROC is of the probability of a call, or of a yes. ECE and Brier only where that probability is the whole answer.
    """
    metrics: dict[str, Metric] = {}
    for group, entries in _groups(judged).items():
        share = wilson_ci(sum(entry.score.correct for entry in entries), len(entries))
        metrics[group] = metric(100 * share.value, (100 * share.ci95[0], 100 * share.ci95[1]), unit="%")
    graded = probabilities(task, judged)
    if graded:
        metrics["AUROC"] = metric(*auroc(*graded))
        if "choice" in task.strategies:
            found = calibration(*graded)
            metrics["ECE"], metrics["Brier"] = metric(*found.ece), metric(*found.brier)
    lengths = [entry.answer.prompt_tokens for entry in judged if entry.answer.prompt_tokens is not None]
    metrics["prompt tokens"] = metric(statistics.mean(lengths) if lengths else None)
    metrics["s/item"] = metric(statistics.median(entry.answer.seconds for entry in judged))
    for kind, count in failures(judged).items():
        metrics[kind] = metric(count)
    return {"name": label, "metrics": metrics}


def failures(judged: Sequence[Judged]) -> dict[str, int]:
    """How many answers failed in which way, most frequent first."""
    kinds = Counter(entry.score.kind for entry in judged if not entry.score.correct)
    return dict(kinds.most_common())


def _groups(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = {}
    for entry in judged:
        groups.setdefault(entry.item.group, []).append(entry)
    return groups if len(groups) == 1 else groups | {ALL: list(judged)}


# -- one column against another ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Accuracy of b less that of a on a group's items, in percentage points. p is McNemar's, exact."""

    group: str
    n: int
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    mcnemar: McNemar  # only_a: items that only a has right


@dataclass(frozen=True)
class Side:
    """What one column said to an item, in a line. kind: of its failure, "" when it is right."""

    said: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Example:
    """One item on which the two columns differ, side by side."""

    id: str
    group: str
    question: str
    a: Side
    b: Side


@dataclass(frozen=True)
class Comparison:
    """Column b against column a. changes: by group, then over all. auroc: b - a, where both give probabilities."""

    changes: list[Change]
    auroc: Difference | None
    fixed: list[Example]
    broken: list[Example]


def compare(task: Task, a: Sequence[Judged], b: Sequence[Judged]) -> Comparison:
    """Compare two columns on the items that both answered. Raises UserError when there are none."""
    other = {entry.item.id: entry for entry in b}
    pairs = [(entry, other[entry.item.id]) for entry in a if entry.item.id in other]
    if not pairs:
        raise UserError(f"{task.name}: the two columns have no item in common")
    first, second = [x for x, _ in pairs], [y for _, y in pairs]
    groups_b = _groups(second)
    changes = [_change(name, entries, groups_b[name]) for name, entries in _groups(first).items()]
    graded_a, graded_b = probabilities(task, first), probabilities(task, second)
    ranking = None
    # Of one positive or one negative item nobody knows how much it varies.
    if graded_a and graded_b and min(map(graded_a[1].count, (True, False))) > 1:
        ranking = auroc_difference(graded_b[0], graded_a[0], graded_a[1])
    return Comparison(
        changes,
        ranking,
        [_example(x, y) for x, y in pairs if y.score.correct and not x.score.correct],
        [_example(x, y) for x, y in pairs if x.score.correct and not y.score.correct],
    )


def _change(group: str, a: Sequence[Judged], b: Sequence[Judged]) -> Change:
    right_a, right_b = [entry.score.correct for entry in a], [entry.score.correct for entry in b]
    change = paired_bootstrap(right_b, right_a)
    return Change(
        group,
        len(a),
        100 * sum(right_a) / len(a),
        100 * sum(right_b) / len(b),
        100 * change.value,
        (100 * change.ci95[0], 100 * change.ci95[1]),
        mcnemar_exact(right_a, right_b),
    )


def _example(a: Judged, b: Judged) -> Example:
    question = "\n".join(str(m["content"]) for m in a.item.messages if m["role"] == "user")
    return Example(a.item.id, a.item.group, question, _side(a), _side(b))


def _side(entry: Judged) -> Side:
    return Side(said(entry.answer), entry.score.kind, entry.score.detail)


def said(answer: Answer) -> str:
    """An answer in one line: its calls, or its text; with the probability, where there is one."""
    calls = "; ".join(f"{call['name']}({call['arguments']})" for call in answer.calls)
    words = calls or " ".join(answer.text.split()) or answer.refused or "(nothing)"
    return words if answer.probability is None else f"{words}  [p = {answer.probability:.2f}]"
