"""The tasks. Each file here makes one, with `task(limit)`; adding a file with that function adds a task."""

import importlib

from shared.errors import UserError
from step4_finetune.evaluation.task import Task

NAMES = ("bfcl", "unseen_tools", "relevant", "grounded", "answerable", "unsolvable")


def load_task(name: str, limit: int | None = None) -> Task:
    """Make a task. limit: items of each group at most, evenly spaced.

    Raises UserError for an unknown name or a limit below 1, and what fetching its data raises.
    """
    if name not in NAMES:
        raise UserError(f"there is no task {name!r}; there are {', '.join(NAMES)}")
    if limit is not None and limit < 1:
        raise UserError(f"the limit is {limit}; ask for at least 1 item")
    task: Task = importlib.import_module(f"{__name__}.{name}").task(limit)
    return task
