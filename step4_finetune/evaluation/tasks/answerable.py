"""Can the question be answered from the passage alone? The right one against another of the same article or story."""

from step4_finetune.evaluation.task import Task
from step4_finetune.evaluation.tasks.graded import held_out_task


def task(limit: int | None = None) -> Task:
    """At most `limit` held-out questions with their passages. Raises what grader_data.held_out raises."""
    return held_out_task("answerable", limit)
