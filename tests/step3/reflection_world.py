"""A fake world for the reflection graph: four passages, a scripted model, and graders that say what a test wants."""

from collections.abc import Sequence
from typing import Any

from fake_chat_model import FakeChat
from fake_encoder import FakeEncoder
from fake_index import FakeIndex, FakeRouter, passage

from step3_rag.answers import Answer, Event, Step
from step3_rag.chat_model import ChatModel
from step3_rag.graders import Case, Grader, Thresholds
from step3_rag.reflection import Reflection, Resources, run

PASSAGES = [
    passage("a", "The Amber river is 300 km long. It rises in the Basalt hills.", titles=["Rivers"]),
    passage("b", "Salmon live in the Amber river. Trolls do not.", titles=["Animals"]),
    passage("c", "Garnet is a town on the Amber river. It was founded in 1204.", titles=["Towns"]),
    passage("d", "Kelp grows in the sea. Harbors are on the sea.", titles=["Sea"]),
]
QUESTION = "What lives in the Amber river?"
ANSWER = "Salmon live in the Amber river. Cats do too."
LIMITS = Thresholds(0.5, 0.5, 0.5, 0.5)


def resources(grade: Grader | None = None, say: Any = lambda _: ANSWER, **more: Any) -> Resources:
    index: Any = more.pop("index", FakeIndex(PASSAGES))
    router: Any = FakeRouter()
    model = ChatModel(FakeChat(say=say, **more))
    return Resources(index, FakeEncoder(), model, router, {"fake": grade or grader()}, {"late": as_they_come})


def as_they_come(_: str, texts: Sequence[str]) -> list[float]:
    """A fake reranker: changes nothing."""
    return [-float(place) for place in range(len(texts))]


def grader(relevant: float = 0.9, answerable: float = 0.9, grounded: float = 0.9, answers: float = 0.9) -> Grader:
    """A fake grader: always the same grades. answers: of what is shorter than any passage here, a quote."""
    whole = {p.text for p in PASSAGES}

    def grade(task: str, cases: Sequence[Case]) -> list[float]:
        if task == "answerable":
            return [answerable if case.passage.split("\n")[-1] in whole else answers for case in cases]
        return [{"relevant": relevant, "grounded": grounded}[task]] * len(cases)

    return grade


def settle(**more: Any) -> Reflection:
    return Reflection(**({"grader": "fake", "thresholds": LIMITS, "k": 2} | more))


def asked(res: Resources, how: Reflection | None = None, question: str = QUESTION) -> tuple[list[Event], Answer]:
    events = list(run(question, res, how or settle()))
    answer = events[-1]
    assert isinstance(answer, Answer)
    return events, answer


def way(events: Sequence[Event]) -> list[str]:
    return [event.node for event in events if isinstance(event, Step)]


def outcomes(events: Sequence[Event]) -> list[tuple[str, str]]:
    return [(event.node, event.outcome) for event in events if isinstance(event, Step)]


def requests(res: Resources) -> list[tuple[str, dict[str, Any]]]:
    chat: Any = res.model.chat
    return list(chat.requests)
