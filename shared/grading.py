"""What a grader is asked about a passage, and how sure it is of yes: in training (step 4) as in use (step 3).

relevant    is this passage about this question?
grounded    does this passage support this answer?
answerable  can this question be answered from this passage alone?

The model answers with the one token `yes` or `no`; its probability is the grade, and no prose has to be understood.
The prompt begins with the passage: whatever else is asked about it, its states are computed once, in training
(step4_finetune/collate.py) as in the engine's prefix cache.

    python -m pytest tests/step3/test_graders.py tests/step4/test_grader_data.py
"""

import math
from collections.abc import Mapping
from typing import Literal

from shared.errors import UserError

Task = Literal["relevant", "grounded", "answerable"]
TASKS: tuple[Task, ...] = ("relevant", "grounded", "answerable")

ASKED = {
    "relevant": "Is the passage relevant to the question? Answer yes or no.",
    "grounded": "Does the passage support the answer? Answer yes or no.",
    "answerable": "Can the question be answered from the passage alone? Answer yes or no.",
}
ALTERNATIVES = 20  # of the first token: the most that OpenAI's API gives, and what probability_of_yes wants to see


def messages(task: str, passage: str, question: str, answer: str = "") -> list[dict[str, str]]:
    """Return the chat messages that ask for a grade; the model's next token is `yes` or `no`.

    passage: several at once are joined with line breaks. answer: empty but for `grounded`.
    Raises UserError for a task that does not exist. A changed byte makes every trained grader worse: train again.
    """
    require_task(task)
    line = f"Answer: {answer}\n" if answer else ""
    text = f"Passage: {passage}\n\nQuestion: {question}\n{line}{ASKED[task]}"
    return [{"role": "user", "content": text}]


def require_task(task: str) -> None:
    """Raise UserError for a task that does not exist."""
    if task not in TASKS:
        raise UserError(f"the grader has no task {task!r}; choose one of {', '.join(TASKS)}")


def probability_of_yes(first_token: Mapping[str, float]) -> float:
    """Return P(yes) / (P(yes) + P(no)) over all spellings of the two: " Yes", "YES", "y".

    first_token: text → log-probability of the likeliest tokens in the first place, as many as the endpoint gives.
    A word outside the list is given what the last of the list has, the most it can have: with 0 instead, all answers
    whose list lacks "no" would tie at 1. Neither in the list: 0.5. Raises ValueError for an empty list.
    """
    if not first_token:
        raise ValueError("no log-probabilities")

    def mass(word: str) -> float:
        spelled = [p for token, p in first_token.items() if token.strip() and word.startswith(token.strip().lower())]
        return sum(math.exp(p) for p in spelled) or math.exp(min(first_token.values()))

    yes, no = mass("yes"), mass("no")
    return yes / (yes + no) if yes + no > 0 else 0.5
