"""The columns of a table: base zero-shot, base with its best prompt, and each adapter; and how one is measured.

    with connect() as endpoint:
        for column in [*base_columns(…), adapter_column(endpoint, Path("out/step4/tools_sft_full/adapter"))]:
            entry = measure(endpoint, column, "bfcl", Path("out/step4/eval"), limit=20)

record.py keeps the entries.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError

if TYPE_CHECKING:
    from shared.endpoint import Endpoint
    from step4_finetune.evaluation.task import Answer, Task

# Which file of evaluation/prompts/ suits a task, where it is not the one of its own name.
BEST_PROMPT = {"bfcl": "tools", "unseen_tools": "tools", "unsolvable": "answerable"}


@dataclass(frozen=True)
class Column:
    """Who is asked, and how. model: the name at the endpoint. prompt: of evaluation/prompts/, or a .md file.

    adapter: the directory behind `model`, "" for the base. weights: see task.Run.
    """

    label: str
    model: str
    prompt: str = ""
    adapter: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Entry:
    """A measured column, as the record keeps it. file: answers, beside the record. threshold: calls or yes from there.

    n: items. row: shared.results' metrics. changes: against the baseline column, by group, and in AUROC also
    against the other base columns; none for a base column.
    """

    label: str
    file: str
    limit: int | None
    strategy: str
    threshold: float
    adapter: str
    weights: str
    n: int
    row: dict[str, Any]
    baseline: str = ""
    changes: tuple[dict[str, Any], ...] = ()


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(
    endpoint: "Endpoint",
    column: Column,
    name: str,
    folder: Path,
    *,
    limit: int | None = None,
    strategy: str | None = None,
    threshold: float | None = None,
    concurrency: int = 8,
    progress: "Callable[[str, int], Callable[[Answer], None]]" = lambda label, total: lambda answer: None,
) -> Entry:
    """Ask one column for one task, continuing where an earlier call stopped; return its entry, without changes.

    strategy: None for the task's first. threshold: None for `usual_threshold`. progress: called with the column's
    label and the number of items, gives what is called with each new answer.
    Raises UserError for an unknown task or prompt, and what evaluation.runner.evaluate raises.
    """
    from openai import AsyncOpenAI

    from step4_finetune.evaluation.comparison import judge, row
    from step4_finetune.evaluation.prompt import load_prompt
    from step4_finetune.evaluation.runner import answers_path, evaluate
    from step4_finetune.evaluation.task import Run

    task = task_of(name, limit)
    chosen: Any = strategy or task.strategies[0]
    prompt = load_prompt(column.prompt) if column.prompt else None
    run = Run(column.label, column.model, chosen, prompt, column.weights)
    where = "embedded" if endpoint.engine is not None else endpoint.base_url
    path = answers_path(folder, run, task, where)
    advance = progress(f"{name}: {column.label}", len(task.items))

    async def ask() -> "list[Answer]":
        async with AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=4) as client:
            return await evaluate(
                client, run, task, path, endpoint=where, concurrency=concurrency, progress=advance
            )  # fmt: skip

    answers = asyncio.run(ask())
    used = usual_threshold(chosen, where, column.weights) if threshold is None else threshold
    judged = judge(task, {answer.id: answer for answer in answers}, used)
    figures = row(column.label, task, judged)["metrics"]
    return Entry(
        column.label, path.name, limit, chosen, used, column.adapter, column.weights, len(judged), dict(figures)
    )


def similarity(folder: Path, limit: int | None = None) -> Entry:
    """The column of tasks/relevant.py's `by_similarity`; of its figures only AUROC, the others would mean nothing.

    Raises what load_task and load_embedder raise.
    """
    from shared.files import atomic_write
    from step4_finetune.evaluation.comparison import judge, row
    from step4_finetune.evaluation.runner import answers_path, header_of
    from step4_finetune.evaluation.task import Run
    from step4_finetune.evaluation.tasks.relevant import by_similarity

    task, run = task_of("relevant", limit), Run("embedding similarity", "minilm-l6-v2", "choice")
    answers = by_similarity(task.items)
    path = answers_path(folder, run, task, "embedded")
    lines = [header_of(run, task, "embedded"), *map(asdict, answers)]
    atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    judged = judge(task, {answer.id: answer for answer in answers})
    figures = {"AUROC": dict(row(run.label, task, judged)["metrics"]["AUROC"])}
    return Entry(run.label, path.name, limit, "choice", 0.5, "", "", len(judged), figures)


@lru_cache(maxsize=16)
def task_of(name: str, limit: int | None) -> "Task":
    """load_task, once per process: every column is asked the same items. Raises what load_task raises."""
    from step4_finetune.evaluation.tasks import load_task

    return load_task(name, limit)


def usual_threshold(strategy: str, endpoint: str, weights: str) -> float:
    """From which probability on an answer counts as a call, or as a yes, where the user does not say.

    The embedded base model hardly ever begins a call (0 to 28 %), whether the question needs one or not; it is taken
    to call always, which shows what it knows of values, as in step 2. Everything else is taken at its word.
    """
    return 0.0 if strategy == "constrained" and endpoint == "embedded" and not weights else 0.5


# -- columns -----------------------------------------------------------------------------------------------------------


def base_columns(endpoint: "Endpoint", task: str, prompts: Sequence[str], name: str | None = None) -> list[Column]:
    """The columns without an adapter. prompts: "none" (zero-shot), "best" (the task's own), or as load_prompt takes.

    name: how the base is called in the table; None for its own name.
    """
    # Not endpoint.model, which is the adapted model where ADAPTER is set.
    model = endpoint.engine.model.name if endpoint.engine else endpoint.model
    weights = _weights_of(endpoint)
    columns = []
    for prompt in prompts:
        file = {"none": "", "best": BEST_PROMPT.get(task, task)}.get(prompt, prompt)
        title = {"none": "zero-shot", "best": "best prompt"}.get(prompt, f"prompt {Path(file).stem}")
        columns.append(Column(f"{name or model}, {title}", model, prompt=file, weights=weights))
    return columns


def adapter_column(endpoint: "Endpoint", adapter: str | Path, label: str | None = None) -> Column:
    """The column of an adapter: a directory or a published name, loaded here under its label (default: label_of).

    An endpoint elsewhere must serve it already, under this name. Raises UserError when there is no such adapter, or
    its label is taken.
    """
    from step4_finetune.evaluation.runner import weights_digest

    if endpoint.engine is None:
        return Column(label or str(adapter), str(adapter), adapter=str(adapter))
    directory = adapter_directory(adapter)
    name = endpoint.engine.model.add_adapter(directory, label or label_of(directory))
    return Column(name, name, adapter=str(directory), weights=weights_digest(directory))


def adapter_directory(adapter: str | Path) -> Path:
    """The directory of an adapter given as one, or by its name in shared/adapters. Raises UserError without one."""
    from step4_finetune.adapters import PUBLISHED, read_configuration

    directory = next((path for path in (Path(adapter), PUBLISHED / adapter) if path.is_dir()), None)
    if directory is None:
        published = sorted(path.name for path in PUBLISHED.glob("*") if path.is_dir())
        there = f"shared/adapters holds {', '.join(published)}" if published else "shared/adapters is empty"
        raise UserError(f"adapter {adapter}: neither a directory nor a published one ({there}); train it first")
    read_configuration(directory)
    return directory


def label_of(directory: Path) -> str:
    """tools_sft_full for out/step4/tools_sft_full/adapter: training calls every adapter directory alike."""
    path = directory.resolve()
    return path.parent.name if path.name == "adapter" else path.name


def _weights_of(endpoint: "Endpoint") -> str:
    """What tells a model directory from its retrained successor; "" for a pinned model, and for an endpoint's."""
    from shared import catalog
    from shared.models import resolve
    from step4_finetune.evaluation.runner import weights_digest

    if endpoint.engine is None:
        return ""
    model = endpoint.engine.model
    # A directory of one's own may be called as a pinned model is.
    pinned = model.name in catalog.load() and resolve(model.name) == model.directory
    return "" if pinned else weights_digest(model.directory)
