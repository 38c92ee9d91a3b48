"""Pairs of a yes and a no for each of the grader's questions, made from passages (grader_sources.py).

Every no is hard in a way that is known: found by BM25, of the same article or story, or a true statement with one thing
changed. Where it can be, both sides of a pair have the same passage, so that the passage alone says nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from step4_finetune.bm25 import BM25
from step4_finetune.decontaminate import spans, words
from step4_finetune.grader_sources import Passage, Question, content, states
from step4_finetune.grader_statements import statements, supported, unsupported

HARD = 5  # ranks of BM25 that count as hard


@dataclass(frozen=True)
class GraderItem:
    """One thing to grade. answer: empty but for `grounded`. label: what is right. kind: how the item was made."""

    id: str
    question: str
    passage: str
    answer: str
    label: bool
    kind: str = ""


Pair = tuple[GraderItem, GraderItem]  # yes and no
Sides = tuple[str, str, str]  # question, passage, answer


def pairs_of(task: str, facts: Sequence[Passage], tales: Sequence[Passage], rng: Random) -> list[Pair]:
    """All pairs of a task, from both sources in turn where it has both.

    facts: of BoolQ, in the order in which they are to be used; tales: of NarrativeQA.
    """
    if task == "relevant":
        return relevant(facts, rng)
    if task == "grounded":
        return _in_turn(_grounded_sentences(facts, rng), _grounded_answers(tales, rng))
    return _in_turn(_answerable_articles(facts, rng), _answerable_stories(tales, rng))


def _in_turn(a: list[Pair], b: list[Pair]) -> list[Pair]:
    """Mix two lists evenly, each in its order, so that every beginning has both in the proportion of the whole."""
    placed = [((i + 0.5) / len(part), pair) for part in (a, b) for i, pair in enumerate(part)]
    return [pair for _, pair in sorted(placed, key=lambda entry: entry[0])]


# -- relevant ----------------------------------------------------------------------------------------------------


def relevant(passages: Sequence[Passage], rng: Random) -> list[Pair]:
    """Per passage its own question, and one of another article that BM25 would bring here.

    Pairs are of one passage and each question serves once on either side, so neither says the answer alone.
    """
    index = BM25([passage.text for passage in passages])
    brought: dict[int, list[str]] = {}
    for passage in passages:
        for question in passage.questions:
            for place in _elsewhere(index, passages, passage.topic, question.text, HARD):
                brought.setdefault(place, []).append(question.text)
    used: set[str] = set()
    pairs = []
    for place in _shared_first(passages):
        passage = passages[place]
        free = [text for text in brought.get(place, []) if text not in used]
        if free:
            other = rng.choice(free)
            used.add(other)
            own = rng.choice(passage.questions).text
            name = f"relevant-{passage.id}"
            pairs.append(_pair(name, "own", "bm25", (own, passage.text, ""), (other, passage.text, "")))
    return pairs


def retrieved(passages: Sequence[Passage], count: int, rng: Random) -> list[Pair]:
    """Per question its own passage, and the first that BM25 finds in another article."""
    index = BM25([passage.text for passage in passages])
    pairs = []
    for passage in rng.sample(passages, min(len(passages), count)):
        text = rng.choice(passage.questions).text
        for place in _elsewhere(index, passages, passage.topic, text, 1):
            other = passages[place]
            pairs.append(
                _pair(f"relevant-{passage.id}", "own", "bm25", (text, passage.text, ""), (text, other.text, ""))
            )
    return pairs


def _elsewhere(index: BM25, passages: Sequence[Passage], topic: str, question: str, count: int) -> list[int]:
    """The best passages for a question that are not of this article."""
    found = index.top(question, count + 20)
    return [place for place in found if passages[place].topic.lower() != topic.lower()][:count]


def _shared_first(passages: Sequence[Passage]) -> list[int]:
    """The passages in their order, but those of articles with several first: they serve all three tasks.

    So three tasks ask about the same passages, which makes a row cost less than half (grader_data.py).
    """
    several = Counter(passage.topic for passage in passages)
    return sorted(range(len(passages)), key=lambda place: several[passages[place].topic] == 1)


# -- grounded ----------------------------------------------------------------------------------------------------


def _grounded_sentences(passages: Sequence[Passage], rng: Random) -> list[Pair]:
    """Per passage the sentence nearest to its question, and that sentence untrue, or one from elsewhere."""
    index = BM25([passage.text for passage in passages])
    pairs = []
    for place in _shared_first(passages):
        passage = passages[place]
        question = rng.choice(passage.questions).text
        found = sorted(statements(passage.text), key=lambda s: -len(content(s) & content(question)))
        near = [passages[other].text for other in index.top(question, 3) if other != place]
        if not found or not near:
            continue
        wrong = _foreign(near, passage, rng) if rng.random() < 0.3 else None
        wrong = wrong or unsupported(found[0], passage.text, near[0], rng)
        if wrong:
            right = (question, passage.text, supported(found[0], rng))
            statement, kind = wrong
            pairs.append(_pair(f"grounded-{passage.id}", "sentence", kind, right, (question, passage.text, statement)))
    return pairs


def _foreign(near: Sequence[str], passage: Passage, rng: Random) -> tuple[str, str] | None:
    """A sentence of another passage on nearly the same words, most of whose content is not in this one."""
    here = content(passage.text)
    found = [s for text in near for s in statements(text) if len(content(s) & here) <= 0.6 * len(content(s))]
    return (supported(rng.choice(found), rng), "elsewhere") if found else None


def _grounded_answers(windows: Sequence[Passage], rng: Random) -> list[Pair]:
    """Per question of a story the answer, and a wrong one; or the right one under a part of the story without it."""
    pairs = []
    for window, question, others in _asked(windows, rng):
        answer = _sentence(rng.choice(question.answers))  # one of them is there word for word, another need not be
        wrong = [
            a
            for other in others
            for q in other.questions
            for a in q.answers
            if _wh(q) == _wh(question) and not any(set(words(a)) & set(words(known)) for known in question.answers)
        ]
        here = [a for a in wrong if states(window.text, a)]
        parts = [other.text for other in others if other is not window and not _answers(other.text, question)]
        right = (question.text, window.text, answer)
        name = f"grounded-{window.id}-{digest(question.text)}"
        if wrong and (rng.random() < 0.7 or not parts):
            chosen = _sentence(rng.choice(here or wrong))
            kind = "other answer, stated" if here else "other answer"
            pairs.append(_pair(name, "answer", kind, right, (question.text, window.text, chosen)))
        elif parts:
            text = max(parts, key=lambda part: len(content(part) & content(question.text)))
            pairs.append(_pair(name, "answer", "other part", right, (question.text, text, answer)))
    return pairs


def _asked(windows: Sequence[Passage], rng: Random) -> list[tuple[Passage, Question, list[Passage]]]:
    """Every question with its window and all windows of the story, in random order."""
    stories: dict[str, list[Passage]] = {}
    for window in windows:
        stories.setdefault(window.topic, []).append(window)
    found = [(window, question, stories[window.topic]) for window in windows for question in window.questions]
    rng.shuffle(found)
    return found


def _sentence(answer: str) -> str:
    return f"{answer[0].upper()}{answer[1:]}."


def _answers(text: str, question: Question) -> bool:
    """Whether a text may answer: it has all of an answer's words, in any order."""
    return any(content(answer) <= content(text) for answer in question.answers)


def _wh(question: Question) -> str:
    return words(question.text)[0]


# -- answerable --------------------------------------------------------------------------------------------------


def _answerable_articles(passages: Sequence[Passage], rng: Random) -> list[Pair]:
    """Per passage its own question, and the question of another passage of the same article."""
    articles: dict[str, list[Passage]] = {}
    for passage in passages:
        articles.setdefault(passage.topic.lower(), []).append(passage)
    pairs = []
    for place in _shared_first(passages):
        passage = passages[place]
        own = rng.choice(passage.questions).text
        others = [
            question.text
            for other in articles[passage.topic.lower()]
            if other is not passage and not spans(other.text) & spans(passage.text)  # overlapping parts answer both
            for question in other.questions
            if not any(_alike(question.text, known.text) for known in passage.questions)
            # A question that finds more of its words here may well be answered here.
            and len(content(question.text) & content(passage.text)) <= len(content(question.text) & content(other.text))
        ]
        if others:
            name = f"answerable-{passage.id}"
            sides = (own, passage.text, ""), (rng.choice(others), passage.text, "")
            pairs.append(_pair(name, "own", "same article", *sides))
    return pairs


def _alike(a: str, b: str) -> bool:
    """Whether two questions ask for about the same."""
    both, either = content(a) & content(b), content(a) | content(b)
    return len(both) >= 0.6 * len(either)


def _answerable_stories(windows: Sequence[Passage], rng: Random) -> list[Pair]:
    """Per question of a story the part that answers it, and the nearest part that does not."""
    pairs = []
    for window, question, parts in _asked(windows, rng):
        others = [part.text for part in parts if part is not window and not _answers(part.text, question)]
        if others:
            text = max(others, key=lambda part: len(content(part) & content(question.text)))
            name = f"answerable-{window.id}-{digest(question.text)}"
            sides = (question.text, window.text, ""), (question.text, text, "")
            pairs.append(_pair(name, "own", "same story", *sides))
    return pairs


def _pair(name: str, kind_yes: str, kind_no: str, yes: Sides, no: Sides) -> Pair:
    return GraderItem(f"{name}-yes", *yes, True, kind_yes), GraderItem(f"{name}-no", *no, False, kind_no)


def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
