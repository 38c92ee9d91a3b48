"""Keep the evaluation out of the training data: whole questions, parts of them, function names and descriptions.

An example is removed when its question shares 13 consecutive words with an evaluation question (the measure of Brown
et al., "Language Models are Few-Shot Learners", 2020, appendix C; shorter questions must differ as a whole), or when
one of its tools has the name or the description of an evaluation tool. The report says how many went, and why.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from shared import bfcl
from step4_finetune.examples import Example

EVALUATION = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
WINDOW = 13  # words


@dataclass(frozen=True)
class Evaluation:
    """What must not appear in the training data."""

    spans: frozenset[tuple[str, ...]]
    names: frozenset[str]
    descriptions: frozenset[str]

    def overlap(self, example: Example) -> str:
        """Say what an example has in common with the evaluation: "question", "name", "description" or ""."""
        if spans(example.question) & self.spans:
            return "question"
        functions = [tool["function"] for tool in example.tools]
        if any(plain_name(function["name"]) in self.names for function in functions):
            return "name"
        # Only whole sentences: "Get the weather" alone is nobody's.
        wanted = [words(function.get("description", "")) for function in functions]
        return "description" if any(len(w) > 4 and " ".join(w) in self.descriptions for w in wanted) else ""


def evaluation(categories: Iterable[str] = EVALUATION) -> Evaluation:
    """Collect the evaluation side of the leaderboard. Raises what bfcl.load raises."""
    items = [item for category in categories for item in bfcl.load(category)]
    questions = [m["content"] for item in items for m in item.messages if m["role"] == "user"]
    functions = [tool["function"] for item in items for tool in item.tools]
    return Evaluation(
        frozenset(span for question in questions for span in spans(question)),
        frozenset(plain_name(function["name"]) for function in functions),
        frozenset(" ".join(words(function["description"])) for function in functions),
    )


def words(text: str) -> list[str]:
    """Words and numbers in lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def plain_name(name: str) -> str:
    """A function name without case and separators, so that math.gcd, math_gcd and mathGcd are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def spans(text: str) -> set[tuple[str, ...]]:
    """All runs of WINDOW words; a shorter text is one run."""
    found = words(text)
    return {tuple(found[i : i + WINDOW]) for i in range(max(1, len(found) - WINDOW + 1))} if found else set()


def remove(examples: Iterable[Example], against: Evaluation) -> tuple[list[Example], Counter[str]]:
    """Return the examples without overlap, and how many were removed for which reason."""
    kept, removed = [], Counter[str]()
    for example in examples:
        overlap = against.overlap(example)
        if overlap:
            removed[overlap] += 1
        else:
            kept.append(example)
    return kept, removed
