"""The data of the regression tasks, written in one form: what lm_eval_tasks/*.yaml read.

OpenBookQA, PIQA and CommonsenseQA have four, two and five choices with a right one. HellaSwag has no answers in the
pinned artifact: which ending the model chooses can be compared between two models, not judged. The text for perplexity
is from those stories of NarrativeQA that no training data is made of.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.artifacts import fetch
from shared.errors import UserError
from shared.files import atomic_write
from step4_finetune.grader_sources import narrative, read

ARTIFACT = "general-ability"
# Task -> its file, and how many choices a question has.
CHOICE_TASKS = {
    "openbookqa": ("OpenBookQA/test.jsonl", 4),
    "hellaswag": ("HellaSwag/test.jsonl", 4),
    "piqa": ("PIQA/validation.jsonl", 2),
    "commonsenseqa": ("CommonsenseQA/validation.jsonl", 5),
}
UNLABELLED = ("hellaswag",)
PIECE_WORDS = 200


def prepare(folder: Path, limit: int | None) -> str:
    """Write NAME.jsonl for each task into the folder; return a digest of all of it.

    limit: items of each task at most, evenly spaced. Raises what fetch raises, and UserError for data of another shape.
    """
    source = fetch(ARTIFACT)
    digest = hashlib.sha256()
    rows = {name: choice_rows(source / path, count) for name, (path, count) in CHOICE_TASKS.items()}
    rows["perplexity"] = [{"text": text} for text in pieces()]
    for name, items in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in evenly(items, limit))
        atomic_write(folder / f"{name}.jsonl", text)
        digest.update(text.encode())
    return digest.hexdigest()[:12]


def evenly(rows: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """At most `limit` rows, evenly spaced over all."""
    count = min(limit or len(rows), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def choice_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """Questions with `count` choices. gold: the place of the right one; 0 where nothing says which it is.

    Rows with another number of different choices are left out: 27 of 1,221 in CommonsenseQA, where the same
    choice stands twice or the packaging broke a line.
    Raises UserError when that leaves none.
    """
    rows = []
    for row in read(path, "question", "answer"):
        unlabelled = isinstance(row["answer"], list)
        choices = row["answer"] if unlabelled else [_bare(line) for line in row["options"].strip().split("\n")]
        answer = choices[0] if unlabelled else _bare(row["answer"])
        if len(choices) == len(set(choices)) == count and answer in choices:
            rows.append({"question": row["question"].strip(), "choices": choices, "gold": choices.index(answer)})
    if not rows:
        raise UserError(f"{path} is not in the form this step knows: no question has {count} choices and an answer")
    return rows


def _bare(choice: str) -> str:
    """Return "A. quit eating lunch out" without the letter, and without a "?" that belongs to the question."""
    return re.sub(r"^[A-E]\. ", "", choice).strip().rstrip("?").strip()


def pieces() -> list[str]:
    """Prose in pieces of exactly PIECE_WORDS words; what is left of a story at its end is dropped."""
    stories: dict[str, list[str]] = {}
    for window in narrative("held out"):
        stories.setdefault(window.topic, []).extend(window.text.split())
    return [
        " ".join(words[start : start + PIECE_WORDS])
        for words in stories.values()
        for start in range(0, len(words) - PIECE_WORDS + 1, PIECE_WORDS)
    ]
