"""Data for the `grader` adapter: three yes/no questions about a passage, for training and, apart, for evaluation.

relevant    is this passage about this question? BoolQ's question with its own passage against a passage of another
            article that BM25 ranks high for it.
grounded    does this passage support this answer? A sentence of the passage against the same with another number, name
            or negation, or a sentence from elsewhere; a written answer (NarrativeQA) against the answer to another
            question, or against another part of the story.
answerable  can this question be answered from this passage alone? The right passage against another one of the same
            article (BoolQ) or story (NarrativeQA).

The model answers with the one token `yes` or `no`, so a grader reads the probability of each. The prompt begins with
the passage: whatever is asked about it later, its states are computed once, in training (collate.py) as in the engine.
For the same reason rows come in families of one passage. Nothing of the held-out side is in the training data, neither
passage, question, article nor story (grader_sources.py).

    rows, removed = build(seed=0)          # rows for collate.py; removed: overlaps with evaluation texts
    items = held_out("relevant", seed=0)   # 600, pairs of yes and no
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from shared import grading
from shared.errors import UserError
from shared.files import atomic_write
from shared.grading import TASKS, require_task
from step4_finetune.data_build import distinct_tokens
from step4_finetune.grader_pairs import GraderItem, digest, pairs_of, retrieved
from step4_finetune.grader_sources import boolq, decontaminate, narrative

if TYPE_CHECKING:
    from shared.tokenizer import ChatTokenizer

__all__ = ["TASKS", "GraderItem", "build", "held_out", "messages", "stats", "write"]

FULL = {"relevant": 1400, "grounded": 1300, "answerable": 1100}  # rows, half of them yes
QUICK = {"relevant": 700, "grounded": 450, "answerable": 350}
HELD_OUT = 600  # items of each task, where the sources have so many


def messages(task: str, item: GraderItem) -> list[dict[str, str]]:
    """Return the chat messages that ask for a grade, in the words of shared/grading.py.

    Raises UserError for a task that does not exist.
    """
    return grading.messages(task, item.passage, item.question, item.answer)


def build(seed: int, counts: Mapping[str, int] | None = None) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Build the training rows, and say how much was removed because an evaluation text has it too.

    counts: rows per task (half of them yes), FULL if None. Families of one passage stay together, in random order; the
    order inside a family is by task. A row is what collate.py reads, with task, kind and family beside it.
    Fetches the data. Raises UserError for an unknown task and when the sources do not give so many rows.
    """
    counts = dict(FULL if counts is None else counts)
    for task in counts:
        require_task(task)
    facts, removed = decontaminate(boolq("train"))
    tales, more = decontaminate(narrative("train"))
    Random(seed).shuffle(facts)  # once for all tasks, so that they ask about the same passages
    families: dict[str, list[dict[str, Any]]] = {}
    for task, count in counts.items():
        pairs = pairs_of(task, facts, tales, Random(f"{seed} {task}"))
        if len(pairs) < count // 2:
            raise UserError(f"there are {2 * len(pairs)} {task} rows, not {count}; ask for fewer")
        for item in [item for pair in pairs[: count // 2] for item in pair]:
            families.setdefault(digest(item.passage), []).append(_row(task, item))
    order = sorted(families)
    Random(seed).shuffle(order)
    return [row for family in order for row in families[family]], removed + more


def held_out(task: str, seed: int) -> list[GraderItem]:
    """Return the evaluation items of a task: a yes and a no in turn, so any even number from the start is balanced.

    From BoolQ's dev part and the stories that training never sees. For `relevant`, both items of a pair have the
    same question, and the no is the best passage that BM25 finds for it in another article among all of dev's.
    Raises UserError for a task that does not exist.
    """
    require_task(task)
    rng = Random(f"{seed} {task} held out")
    facts, tales = boolq("held out"), narrative("held out")
    rng.shuffle(facts)
    pairs = retrieved(facts, HELD_OUT // 2, rng) if task == "relevant" else pairs_of(task, facts, tales, rng)
    return [item for pair in pairs[: HELD_OUT // 2] for item in pair]


def _row(task: str, item: GraderItem) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "yes" if item.label else "no"}
    return {
        "id": item.id,
        "task": task,
        "kind": item.kind,
        "family": digest(item.passage),
        "messages": [*messages(task, item), answer],
    }


def write(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one JSON object a line; same rows, same bytes."""
    atomic_write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def stats(rows: Sequence[dict[str, Any]], tokenizer: "ChatTokenizer | None" = None) -> dict[str, Any]:
    """Count rows by task, label and kind; with a tokenizer (the model's), tokens too.

    `computed`: what is left of all tokens when batches of 16 neighbours share their beginnings.
    """
    total = len(rows) or 1
    answers = [row["messages"][-1]["content"] for row in rows]
    result: dict[str, Any] = {
        "rows": len(rows),
        "tasks": dict(sorted(Counter(row["task"] for row in rows).items())),
        "yes_share": round(answers.count("yes") / total, 3),
        "kinds": dict(sorted(Counter(f"{row['task']}: {row['kind']}" for row in rows).items())),
        "passages": len({row["family"] for row in rows}),
    }
    if tokenizer:
        whole = [tokenizer.encode(tokenizer.render(row["messages"], add_generation_prompt=False)) for row in rows]
        lengths = sorted(map(len, whole))
        result["tokens"] = {
            "all": sum(lengths), "mean": round(sum(lengths) / total, 1), "median": lengths[len(lengths) // 2],
            "p95": lengths[int(len(lengths) * 0.95)], "longest": lengths[-1], "computed": distinct_tokens(whole),
        }  # fmt: skip
    return result
