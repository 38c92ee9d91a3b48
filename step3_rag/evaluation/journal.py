"""Measure questions one at a time and keep each as a line: what was killed goes on, what is done is only read.

A file's first line says what was measured (the header); a file with another header is refused, so that two settings
never mix. Nothing is scored here: outcomes are kept as they came, so that a better score needs no new run.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared.errors import UserError
from step3_rag.evaluation.datasets import Question

Outcome = dict[str, Any]


def measure(
    questions: Sequence[Question],
    one: Callable[[Question], Outcome],
    path: Path,
    header: dict[str, Any],
    advance: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Return the outcome of every question, in order; `one` is called for those that `path` does not hold yet.

    advance: called once per question, done now or before. Raises UserError when the file is of another measurement.
    """
    done, whole = _read(path, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        os.truncate(path, whole)  # the half line that a kill leaves
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size == 0:
            file.write(_line(header))
        for question in questions:
            if question.id not in done:
                done[question.id] = one(question)
                file.write(_line({"id": question.id} | done[question.id]))
                file.flush()
            advance()
    return [done[question.id] for question in questions]


def path_of(folder: Path, header: dict[str, Any]) -> Path:
    """Return where a measurement is kept: a name for people, and a digest of the header, so that settings never mix."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:8]
    parts = [header[key] for key in ("measured", "dataset", "arm") if key in header]
    name = "-".join(re.findall(r"[a-z0-9]+", " ".join(parts).lower()))
    return folder / f"{name}-{digest}.jsonl"


def missing(questions: Sequence[Question], path: Path, header: dict[str, Any]) -> int:
    """Return how many questions `measure` would still have to ask. Raises as it does."""
    done, _ = _read(path, header)
    return sum(question.id not in done for question in questions)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path, header: dict[str, Any]) -> tuple[dict[str, Outcome], int]:
    """The outcomes in a file by question, and the bytes that its whole lines take."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}, 0
    whole = raw.rfind(b"\n") + 1
    refused = UserError(f"{path} holds another measurement: delete it, or use --output")
    try:
        lines = [json.loads(line) for line in raw[:whole].splitlines()]
        outcomes = {line.pop("id"): line for line in lines[1:]}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise refused from None
    ours = lines[0] == json.loads(json.dumps(header)) if lines else _line(header).encode().startswith(raw)
    if not ours:
        raise refused
    return outcomes, whole
