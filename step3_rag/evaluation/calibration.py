"""Choose every grader's thresholds, on the calibration split, from cases such as the app meets.

Per question, the passages are those that retrieval finds for it, cut and ranked as always:

relevant    yes: a passage of the question's document (in a story one that states an answer). no: the best of another
            document.
answerable  yes: the same. no: of the same story, the best passage that states no answer; for BoolQ, whose documents
            have one passage, the best of another document.
grounded    yes: the passage with a written answer that it states (stories) or with the sentence of it that shares most
            words with the question (BoolQ). no: in turn the same passage with the answer to another question about the
            story, and another passage of it with the right answer; for BoolQ the sentence with another document.
answers     stories only. yes: the right answer, cited from the sentence that states it. no: the answer to another
            question about the story, cited from the sentence that states that one.

    python -m step3_rag calibrate
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Literal

from shared.errors import UserError
from shared.files import atomic_write
from shared.results import Row, metric
from step3_rag.citations import split
from step3_rag.encoder import TextEncoder
from step3_rag.evaluation.datasets import Dataset, Question, relevant, states
from step3_rag.graders import Calibration, Case, Grader, Thresholds, answers, calibrate, passage_text
from step3_rag.index import Index
from step3_rag.lexical import words
from step3_rag.passages import Passage
from step3_rag.retrieval import search

PER_KIND = 80  # questions of BoolQ, and as many about stories, of two cases each; `answers` has few and takes all
DEPTH = 20  # passages that cases are made of

HEADER = """# From which grade on each grader says yes: python -m step3_rag calibrate
#
#   relevant    a passage to a question        grounded    a passage to a sentence of the answer
#   answerable  a question from a passage      answers     a question from the spans that the answer cites
#
# Chosen on the calibration split, which no evaluation uses, so that a wrong yes and a wrong no together are rarest. A
# grader's numbers are on a scale of their own: those of one table say nothing about another."""

Asked = Literal["relevant", "answerable", "grounded", "answers"]
Labelled = tuple[Case, bool]


@dataclass(frozen=True)
class _Found:
    """What retrieval found for a question. right: the passage that answers. others: the rest, best first."""

    question: Question
    right: Passage
    others: tuple[Passage, ...]

    @property
    def elsewhere(self) -> list[Passage]:
        """The passages of other documents."""
        return [passage for passage in self.others if passage.source != self.right.source]

    @property
    def nearby(self) -> list[Passage]:
        """The passages of the same story that state no answer."""
        return [p for p in self.others if p.source == self.right.source and not relevant(self.question, p)]


def cases(
    dataset: Dataset, index: Index, encoder: TextEncoder, per_kind: int = PER_KIND
) -> dict[Asked, list[Labelled]]:
    """Return task → cases with what should be said of them, as many yes as no.

    A question whose passage retrieval does not find among the first DEPTH gives none. Raises UserError when there are
    no cases for a task.
    """
    facts = [q for q in dataset.questions if not _is_story(q)]
    tales = [q for q in dataset.questions if _is_story(q)]
    told = list(_look_up(tales, index, encoder))
    found = [*islice(_look_up(facts, index, encoder), per_kind), *told[:per_kind]]
    about: dict[str, list[Question]] = {}
    for question in tales:
        about.setdefault(question.source, []).append(question)
    made: dict[Asked, list[Labelled]] = {
        "relevant": [case for f in found for case in _relevant(f)],
        "answerable": [case for f in found for case in _answerable(f)],
        "grounded": [case for n, f in enumerate(found) for case in _grounded(f, about.get(f.question.source, []), n)],
        "answers": [case for n, f in enumerate(told) for case in _answers(f, about[f.question.source], n)],
    }
    if empty := [task for task, labelled in made.items() if not labelled]:
        raise UserError(f"there are no cases to calibrate {' and '.join(empty)} on: take more questions")
    return made


def _is_story(question: Question) -> bool:
    return question.source.startswith("story-")


def _look_up(questions: Sequence[Question], index: Index, encoder: TextEncoder) -> Iterator[_Found]:
    """Yield what is found for each question whose passage is among it, with one of another document."""
    for question in questions:
        passages = [hit.passage for hit in search(question.text, DEPTH, index, encoder)]
        right = next((passage for passage in passages if relevant(question, passage)), None)
        if right and any(passage.source != right.source for passage in passages):
            yield _Found(question, right, tuple(p for p in passages if p.id != right.id))


def _case(passage: Passage, question: Question, answer: str = "") -> Case:
    return Case(passage_text(passage), question.text, answer)


def _relevant(found: _Found) -> list[Labelled]:
    q = found.question
    return [(_case(found.right, q), True), (_case(found.elsewhere[0], q), False)]


def _answerable(found: _Found) -> list[Labelled]:
    q, wrong = found.question, found.nearby if _is_story(found.question) else found.elsewhere
    return [(_case(found.right, q), True), (_case(wrong[0], q), False)] if wrong else []


def _grounded(found: _Found, about: Sequence[Question], turn: int) -> list[Labelled]:
    q, right = found.question, found.right
    if not _is_story(q):
        wanted = set(words(q.text))
        sentence = max(_sentences(right), key=lambda text: len(wanted & set(words(text))))
        return [(_case(right, q, sentence), True), (_case(found.elsewhere[0], q, sentence), False)]
    answer = next(answer for answer in q.answers if states(right.text, answer))
    wrong = _foreign(q, about)
    if turn % 2 and wrong:
        return [(_case(right, q, answer), True), (_case(right, q, wrong[turn % len(wrong)]), False)]
    if found.nearby:
        return [(_case(right, q, answer), True), (_case(found.nearby[0], q, answer), False)]
    return []


def _answers(found: _Found, about: Sequence[Question], turn: int) -> list[Labelled]:
    """The case's passage is what the answer is cited from."""
    q, foreign = found.question, _foreign(found.question, about)
    told = [p for p in (found.right, *found.others) if p.source == found.right.source]
    told_sentences = [sentence for passage in told for sentence in _sentences(passage)]
    right = _stated(q.answers, told_sentences, ())
    start = turn % max(1, len(foreign))  # not the same answer every time
    wrong = _stated(foreign[start:] + foreign[:start], told_sentences, q.answers)
    if not right or not wrong:  # an answer may stand across two sentences
        return []
    return [(Case(quote, q.text, answer), label) for (answer, quote), label in ((right, True), (wrong, False))]


def _stated(answers: Sequence[str], told: Sequence[str], without: Sequence[str]) -> tuple[str, str] | None:
    """The first answer that a sentence states, with that sentence, which must not state any of `without`."""
    for answer in answers:
        for sentence in told:
            if states(sentence, answer) and not any(states(sentence, other) for other in without):
                return answer, sentence
    return None


def _foreign(question: Question, about: Sequence[Question]) -> list[str]:
    """The answers to other questions about the same story that do not say the same."""
    others = [answer for other in about for answer in other.answers]
    return [a for a in others if not any(states(a, own) or states(own, a) for own in question.answers)]


def _sentences(passage: Passage) -> list[str]:
    return [passage.text[start:end] for start, end, _ in split(passage.text)]


def grade(grader: Grader, task: Asked, labelled: Sequence[Labelled], advance: Callable[[], None]) -> Calibration:
    """Let a grader grade the cases of one task, and choose the threshold. advance: called once per case."""
    grades = []
    for case, _ in labelled:
        if task == "answers":
            grades.append(answers(grader, case.question, case.answer, quotes=case.passage))
        else:
            grades += grader(task, [case])
        advance()
    return calibrate(grades, [label for _, label in labelled])


def write_thresholds(path: Path, chosen: Mapping[str, Mapping[Asked, Calibration]]) -> None:
    """Write thresholds.toml. Graders that were not measured this time keep what they had.

    Raises UserError when the file is there and is not TOML.
    """
    try:
        before = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from git") from None
    names = [field.name for field in fields(Thresholds)]
    lines = [HEADER]
    for grader in dict.fromkeys([*chosen, *before]):
        lines += ["", f"[{grader}]"]
        if grader not in chosen:
            lines.append("# kept from before")
            lines += [f"{name} = {before[grader][name]}" for name in names if name in before[grader]]
        for name, found in chosen.get(grader, {}).items():
            count = found.positives + found.negatives
            lines.append(
                f"{name} = {found.threshold:.4g}  # AUROC {found.auroc.value:.3f}, "
                f"{100 * found.balanced_accuracy:.0f} % right on the {count} cases it was chosen on"
            )
    atomic_write(path, "\n".join(lines) + "\n")


def rows(chosen: Mapping[str, Mapping[Asked, Calibration]]) -> list[Row]:
    """One row per grader and task."""
    return [
        {
            "name": f"{grader}: {task}",
            "metrics": {
                "AUROC": metric(*found.auroc),
                "threshold": metric(found.threshold),
                "balanced accuracy": metric(100 * found.balanced_accuracy, unit="%"),
                "cases": metric(found.positives + found.negatives),
            },
        }
        for grader, tasks in chosen.items()
        for task, found in tasks.items()
    ]
