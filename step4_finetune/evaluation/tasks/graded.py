"""Questions about a passage that are answered with yes or no, and graded by how sure the model is of yes.

What relevant.py, grounded.py, answerable.py and unsolvable.py have in common. The prompt is the one that the grader is
trained on (step4_finetune/grader_data.py), so tuned and untuned models are asked in the same words.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from step4_finetune.evaluation.task import Answer, Item, Score, Task, spread

if TYPE_CHECKING:
    from step4_finetune.grader_data import GraderItem

SEED = 0  # of the held-out items


def held_out_task(name: str, limit: int | None) -> Task:
    """The held-out items of one of the grader's tasks. Raises what grader_data.held_out raises."""
    from step4_finetune.grader_data import held_out

    return graded(name, name, held_out(name, SEED), limit)


def graded(name: str, asked_as: str, items: "Iterable[GraderItem]", limit: int | None) -> Task:
    """A task of grader items, at most `limit`. asked_as: whose prompt of grader_data.messages they are asked with.

    Yes and no items are one group: a grader that always says yes must not look good in one of two.
    """
    from step4_finetune.grader_data import messages

    questions = [Item(item.id, name, list(messages(asked_as, item)), item) for item in items]
    return Task(name, spread(questions, limit), ("choice", "native"), score, lambda item: bool(item.gold.label))


def score(item: Item, answer: Answer, threshold: float) -> Score:
    """Judge by the probability of yes; without one (native) by the first word."""
    if answer.probability is not None:
        yes = answer.probability >= threshold
    else:
        word = re.match(r"\W*(yes|no)\b", answer.text, re.IGNORECASE)
        if word is None:
            return Score(False, "neither yes nor no", f"the answer begins {answer.text[:40]!r}")
        yes = word[1].lower() == "yes"
    if yes == item.gold.label:
        return Score(True)
    return Score(False, "wrong yes" if yes else "wrong no", f"the item is of the kind {item.gold.kind!r}")
