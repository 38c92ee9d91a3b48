"""What outcomes come to: rows with 95 % intervals, each arm tested against a baseline on the same questions.

Shares and means are in percent. `p` is of "no difference": McNemar's exact test for right or wrong, sign flips for F1
and the like. A row that lost is a row like any other.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.results import Metric, Row, format_metric, metric, write_results
from shared.stats import auroc, mcnemar_exact, mean_ci, paired_bootstrap, wilson_ci
from shared.terminal import console
from step3_rag.evaluation.datasets import Question, states
from step3_rag.evaluation.journal import Outcome
from step3_rag.evaluation.metrics import ndcg, recall_at, reciprocal_rank, rouge_l, token_f1, yes_or_no
from step3_rag.graders import answers

PARTS = ("dense", "lexical")  # what is fused

P_SHOWN = 0.0001  # smaller ones are shown as this: 10,000 sign flips cannot tell them apart
PACKAGES = ("torch", "chromadb", "bm25s", "langgraph")
NOTE = "shares and means in percent; Δ in points against the baseline; p below 0.0001 is shown as 0.0001"
NAME_WIDTH, GAP = 26, 2  # columns on the terminal: of the longest row name before it is broken, and between two


def share(right: Sequence[bool]) -> Metric:
    """Return the percentage that is true, with Wilson's interval."""
    value, (low, high) = wilson_ci(sum(right), len(right))
    return metric(100 * value, (100 * low, 100 * high))


def mean(values: Sequence[float]) -> Metric:
    """Return 100 × the mean of values between 0 and 1, with the bootstrap's interval."""
    value, (low, high) = mean_ci(values)
    return metric(100 * value, (100 * low, 100 * high))


def change(name: str, values: Sequence[float], baseline: Sequence[float]) -> dict[str, Metric]:
    """Return the mean difference in points to a baseline on the same questions, with its interval, and p."""
    difference = paired_bootstrap(values, baseline)
    binary = all(value in (0, 1) for value in (*values, *baseline))
    p = mcnemar_exact([v == 1 for v in values], [v == 1 for v in baseline]).p if binary else difference.p
    low, high = difference.ci95
    return {
        f"Δ {name}": metric(100 * difference.value, (100 * low, 100 * high)),
        f"p ({name})": metric(max(p, P_SHOWN), digits=2),
    }


def unmeasured(name: str) -> dict[str, Metric]:
    """The same cells for the baseline itself."""
    return {f"Δ {name}": metric(None), f"p ({name})": metric(None)}


def retrieval_rows(results: Mapping[str, Sequence[Outcome]]) -> list[Row]:
    """One row per arm; the difference is to the better of the two parts, by recall@5 on these questions."""
    hits = {arm: [float(recall_at(o["ranks"], 5)) for o in outcomes] for arm, outcomes in results.items()}
    better = max(PARTS, key=lambda arm: sum(hits[arm]))
    rows: list[Row] = []
    for arm, outcomes in results.items():
        ranks = [o["ranks"] for o in outcomes]
        metrics = {f"recall@{k}": share([recall_at(r, k) for r in ranks]) for k in (1, 5, 10)}
        metrics["MRR@10"] = mean([reciprocal_rank(r) for r in ranks])
        metrics["nDCG@10"] = mean([ndcg(o["ranks"], o["relevant"]) for o in outcomes])
        metrics |= unmeasured("recall@5") if arm == better else change("recall@5", hits[arm], hits[better])
        rows.append({"name": arm, "metrics": metrics})
    return rows


def answer_rows(questions: Sequence[Question], results: Mapping[str, Sequence[Outcome]]) -> list[Row]:
    """One row per arm, the first one being the baseline. What is scored follows from the questions' kind.

    × naive: the median wall time against the baseline's.
    """
    if any(not question.answerable for question in questions):
        score = _abstention
    elif all(set(question.answers) <= {"yes", "no"} for question in questions):
        score = _yes_no
    else:
        score = _written
    baseline = next(iter(results.values()))
    rows: list[Row] = []
    for arm, outcomes in results.items():
        metrics = score(questions, outcomes, baseline)
        seconds, naive = (statistics.median(o["seconds"] for o in part) for part in (outcomes, baseline))
        metrics["abstained %"] = share([declined(o) for o in outcomes])
        metrics["rewritten %"] = share([bool(o["rewrites"]) for o in outcomes])
        metrics["citations dropped"] = metric(sum(o["dropped"] for o in outcomes))
        metrics["s/question"] = metric(seconds, digits=2)
        metrics["× naive"] = metric(seconds / naive, digits=2)
        rows.append({"name": arm, "metrics": metrics})
    return rows


def _yes_no(
    questions: Sequence[Question], outcomes: Sequence[Outcome], baseline: Sequence[Outcome]
) -> dict[str, Metric]:
    """BoolQ. An abstention is no right answer as text; the forced choice does not know of it."""

    def as_text(part: Sequence[Outcome]) -> list[float]:
        return [float(yes_or_no(o["text"]) == q.answers[0]) for q, o in zip(questions, part, strict=True)]

    def forced(part: Sequence[Outcome]) -> list[float]:
        return [float((o["yes"] > 0.5) == (q.answers[0] == "yes")) for q, o in zip(questions, part, strict=True)]

    text, choice = as_text(outcomes), forced(outcomes)
    same = outcomes is baseline
    metrics = {"accuracy as text": share([value == 1 for value in text])}
    metrics |= unmeasured("text") if same else change("text", text, as_text(baseline))
    metrics["forced-choice accuracy"] = share([value == 1 for value in choice])
    metrics |= unmeasured("forced") if same else change("forced", choice, forced(baseline))
    answered = [value == 1 for value, o in zip(text, outcomes, strict=True) if not declined(o)]
    metrics["right where answered"] = share(answered) if answered else metric(None)
    return metrics


def _written(
    questions: Sequence[Question], outcomes: Sequence[Outcome], baseline: Sequence[Outcome]
) -> dict[str, Metric]:
    """NarrativeQA. An abstention scores 0."""

    def f1(part: Sequence[Outcome]) -> list[float]:
        pairs = zip(questions, part, strict=True)
        return [0.0 if o["abstained"] else token_f1(o["text"], q.answers) for q, o in pairs]

    pairs = list(zip(questions, outcomes, strict=True))
    values = f1(outcomes)
    metrics = {"token F1": mean(values)}
    metrics |= unmeasured("F1") if outcomes is baseline else change("F1", values, f1(baseline))
    metrics["ROUGE-L"] = mean([0.0 if o["abstained"] else rouge_l(o["text"], q.answers) for q, o in pairs])
    # F1 takes points off for every word that a short reference lacks; this does not.
    told = [not o["abstained"] and any(states(o["text"], answer) for answer in q.answers) for q, o in pairs]
    metrics["states the answer %"] = share(told)
    answered = [value for value, o in zip(values, outcomes, strict=True) if not declined(o)]
    metrics["F1 where answered"] = mean(answered) if answered else metric(None)
    return metrics


def _abstention(
    questions: Sequence[Question], outcomes: Sequence[Outcome], baseline: Sequence[Outcome]
) -> dict[str, Metric]:
    """unsolvable_questions: right is to answer where the document does, and to abstain where it does not."""

    def right(part: Sequence[Outcome]) -> list[float]:
        return [float(declined(o) != q.answerable) for q, o in zip(questions, part, strict=True)]

    values = right(outcomes)
    metrics = {"decided right": share([value == 1 for value in values])}
    metrics |= unmeasured("decided") if outcomes is baseline else change("decided", values, right(baseline))
    for name, kind in (("answered of answerable", True), ("abstained of unanswerable", False)):
        part = [value == 1 for value, q in zip(values, questions, strict=True) if q.answerable == kind]
        metrics[name] = share(part) if part else metric(None)
    graded = [(o["answerable"], q.answerable) for q, o in zip(questions, outcomes, strict=True)]
    scored = [(grade, label) for grade, label in graded if grade is not None]
    both = len({label for _, label in scored}) == 2
    metrics["AUROC"] = metric(*auroc(*zip(*scored, strict=True))) if both else metric(None)
    return metrics


def declined(outcome: Outcome) -> bool:
    """Whether no answer was given, by the graph or in the model's own words ("the passage does not mention …").

    `answers` knows the words: it gives 0 to them whatever the grader says, here always yes.
    """
    return outcome["abstained"] or answers(lambda _, cases: [1.0] * len(cases), "", outcome["text"], "") == 0


def abstention_rows(
    questions: Sequence[Question], results: Mapping[str, Sequence[Outcome]], thresholds: Mapping[str, float]
) -> list[Row]:
    """One row per grader, the first one being the row to beat; each at its threshold from the calibration split."""
    labels = [question.answerable for question in questions]

    def right(name: str) -> list[float]:
        cut = thresholds[name]
        return [float((o["score"] >= cut) == label) for o, label in zip(results[name], labels, strict=True)]

    baseline = next(iter(results))
    rows: list[Row] = []
    for name, outcomes in results.items():
        values = right(name)
        metrics = {"AUROC": metric(*auroc([o["score"] for o in outcomes], labels))}
        metrics["accuracy"] = share([value == 1 for value in values])
        metrics |= unmeasured("accuracy") if name == baseline else change("accuracy", values, right(baseline))
        metrics["threshold"] = metric(thresholds[name], digits=2)
        metrics["s/question"] = metric(statistics.median(o["seconds"] for o in outcomes), digits=2)
        rows.append({"name": name, "metrics": metrics})
    return rows


def write(path: Path, rows: Sequence[Row], *, command: str, n: int, notes: str) -> None:
    """Write a table as results JSON, from which the README's is rendered."""
    write_results(path, command=command, rows=rows, n=n, notes=f"{notes}. {NOTE}", packages=PACKAGES)


def show(title: str, rows: Sequence[Row], n: int, notes: str) -> None:
    """Print a table: one row per arm, each value above its interval, columns that nobody has left out.

    What does not fit side by side goes below, with the names of the rows again: no heading is cut off.
    """
    from rich.table import Table

    out = console()
    columns = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    cells = {name: [_cell(format_metric(row["metrics"].get(name))) for row in rows] for name in columns}
    measured = [c for c in columns if any(row["metrics"].get(c, metric(None))["value"] is not None for row in rows)]
    first = min(NAME_WIDTH, max(len(row["name"]) for row in rows))
    out.print(f"\n{title}, n = {n:,}", style="italic")
    widths = {name: _width([*name.split(), *cells[name]]) for name in measured}
    for part in _side_by_side(widths, out.width - first - GAP):
        shown = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        shown.add_column("", width=first)
        for name in part:
            shown.add_column(name, justify="right", width=widths[name])
        for number, row in enumerate(rows):
            shown.add_row(row["name"], *(cells[name][number] for name in part))
        out.print(shown)
        out.print()
    out.print(notes, style="dim italic")


def _side_by_side(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """Columns, in order, in as few lines as they fit in; one that is too wide for any has its own."""
    parts: list[list[str]] = []
    left = 0
    for name, width in widths.items():
        if not parts or width > left:
            parts.append([])
            left = room
        parts[-1].append(name)
        left -= width + GAP
    return parts


def _width(texts: Sequence[str]) -> int:
    return max(len(line) for text in texts for line in text.split("\n"))


def _cell(text: str) -> str:
    value, bracket, rest = text.partition(" [")
    return f"{value}\n{bracket.strip()}{rest}" if bracket else text
