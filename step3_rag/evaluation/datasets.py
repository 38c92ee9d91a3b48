"""The questions that step 3 is measured on, and the documents that they are asked of.

boolq          the published dev part of BoolQ: 3,270 yes/no questions over 2,938 passages of Wikipedia.
narrativeqa    summaries of books and films with questions and written answers; 35 of 101 stories.
unsolvable     300 questions that people wrote about 299 passages; half of them have no answer in theirs.
calibration    where thresholds are chosen, and nothing else: BoolQ's training part and 11 more stories.

Nothing here was in the training data of step 4's grader. That trained on half of NarrativeQA's stories, by the hash of
the text, and on the passages of BoolQ's training part that have at most 90 words: so those stories are left out, and
calibration takes passages that are longer, from articles that the grader saw no passage of.

    python -m pytest tests/step3/test_evaluation_datasets.py     # the rule here and the one of step 4 agree
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from shared.artifacts import fetch
from shared.config import settings
from shared.errors import UserError
from shared.files import atomic_directory
from step3_rag.encoder import TextEncoder
from step3_rag.index import Index
from step3_rag.ingest import OnProgress, ingest
from step3_rag.passages import Passage

SEED = 0  # of every draw
GRADER_WORDS = 90  # step 4's grader trains on BoolQ passages of at most so many words
CALIBRATION_PASSAGES = 800  # of 2,561: enough for a choice among look-alikes, embedded in well under a minute


@dataclass(frozen=True)
class Question:
    """One question. answers: as annotators wrote them, "yes" or "no" for BoolQ; none where nobody can know.

    source: name of the document that it was asked about. answerable: whether that document answers it.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    source: str
    answerable: bool = True


@dataclass(frozen=True)
class Dataset:
    """documents: file name → text. questions: in an order that any number from the start is a fair sample of."""

    name: str
    documents: Mapping[str, str]
    questions: tuple[Question, ...]

    @property
    def digest(self) -> str:
        """Changes when a document does."""
        return hashlib.sha256(json.dumps(dict(self.documents)).encode()).hexdigest()[:12]


def load(name: str) -> Dataset:
    """Return one of DATASETS. Raises what fetch raises, and UserError for an artifact of another shape."""
    documents, questions = DATASETS[name]()
    return Dataset(name, documents, shuffled(questions))


def shuffled(questions: Iterable[Question]) -> tuple[Question, ...]:
    """The same order in every run; answerable and other questions take turns as long as there are both."""
    kinds: dict[bool, list[Question]] = {True: [], False: []}
    for question in questions:
        kinds[question.answerable].append(question)
    for part in kinds.values():
        Random(SEED).shuffle(part)
    turns = [(place, kind, q) for kind, part in kinds.items() for place, q in enumerate(part)]
    return tuple(question for _, _, question in sorted(turns, key=lambda turn: (turn[0], not turn[1])))


def unseen_by_grader(story: str) -> bool:
    """Whether step 4 left a story out of the grader's training: the rule of step4_finetune/grader_sources.py."""
    return bool(_hash(story)[0] & 1)


def _for_calibration(story: str) -> bool:
    """A quarter of the unseen stories."""
    return _hash(story)[1] < 64


def _hash(text: str) -> bytes:
    return hashlib.sha256(tidy(text).encode()).digest()


Parts = tuple[dict[str, str], list[Question]]


def _boolq() -> Parts:
    rows = _read(fetch("boolq") / "dev.jsonl", "question", "title", "passage", "answer")
    return _articles("boolq", [(r["title"], tidy(r["passage"]), r["question"], r["answer"] == "True") for r in rows])


def _articles(name: str, rows: Iterable[tuple[str, str, str, bool]]) -> Parts:
    """One Markdown document for each text of (title, text, question, answer), headed by its title."""
    numbers: dict[str, int] = {}
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for title, text, question, answer in rows:
        file = f"{name}-{numbers.setdefault(text, len(numbers)):04}.md"
        documents[file] = f"# {title}\n\n{text}\n"
        questions.append(Question(f"{name}-{len(questions)}", ask(question), ("yes" if answer else "no",), file))
    return documents, questions


def _narrativeqa() -> Parts:
    return _stories("narrativeqa", lambda story: unseen_by_grader(story) and not _for_calibration(story))


def _stories(name: str, wanted: Callable[[str], bool]) -> Parts:
    numbers: dict[str, int] = {}
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for place, row in enumerate(_read(fetch("narrativeqa"), "question", "passage", "answer")):
        number = numbers.setdefault(row["passage"], len(numbers))
        if wanted(row["passage"]):
            file = f"story-{number:03}.txt"
            documents[file] = "\n\n".join(tidy(part) for part in row["passage"].split("\n") if part.strip()) + "\n"
            answers = tuple(dict.fromkeys(tidy(answer) for answer in row["answer"] if answer.strip()))
            questions.append(Question(f"{name}-{place}", ask(row["question"]), answers, file))
    return documents, questions


def _unsolvable() -> Parts:
    path = fetch("unsolvable-questions")
    numbers: dict[str, int] = {}
    documents: dict[str, str] = {}
    questions: list[Question] = []
    try:
        for place, row in enumerate(_read(path, "input", "ideal")):
            asked, text = row["input"][-1]["content"].removeprefix("Question: ").split("\n Context: ", 1)
            file = f"context-{numbers.setdefault(tidy(text), len(numbers)):03}.txt"
            documents[file] = tidy(text) + "\n"
            answerable = {"Solveable": True, "Unsolveable": False}[row["ideal"]]
            questions.append(Question(f"unsolvable-{place}", ask(asked), (), file, answerable))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _wrong_shape(path, repr(error)) from None
    return documents, questions


def _calibration() -> Parts:
    """Long passages of BoolQ's training part, from articles that neither dev nor the grader has, and 11 stories."""
    folder = fetch("boolq")
    dev = _read(folder / "dev.jsonl", "question", "title", "passage")
    taken = {row["title"].lower() for row in dev} | {tidy(row["passage"]) for row in dev}
    taken |= {row["question"] for row in dev}
    rows = []
    for row in _read(folder / "combined.jsonl", "question", "passage"):
        title, _, text = row["passage"].partition(" -- ")
        text = tidy(text)
        if "label" in row and text and not {title.lower(), text, row["question"]} & taken:
            rows.append((title, text, row["question"], bool(row["label"])))
    trained = {title.lower() for title, text, _, _ in rows if len(text.split()) <= GRADER_WORDS}
    left = [row for row in rows if row[0].lower() not in trained]
    texts = sorted({text for _, text, _, _ in left})
    chosen = set(Random(SEED).sample(texts, min(CALIBRATION_PASSAGES, len(texts))))
    documents, questions = _articles("train", [row for row in left if row[1] in chosen])
    more_documents, more_questions = _stories("story", lambda text: unseen_by_grader(text) and _for_calibration(text))
    return documents | more_documents, questions + more_questions


DATASETS: dict[str, Callable[[], Parts]] = {
    "boolq": _boolq,
    "narrativeqa": _narrativeqa,
    "unsolvable": _unsolvable,
    "calibration": _calibration,
}


def build_collection(dataset: Dataset, encoder: TextEncoder, on_progress: OnProgress) -> Index:
    """Write the documents out, ingest them as any folder is, and open the index. At once when that was done before.

    Raises what ingest raises.
    """
    home = settings().llm_roadmap_home.expanduser() / "step3" / "evaluation" / f"{dataset.name}-{dataset.digest}"
    documents = home / "documents"
    if not documents.exists():
        with atomic_directory(documents) as folder:
            for name, text in dataset.documents.items():
                (folder / name).write_text(text, encoding="utf-8")
    ingest([documents], home / "collection", encoder, on_progress)
    return Index(home / "collection")


def relevant(question: Question, passage: Passage) -> bool:
    """Whether a passage is what retrieval should find: of the question's document and, in a story, with an answer.

    A story has several passages; the ones that answer are those that state one of the written answers word for word.
    """
    if Path(passage.source).name != question.source:
        return False
    return not question.source.startswith("story-") or any(states(passage.text, a) for a in question.answers)


def states(text: str, answer: str) -> bool:
    """Whether the words of an answer stand in a text, in a row."""
    wanted = " ".join(_words(answer))
    return bool(wanted) and f" {wanted} " in f" {' '.join(_words(text))} "


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def tidy(text: str) -> str:
    """Plain quotation marks and single spaces: the data has TeX's quotes and the traces of tokenising."""
    return " ".join(text.replace("``", '"').replace("''", '"').replace("--", "–").split())


def ask(question: str) -> str:
    """A question as people write it: BoolQ's are in lower case and without a question mark."""
    text = tidy(question).rstrip("?. ")
    return f"{text[:1].upper()}{text[1:]}?"


def _read(path: Path, *keys: str) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except ValueError as error:
        raise _wrong_shape(path, str(error)) from None
    if not all(isinstance(row, dict) and key in row for row in rows for key in keys):
        raise _wrong_shape(path, f"a row has no {' or '.join(keys)}")
    return rows


def _wrong_shape(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not in the form that step 3 knows ({why}); see: python -m shared.artifacts verify")
