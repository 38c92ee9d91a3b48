"""Does the passage support this answer? The check against invented answers, after an answer was written."""

from step4_finetune.evaluation.task import Task
from step4_finetune.evaluation.tasks.graded import held_out_task


def task(limit: int | None = None) -> Task:
    """At most `limit` held-out answers with their passages. Raises what grader_data.held_out raises."""
    return held_out_task("grounded", limit)
