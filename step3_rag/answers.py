"""What answering hands to everybody else: the Answer with its citations, the events on the way, the graph as data.

The terminal trace, the page and the evaluation know these types and nothing of LangGraph or of the model. All are
frozen and hold plain data, so they can be shared between threads and printed as JSON (`dataclasses.asdict`).

    for event in reflection.run(question, resources, settings):   # Step and Token as they happen, one Answer at the end
        ...
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from step3_rag.passages import Hit, Passage


@dataclass(frozen=True)
class Citation:
    """A span of a source that supports a sentence: `source_text[start:end]`, inside `passage`.

    start, end: characters of the source's text, as in Passage. support: how sure the grader is that the passage
    supports the sentence, 0 to 1; at least the threshold, or the citation would have been dropped.
    """

    passage: Passage
    start: int
    end: int
    support: float

    @property
    def quote(self) -> str:
        """The cited text, exactly as it stands in the source."""
        return self.passage.text[self.start - self.passage.start : self.end - self.passage.start]


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer, word for word as in its text, and what supports it, best first."""

    text: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True)
class Answer:
    """The end of a question.

    question: as it was asked. text: what to show; "I don't know" and why where abstained.
    sentences: the answer's sentences in order, each cited; empty where abstained, or where nothing was to be cited
        (reason says). A sentence that nothing supports is withdrawn, so the text can be shorter than what streamed.
    abstained: whether no answer is given. reason: why abstained, or why an answer was not checked; "" for an answer
        that was cited and checked.
    nearest: the passages that the answer was written from; where abstained, the nearest ones that were found.
    dropped_citations: citations that did not support their sentence. route: which way the router sent the question.
    rewrites: the queries that were searched after the question itself. tokens: written by the model, in all attempts.
    seconds: wall time from question to answer.
    """

    question: str
    text: str
    sentences: tuple[Sentence, ...]
    abstained: bool
    reason: str
    nearest: tuple[Hit, ...]
    dropped_citations: int
    route: str
    rewrites: tuple[str, ...]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """A node of the graph has finished. outcome: the edge taken, as in EDGES. detail: what it decided on, for people.

    detail holds JSON values only: numbers, text, lists and mappings of these. seconds: wall time of the node.
    """

    node: str
    outcome: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Token:
    """A piece of the answer as it is written. reset: what was written before is withdrawn, another attempt begins."""

    text: str
    reset: bool = False


Event = Step | Token | Answer

# The graph. Node → what it does, in one line.
NODES: Mapping[str, str] = {
    "route": "Is this a question for the collection?",
    "small_talk": "Answer without looking anything up.",
    "retrieve": "Find passages by meaning and by words.",
    "grade": "Is each passage relevant, and is the question answerable from those that are?",
    "rewrite": "Say the question in other words.",
    "generate": "Write an answer from the passages.",
    "cite": "Find what supports each sentence; drop what does not.",
    "check": "Does the answer stand on the passages, and does it answer the question?",
    "answer": "Give the cited answer.",
    "abstain": "Say that the collection does not answer this, why, and what came nearest.",
}

# (node, outcome, next node): the node ended with this outcome, which leads there. A test holds the compiled graph and
# everything it does to this list. "answer", "abstain" and "small_talk" are ends; the outcome of an end is "done".
EDGES: tuple[tuple[str, str, str], ...] = (
    ("route", "collection", "retrieve"),
    ("route", "small talk", "small_talk"),
    ("route", "out of scope", "abstain"),
    ("retrieve", "found", "grade"),
    ("retrieve", "found, not graded", "generate"),
    ("retrieve", "nothing found", "abstain"),
    ("grade", "answerable", "generate"),
    ("grade", "not good enough", "rewrite"),
    ("grade", "rewrites used up", "abstain"),
    ("rewrite", "new query", "retrieve"),
    ("rewrite", "no other words", "abstain"),
    ("generate", "written", "cite"),
    ("generate", "written, not checked", "answer"),
    ("generate", "nothing written", "abstain"),
    ("cite", "cited", "check"),
    ("check", "supported", "answer"),
    ("check", "not grounded", "generate"),
    ("check", "not an answer", "rewrite"),
    ("check", "attempts used up", "abstain"),
)
ENDS = ("answer", "abstain", "small_talk")
