"""The passages and questions that the grader's data is made of, in two sides that share no article and no story.

BoolQ        passages of Wikipedia with a yes/no question each. Held out: the published dev part, which step 3 retrieves
             from. Training: what else is labelled, without the articles, passages and questions that dev has too.
NarrativeQA  summaries of books and films with questions and written answers. By the story's hash, half of the stories
             are held out. A summary is cut into windows of a few sentences.
PubMedQA is left out: its contexts have 330 tokens and are of a kind that nothing else here has.

What the training side has in common with any evaluation text (13 words in a row) is removed and counted.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.artifacts import fetch
from shared.errors import UserError
from step4_finetune.bm25 import COMMON
from step4_finetune.decontaminate import spans, words

Side = Literal["train", "held out"]

TRAIN_WORDS = 90  # of a passage: time goes with tokens. Leaves out half of BoolQ's
HELD_OUT_WORDS = 200  # leaves out 1 in 20
WINDOW_WORDS = 80  # of a summary
FEWEST_WORDS = 20


@dataclass(frozen=True)
class Question:
    """A question that its passage answers. answers: in words, as annotators wrote them; none for a yes/no question."""

    text: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A piece of text with the questions that it answers. topic: the article or story that it is from."""

    id: str
    topic: str
    text: str
    questions: tuple[Question, ...]


def boolq(side: Side) -> list[Passage]:
    """Return BoolQ's passages of one side, each with its questions. Raises what fetch raises."""
    folder = fetch("boolq")
    dev = read(folder / "dev.jsonl", "question", "passage", "title")
    if side == "held out":
        rows = [(row["title"], tidy(row["passage"]), row["question"]) for row in dev]
        return _grouped("boolq-dev", rows, HELD_OUT_WORDS)
    taken = {row["title"].lower() for row in dev} | {tidy(row["passage"]) for row in dev}
    taken |= {row["question"] for row in dev}
    rows = []
    for row in read(folder / "combined.jsonl", "question", "passage"):
        title, _, text = row["passage"].partition(" -- ")
        text = tidy(text)
        if "label" in row and text and not {title.lower(), text, row["question"]} & taken:
            rows.append((title, text, row["question"]))
    passages = _grouped("boolq-train", rows, TRAIN_WORDS)
    # Half of them under their title: a reader of chunks may show a heading with them, or not.
    return [p if _bit(p.text) else Passage(p.id, p.topic, f"{p.topic}\n{p.text}", p.questions) for p in passages]


def _grouped(name: str, rows: Iterable[tuple[str, str, str]], longest: int) -> list[Passage]:
    """One passage for each text of (title, text, question), with all its questions."""
    found: dict[str, tuple[str, list[Question]]] = {}
    for title, text, question in rows:
        if FEWEST_WORDS <= len(text.split()) <= longest:
            found.setdefault(text, (title, []))[1].append(Question(ask(question)))
    # Each question once: a few are asked twice of the same passage.
    return [
        Passage(f"{name}-{number}", title, text, tuple(dict.fromkeys(questions)))
        for number, (text, (title, questions)) in enumerate(found.items())
    ]


def narrative(side: Side) -> list[Passage]:
    """Return windows of the summaries of one side. A question stands with the window that states its answer.

    That is the window with most of the question's words among those with an answer in it, word for word; questions
    whose answer is nowhere in the summary are left out. Raises what fetch raises.
    """
    stories: dict[str, list[Question]] = {}
    for row in read(fetch("narrativeqa"), "question", "passage", "answer"):
        answers = tuple(dict.fromkeys(answer.strip(" .") for answer in row["answer"] if answer.strip(" .")))
        stories.setdefault(tidy(row["passage"]), []).append(Question(ask(row["question"]), answers))
    result = []
    for number, (text, questions) in enumerate(stories.items()):
        if _bit(text) == (side == "held out"):
            windows = cut(text)
            answered: list[list[Question]] = [[] for _ in windows]
            for question in questions:
                place = place_of(question, windows)
                if place is not None:
                    answered[place].append(question)
            for part, (window, asked) in enumerate(zip(windows, answered, strict=True)):
                unique = {question.text: question for question in asked}
                name = f"narrative-{number}.{part}"
                result.append(Passage(name, f"story {number}", window, tuple(unique.values())))
    return result


def place_of(question: Question, windows: Sequence[str]) -> int | None:
    """The window that answers a question, or None when no answer is in any, or the question's words are not."""
    asked = content(question.text)
    scores = [
        len(asked & content(window)) if any(states(window, answer) for answer in question.answers) else 0
        for window in windows
    ]
    best = max(range(len(windows)), key=lambda place: scores[place])
    return best if scores[best] >= 2 else None


def states(text: str, answer: str) -> bool:
    """Whether the words of an answer stand in a text, in a row."""
    return f" {' '.join(words(answer))} " in f" {' '.join(words(text))} "


def cut(text: str) -> list[str]:
    """Cut a text into windows of whole sentences, of WINDOW_WORDS at most where the sentences allow it."""
    windows: list[str] = []
    for sentence in sentences(text):
        if windows and len(windows[-1].split()) + len(sentence.split()) <= WINDOW_WORDS:
            windows[-1] += f" {sentence}"
        else:
            windows.append(sentence)
    return windows


def sentences(text: str) -> list[str]:
    """Split at full stops that end a sentence, not at those of initials and titles."""
    return re.split(r"(?<=[a-z0-9)'\"][.!?])(?<!\b[A-Z][a-z][.])(?<!\bMrs[.])(?<!\bSt[.])\s+(?=[A-Z\"'])", text)


def content(text: str) -> set[str]:
    """The words that say what a text is about."""
    return set(words(text)) - COMMON


def decontaminate(passages: Iterable[Passage]) -> tuple[list[Passage], Counter[str]]:
    """Return passages that share no 13 words in a row with an evaluation text, and how many shared them, by source.

    A passage goes when its text overlaps; a question goes alone, its passage with it when it was the only one.
    """
    evaluation = [text for p in [*boolq("held out"), *narrative("held out")] for text in _texts(p)]
    found = set().union(*map(spans, [*evaluation, *unsolvable()]))
    kept, removed = [], Counter[str]()
    for passage in passages:
        source = passage.id.split("-")[0]
        questions = tuple(q for q in passage.questions if not spans(q.text) & found)
        removed[f"{source} questions"] += len(passage.questions) - len(questions)
        if spans(passage.text) & found:
            removed[f"{source} passages"] += 1
        elif questions or not passage.questions:
            kept.append(Passage(passage.id, passage.topic, passage.text, questions))
    return kept, +removed


def _texts(passage: Passage) -> list[str]:
    return [passage.text, *(question.text for question in passage.questions)]


def unsolvable() -> list[str]:
    """The texts of `unsolvable_questions`, which is evaluation only. Raises what fetch raises."""
    rows = read(fetch("unsolvable-questions"), "input")
    texts = [row["input"][-1]["content"].removeprefix("Question: ") for row in rows]
    return [part for text in texts for part in text.split("\n Context: ", 1)]


def read(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Read JSON lines, and make sure of the keys. Raises UserError for a file of another shape."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        if all(key in row for row in rows for key in keys):
            return rows
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not JSON lines: {error}") from None
    raise UserError(f"{path} is not in the form this step knows: a row has no {' or '.join(keys)}")


def tidy(text: str) -> str:
    """Plain quotation marks and single spaces: the data has TeX's quotes and the traces of tokenising."""
    return " ".join(text.replace("``", '"').replace("''", '"').replace("--", "–").split())


def ask(question: str) -> str:
    """A question as people write it: BoolQ's are in lower case and without a question mark."""
    text = tidy(question).rstrip("?. ")
    return f"{text[:1].upper()}{text[1:]}?"


def _bit(text: str) -> bool:
    """A coin toss that is the same for the same text, in every process."""
    return bool(hashlib.sha256(text.encode()).digest()[0] & 1)
