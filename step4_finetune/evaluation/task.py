"""What an evaluation is made of: questions, a way to put them to a model, and a score.

    Item     one question: messages, tools, the right answer (which only `score` looks at)
    Run      one column of the table: a model at the endpoint, the prompt before the question, how it is asked
    Answer   what came back, kept as it came, so that a better scorer needs no new run
    Task     items + score; one small file in tasks/ (tasks/graded.py is the shortest)

asking.py turns (Run, Item) into an Answer, runner.py does so for all items, comparison.py counts. A task knows nothing
of models and a run nothing of tasks. So every task can be put to every model, and two columns differ in exactly the
one thing that they are meant to differ in. Three ways to ask:

    native        send the tools and let the model write. What a user of the model gets.
    constrained   read from one token's log-probabilities how likely a call is, then force calls that obey the tools'
                  schemas. The decision and the form are measured apart: the threshold can be set afterwards, and a
                  model that cannot write JSON still shows whether it knows the values.
    choice        probability of "yes" against "no" as the answer's first word. A graded answer instead of a bare one:
                  it can be ranked (AUROC) and held to what it promises (calibration).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from step4_finetune.evaluation.prompt import Message, Prompt

Strategy = Literal["native", "constrained", "choice"]


@dataclass(frozen=True)
class Item:
    """One question. group: the part of the task that it counts for. gold: whatever the task's `score` needs."""

    id: str
    group: str
    messages: list[Message]
    gold: Any
    tools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of what is asked: an answer kept from an earlier run counts only while this is the same."""
        asked = json.dumps([self.messages, self.tools], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(asked.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Answer:
    """What a model said to an item.

    asked: the item's digest. calls: {"name", "arguments"}, the arguments as text. probability: of a call (constrained)
    or of "yes" (choice); None for native. refused: why the endpoint would not take the item ("" if it did); only a
    prompt that is too long for the model counts as that, other errors end the run. seconds: with other requests
    running beside it.
    """

    id: str
    asked: str
    text: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    probability: float | None = None
    prompt_tokens: int | None = None
    seconds: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class Score:
    """Whether an answer is right; if not, the kind of failure (counted in the report) and a sentence about it."""

    correct: bool
    kind: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Run:
    """One column. model: its name at the endpoint. prompt: None for zero-shot. Always greedy.

    weights: something that changes when the model does (runner.weights_digest); a name alone would let the answers of
    an adapter be reused after it was trained again.
    """

    label: str
    model: str
    strategy: Strategy
    prompt: Prompt | None = None
    weights: str = ""
    max_tokens: int = 256


@dataclass(frozen=True)
class Task:
    """Items and how to judge answers to them.

    strategies: those that fit, the usual one first. score: (item, answer, threshold); from that probability on an
    answer counts as a call, or as a yes. positive: whether it should, which is what Answer.probability is about.
    """

    name: str
    items: Sequence[Item]
    strategies: tuple[Strategy, ...]
    score: Callable[[Item, Answer, float], Score]
    positive: Callable[[Item], bool]


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items of each group, evenly spaced: neighbours are often alike, the first n would be biased."""
    if limit is None:
        return list(items)
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    chosen = []
    for group in groups.values():
        count = min(limit, len(group))
        chosen += [group[i * len(group) // count] for i in range(count)]
    return chosen
