"""Graders: how sure is somebody that a passage is relevant, that it answers the question, that it supports an answer?

llm        the chat model is asked for yes or no; the grade is the probability of yes against that of no, read from the
           log-probabilities of one token, so there is no prose to understand and a threshold can be chosen.
adapter    the same questions to the same model with the LoRA adapter that step 4 trains for them, named `grader`.
embedding  cosine between the texts, by the model that embeds the passages.
overlap    share of the words that are found in the passage: the baseline, and free.

All give 0 to 1, higher is surer, but on scales of their own: the thresholds of each are in thresholds.toml.

    python -m step3_rag ask "who wrote the first compiler" --grader overlap --trace
    python -m pytest tests/step3/test_graders.py
"""

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import grading
from shared.errors import UserError
from shared.foreign_text import unmarked
from shared.grading import Task
from step3_rag.citations import split, stated
from step3_rag.encoder import TextEncoder
from step3_rag.lexical import words
from step3_rag.passages import Passage

if TYPE_CHECKING:
    from shared.stats import Estimate
    from step3_rag.chat_model import ChatModel

GRADERS = ("llm", "adapter", "embedding", "overlap")
DEFAULT_GRADER = "embedding"
WITHOUT_ADAPTER = "embedding"  # the default in its place where that is the adapter and the model in use has none
ADAPTER = "grader"  # the name under which an endpoint serves step 4's adapter
THRESHOLDS = Path(__file__).with_name("thresholds.toml")
AT_ONCE = 8  # requests under way; the embedded engine runs 8 sequences in one batch


@dataclass(frozen=True)
class Case:
    """One thing to grade. answer: only for the task `grounded`."""

    passage: str
    question: str
    answer: str = ""


# Task and cases in, one number from 0 to 1 per case out, higher is surer of yes.
Grader = Callable[[Task, Sequence[Case]], list[float]]


def passage_text(passage: Passage) -> str:
    """What a grader reads of a passage: its text, under the titles that it does not contain (as step 4 trains it)."""
    return f"{passage.context}\n{passage.text}" if passage.context else passage.text


def yes_or_no(model: "ChatModel") -> Grader:
    """Return the grader that asks a chat model: `llm`, or `adapter` where the model has it.

    The passage comes first in the prompt, so what is asked later about the same passage reuses its states in the
    engine's prefix cache; cases of one passage should therefore be neighbours.
    Raises UserError when the endpoint fails or returns no log-probabilities.
    """
    from step3_rag.chat_model import model_errors

    asking = model.chat.bind(max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=grading.ALTERNATIVES)

    def grade(task: Task, cases: Sequence[Case]) -> list[float]:
        # Without special tokens: a document must not be able to end the user's turn and grade itself.
        texts = [tuple(unmarked(text) for text in (case.passage, case.question, case.answer)) for case in cases]
        prompts: list[Any] = [grading.messages(task, *text) for text in texts]
        with model_errors():
            replies = asking.batch(prompts, {"max_concurrency": AT_ONCE})
        return [grading.probability_of_yes(_first_token(reply.response_metadata)) for reply in replies]

    return grade


def _first_token(metadata: dict[str, Any]) -> dict[str, float]:
    """The log-probabilities in the place of the answer's first token, from what LangChain keeps of the response."""
    content = (metadata.get("logprobs") or {}).get("content") or [{}]
    found = {entry["token"]: float(entry["logprob"]) for entry in content[0].get("top_logprobs") or []}
    if not found:
        raise UserError(
            "the endpoint returns no logprobs, which the graders llm and adapter read: use --grader embedding",
            exit_code=1,
        )
    return found


def embedding(encoder: TextEncoder) -> Grader:
    """Return the grader by cosine; negative ones count as 0.

    relevant: question and passage. answerable: question and the passage's nearest sentence. grounded: question with
    answer and the passage's nearest sentence; "Yes." or "His brother" alone says too little.
    """

    def grade(task: Task, cases: Sequence[Case]) -> list[float]:
        asked = [f"{case.question} {case.answer}" if task == "grounded" else case.question for case in cases]
        parts = [[case.passage] if task == "relevant" else _sentences(case.passage) for case in cases]
        unique = list(dict.fromkeys([*asked, *(part for texts in parts for part in texts)]))
        rows = dict(zip(unique, encoder.encode(unique), strict=True))
        return [
            max((min(1.0, max(0.0, float(rows[text] @ rows[part]))) for part in texts), default=0.0)
            for text, texts in zip(asked, parts, strict=True)
        ]

    return grade


def overlap(task: Task, cases: Sequence[Case]) -> list[float]:
    """Grade by the share of words found.

    relevant: the question's words in the passage. answerable: in its best sentence. grounded: the answer's words in the
    passage, the question's where the answer has none ("Yes."). 0 where there is no word to look for.
    """
    grades = []
    for case in cases:
        wanted = (stated(case.answer) if task == "grounded" else set()) or set(words(case.question))
        texts = _sentences(case.passage) if task == "answerable" else [case.passage]
        found = max((len(wanted & set(words(text))) for text in texts), default=0)
        grades.append(found / len(wanted) if wanted else 0.0)
    return grades


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end, _ in split(text)]


# -- does an answer answer the question? ----------------------------------------------------------------------------

_YES_NO_QUESTION = re.compile(
    r"\W*(?:is|are|was|were|am|do|does|did|can|could|will|would|has|have|had|should|shall|may|might|must)\b", re.I
)
_REFUSAL = re.compile(
    r"\b(?:I|we) (?:do not|don.t|cannot|can.t|am unable|am not able|are unable)\b"
    r"|\bnot (?:provided|mentioned|specified|stated|given|said) (?:in|by) the (?:given )?(?:passage|text|context)"
    r"|\b(?:passage|text|context)s? (?:do|does) not (?:\w+ly )?(?:say|state|mention|provide|specify|contain|answer)\b",
    re.I,
)


def is_yes_no(question: str) -> bool:
    """Whether a question asks for yes or no: whether it begins with a verb such as "is" or "can"."""
    return bool(_YES_NO_QUESTION.match(question))


def answers(grader: Grader, question: str, answer: str, quotes: str) -> float:
    """Return how sure the grader is that an answer answers the question. quotes: the cited spans that it stands on.

    A refusal ("the passage does not mention …") answers nothing. Else the quotes are taken for a passage: can the
    question be answered from them alone? The answer itself says too little: of NarrativeQA's written answers and those
    to another question about the same story, `overlap` told apart 0.49 (AUROC, 328), by their quotes 0.77 (281).
    """
    if _REFUSAL.search(answer):
        return 0.0
    return grader("answerable", [Case(quotes, question)])[0]


# -- thresholds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """From which grade on it counts as yes. answers: of the function `answers`; the others are the grader's tasks."""

    relevant: float
    answerable: float
    grounded: float
    answers: float


def load_thresholds(grader: str, path: Path = THRESHOLDS) -> Thresholds:
    """Return a grader's thresholds. Raises UserError for an unknown grader and a file that does not have them all."""
    if grader not in GRADERS:
        raise UserError(f"--grader {grader!r}: use one of {', '.join(GRADERS)}")
    try:
        table = tomllib.loads(path.read_text())[grader]
        return Thresholds(**{field.name: float(table[field.name]) for field in fields(Thresholds)})
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be used ({type(error).__name__}: {error}); restore it from git") from None


@dataclass(frozen=True)
class Calibration:
    """threshold: the best cut on the data it was chosen on. balanced_accuracy: there, so a little too good.

    auroc: how often a yes outscores a no, with its 95 % interval; it does not depend on the threshold.
    """

    threshold: float
    balanced_accuracy: float
    auroc: "Estimate"
    positives: int
    negatives: int


def calibrate(grades: Sequence[float], labels: Sequence[bool]) -> Calibration:
    """Choose the threshold that tells yes from no best on labelled data, both sides counting half (Youden's J).

    Cuts lie midway between neighbouring grades; of equally good ones the one in the widest gap is taken.
    Use items that no evaluation uses. Raises ValueError as shared.stats.auroc does.
    """
    import numpy as np

    from shared.stats import auroc

    area = auroc(grades, labels)
    values, truth = np.asarray(grades, dtype=np.float64), np.asarray(labels, dtype=bool)
    ordered = np.unique(values)
    cuts = np.concatenate([ordered[:1], (ordered[1:] + ordered[:-1]) / 2])  # the first one says yes to everything
    gaps = np.concatenate([[0.0], ordered[1:] - ordered[:-1]])
    right_yes = (values[truth] >= cuts[:, None]).mean(axis=1)
    right_no = (values[~truth] < cuts[:, None]).mean(axis=1)
    quality = ((right_yes + right_no) / 2).round(12)
    best = int(np.lexsort((gaps, quality))[-1])
    return Calibration(float(cuts[best]), float(quality[best]), area, int(truth.sum()), int((~truth).sum()))
