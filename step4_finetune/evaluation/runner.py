"""Put all items of a task to a model, many at a time, and keep every answer on disk as it comes.

    answers = asyncio.run(evaluate(client, run, task, path, endpoint="embedded"))

The file is JSON lines: a header that says what was measured, then one line per answered item, in the order in which
they finished. A killed run is continued by the same call, and loses the answers that were under way, no more. Answers
come back in the items' order, whatever the order in the file. An item that was changed since (its digest says so) is
asked again.
"""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shared.errors import UserError
from step4_finetune.evaluation.asking import ask
from step4_finetune.evaluation.task import Answer, Run, Task

if TYPE_CHECKING:
    from openai import AsyncOpenAI


async def evaluate(
    client: "AsyncOpenAI",
    run: Run,
    task: Task,
    path: Path,
    *,
    endpoint: str,
    concurrency: int = 8,
    progress: Callable[[Answer], None] = lambda _: None,
) -> list[Answer]:
    """Ask for all items that the file does not hold yet; return the answers in the items' order.

    endpoint: where the model is ("embedded", or its URL), for the header. concurrency: requests at a time. progress:
    called with each new answer. Raises UserError when the file was made by other settings, when the task cannot be
    asked in the run's way, and what `ask` raises: the answers so far are kept.
    """
    if run.strategy not in task.strategies:
        raise UserError(f"{task.name} cannot be asked as {run.strategy}: use {' or '.join(task.strategies)}")
    header = header_of(run, task, endpoint)
    done = read_answers(path, header)
    missing = [item for item in task.items if item.id not in done or done[item.id].asked != item.digest]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size == 0:
            _append(file, header)
        queue = iter(missing)

        async def worker() -> None:
            for item in queue:  # shared by all workers: each takes the next one
                answer = await ask(client, run, item)
                done[item.id] = answer
                _append(file, asdict(answer))
                progress(answer)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(missing))):
                    group.create_task(worker())
        except* UserError as errors:
            raise errors.exceptions[0] from None
    return [done[item.id] for item in task.items]


def header_of(run: Run, task: Task, endpoint: str) -> dict[str, Any]:
    """What is measured: the first line of the file."""
    return {
        "label": run.label,
        "task": task.name,
        "model": run.model,
        "weights": run.weights,
        "endpoint": endpoint,
        "strategy": run.strategy,
        "prompt": run.prompt.label if run.prompt else "none",
        "max_tokens": run.max_tokens,
    }


def answers_path(folder: Path, run: Run, task: Task, endpoint: str) -> Path:
    """A file name for these settings: readable, and another one as soon as any of them differs."""
    digest = hashlib.sha256(json.dumps(header_of(run, task, endpoint)).encode()).hexdigest()[:8]
    label = re.sub(r"[^a-z0-9]+", "-", run.label.lower()).strip("-")
    return folder / f"{task.name}-{label}-{digest}.jsonl"


def weights_digest(path: Path) -> str:
    """Of an adapter's or model directory's safetensors: what tells a model from its retrained successor.

    Raises UserError when the directory has none.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path} holds no .safetensors file: name an adapter or a model directory")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]


def _append(file: IO[str], record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()


def read_answers(path: Path, header: dict[str, Any] | None = None) -> dict[str, Answer]:
    """The answers in a file, by item id; the last one where an item was asked again.

    A last line that a kill cut short is removed. A file that is not there has no answers. Raises UserError when the
    file is not one of ours, or (with `header`) was made by other settings.
    """
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            return {}
        if header is not None and lines[0] != header:
            differing = [key for key in header if lines[0].get(key) != header[key]]
            raise UserError(f"{path} was made with another {' and '.join(differing)}; delete it or write elsewhere")
        return {line["id"]: Answer(**line) for line in lines[1:]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a file of answers") from None


def read_header(path: Path) -> dict[str, Any]:
    """What a file of answers says it measured. Raises UserError when it is missing or not one of ours."""
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
        if "task" in header and "strategy" in header:
            return dict(header)
    except (OSError, ValueError, TypeError):
        pass
    raise UserError(f"{path} is not a file of answers; `eval` writes them")
