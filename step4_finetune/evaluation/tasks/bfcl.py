"""Function calling on the leaderboard's questions, judged as the leaderboard does (shared/bfcl.py).

The five non-live categories. The live ones are training data here (step4_finetune/real_data.py), so they are not asked.
"""

import json
from typing import Any

from shared import bfcl
from step4_finetune.evaluation.task import Answer, Item, Score, Task

CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")


def task(limit: int | None = None) -> Task:
    """The leaderboard's items, at most `limit` of each category. Raises what bfcl.load raises."""
    return of_items("bfcl", [item for category in CATEGORIES for item in bfcl.load(category, limit)])


def of_items(name: str, questions: list[bfcl.Item]) -> Task:
    """A task of questions in the leaderboard's form."""
    items = [Item(q.id, q.category, q.messages, q, q.tools) for q in questions]
    return Task(name, items, ("constrained", "native"), score, lambda item: item.gold.gold is not None)


def score(item: Item, answer: Answer, threshold: float) -> Score:
    """Judge the calls; below the threshold none was made."""
    calls: list[bfcl.Call] = []
    called = answer.probability is None or answer.probability >= threshold
    for call in answer.calls if called else []:
        arguments = _arguments(call["arguments"])
        if arguments is None:
            return Score(False, "invalid JSON", f"the arguments of {call['name']} are not a JSON object")
        calls.append((call["name"], arguments))
    verdict = bfcl.score(item.gold, calls)
    return Score(verdict.correct, verdict.kind, verdict.detail)


def _arguments(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "{}")  # OpenAI's models send "" for no arguments
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
