"""A fake of answering for the tests of the page: real passages of a real collection, found by word; no model.

What it does is decided by the question, so a test can ask for each ending:

    "… nothing …"  abstains    "… broken …"  raises UserError    "… bug …"  raises something else
    "… slowly …"   writes until it is stopped                    anything else: rewrites once and cites
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.errors import UserError
from step3_rag.answers import Answer, Citation, Event, Sentence, Step, Token
from step3_rag.passages import Hit, Passage
from step3_rag.store import Store

SUPPORT = 0.87


class FakeAsk:
    """histories: the earlier questions and answers that came with each question. pause: seconds between events."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.histories: list[tuple[tuple[str, str], ...]] = []
        self.closed = 0

    def __call__(self, question: str, history: Sequence[tuple[str, str]], folder: Path) -> Iterator[Event]:
        self.histories.append(tuple(history))
        try:
            for event in self._events(question, folder):
                time.sleep(self.pause)
                yield event
        finally:
            self.closed += 1

    def _events(self, question: str, folder: Path) -> Iterator[Event]:
        passages = _found(question, folder)
        yield Step("route", "collection", {"similarity": 0.61}, 0.004)
        if "broken" in question:
            raise UserError("the endpoint cannot be reached (connection refused); is it running?")
        if "bug" in question:
            raise RuntimeError("a bug")
        yield Step("retrieve", "found", {"passages": len(passages), "query": question}, 0.021)
        yield Step("grade", "not good enough", {"relevant": 0, "probabilities": [0.12, 0.08]}, 0.4)
        if "nothing" in question:
            yield Step("rewrite", "no other words", {}, 0.2)
            yield Step("abstain", "done", {}, 0.0)
            reason = "no passage is relevant to the question"
            yield _answer(question, "I don't know.", [], passages, abstained=True, reason=reason)
            return
        yield Step("rewrite", "new query", {"query": "other words"}, 0.3)
        yield Step("retrieve", "found", {"passages": len(passages), "query": "other words"}, 0.019)
        yield Step("grade", "answerable", {"relevant": 2, "probabilities": [0.93, 0.71]}, 0.4)
        if "slowly" in question:
            while True:
                yield Token("and on ")
        sentences = [_first_sentence(passage) for passage in passages[:2]]
        yield Token("A first attempt that is withdrawn.")
        yield Token("", reset=True)
        for word in " ".join(sentence.text for sentence in sentences).split(" "):
            yield Token(word + " ")
        yield Step("generate", "written", {"tokens": 24}, 0.9)
        yield Step("cite", "cited", {"citations": 2, "dropped": 1}, 0.1)
        yield Step("check", "supported", {"grounded": 0.91, "answers": 0.84}, 0.2)
        yield Step("answer", "done", {}, 0.0)
        text = " ".join(sentence.text for sentence in sentences)
        yield _answer(question, text, sentences, passages)


def _found(question: str, folder: Path) -> list[Passage]:
    """The passages that share most words with the question, at most three."""
    store = Store(folder)
    try:
        words = set(question.lower().split())
        return sorted(store.all_passages(), key=lambda p: -len(words & set(p.text.lower().split())))[:3]
    finally:
        store.close()


def _first_sentence(passage: Passage) -> Sentence:
    """The passage's first sentence, cited to where it stands."""
    begin = passage.text.rfind("\n", 0, passage.text.find(". ") if ". " in passage.text else None) + 1
    end = passage.text.find(".", begin) + 1
    start = passage.start + begin
    return Sentence(passage.text[begin:end], (Citation(passage, start, passage.start + end, SUPPORT),))


def _answer(
    question: str,
    text: str,
    sentences: Sequence[Sentence],
    passages: Sequence[Passage],
    *,
    abstained: bool = False,
    reason: str = "",
) -> Answer:
    return Answer(
        question=question,
        text=text,
        sentences=tuple(sentences),
        abstained=abstained,
        reason=reason,
        nearest=tuple(Hit(passage, 0.4, {"fused": n}, {"fused": 0.4}) for n, passage in enumerate(passages, 1)),
        dropped_citations=0 if abstained else 1,
        route="collection",
        rewrites=() if abstained else ("other words",),
        tokens=0 if abstained else 24,
        seconds=2.4,
    )
