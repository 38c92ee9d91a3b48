"""Can the question be answered from the passage? `unsolvable_questions`: 150 that can, 150 made to look as if.

People wrote these questions, for another purpose and in another style than anything in the grader's training data. So
it tests transfer: a grader that is good at answerable.py and not here has learnt how our negatives are made.
"""

import json

from shared.artifacts import fetch
from shared.errors import UserError
from step4_finetune.evaluation.task import Task
from step4_finetune.evaluation.tasks.graded import graded


def task(limit: int | None = None) -> Task:
    """The 300 questions, at most `limit`. Raises what fetch raises, and UserError for a file of another shape."""
    from step4_finetune.grader_data import GraderItem

    path = fetch("unsolvable-questions")
    items = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").strip().split("\n")):
            row = json.loads(line)
            asked, passage = row["input"][-1]["content"].removeprefix("Question: ").split("\n Context: ", 1)
            label = {"Solveable": True, "Unsolveable": False}[row["ideal"]]
            items.append(GraderItem(f"unsolvable-{number}", asked.strip(), passage.strip(), "", label, row["ideal"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not in the form this step knows: {error!r}") from None
    return graded("unsolvable", "answerable", items, limit)
