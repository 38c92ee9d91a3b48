"""A small evaluation: documents about animals, questions about them, and fake models that answer by a script."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_chat_model import FakeChat
from fake_encoder import FakeEncoder
from fake_index import FakeRouter

from step3_rag.chat_model import ChatModel
from step3_rag.evaluation.datasets import Dataset, Question, build_collection
from step3_rag.graders import Grader, embedding, overlap, yes_or_no
from step3_rag.index import Index
from step3_rag.rerank import late_interaction
from step3_rag.resources import Resources

ANIMALS = ("heron", "otter", "badger", "falcon", "salmon", "lizard", "beetle", "magpie", "weasel", "turtle", "ibex")


def facts() -> Dataset:
    """In BoolQ's form: one document and one yes/no question for each animal; every other answer is no."""
    documents = {f"boolq-{n:04}.md": f"# The {name}\n\nA {name} eats at {n}.\n" for n, name in enumerate(ANIMALS)}
    questions = tuple(
        Question(f"q{n}", f"Does the {name} eat?", ("no" if n % 2 else "yes",), f"boolq-{n:04}.md")
        for n, name in enumerate(ANIMALS)
    )
    return Dataset("boolq", documents, questions)


def gaps() -> Dataset:
    """In the form of unsolvable_questions: what every second animal drinks is not said."""
    documents = {f"context-{n:03}.txt": f"A {name} eats moss at dawn.\n" for n, name in enumerate(ANIMALS)}
    questions = tuple(
        Question(f"u{n}", f"What does a {name} {'drink' if n % 2 else 'eat'}?", (), f"context-{n:03}.txt", not n % 2)
        for n, name in enumerate(ANIMALS[:8])
    )
    return Dataset("unsolvable", documents, questions)


def fake_resources(index: Index, chat: FakeChat, graders: Mapping[str, Grader] | None = None) -> Resources:
    """Everything that answering needs; only the chat model, the embedding model and the router are fakes."""
    encoder, model = FakeEncoder(max_tokens=256), ChatModel(chat)
    loaded = {"llm": yes_or_no(model), "embedding": embedding(encoder), "overlap": overlap}
    rerankers = {"late": late_interaction(encoder)}
    return Resources(index, encoder, model, FakeRouter(), loaded if graders is None else graders, rerankers)


@contextmanager
def collection(dataset: Dataset, home: Path) -> Iterator[Index]:
    """The index over a data set's documents, in a home of its own."""
    from shared.config import settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_ROADMAP_HOME", str(home))
        settings.cache_clear()
        index = build_collection(dataset, FakeEncoder(max_tokens=256), lambda *_: None)
    settings.cache_clear()
    yield index
    index.close()
