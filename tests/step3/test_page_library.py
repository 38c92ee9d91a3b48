"""The collections behind the page: one model for all, each answered from its own indexes, follow-ups made stand-alone.

    python -m pytest tests/step3/test_page_library.py

Real collections on disk and the real graph; the chat model, the embedder and the router are fakes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_chat_model import FakeChat
from fake_encoder import FakeEncoder
from fake_index import FakeRouter
from reflection_world import as_they_come

from shared.errors import UserError
from step3_rag import page, resources
from step3_rag.answers import Answer
from step3_rag.chat_model import ChatModel
from step3_rag.encoder import DEFAULT_ENCODER
from step3_rag.graders import Case
from step3_rag.index import Index
from step3_rag.ingest import ingest
from step3_rag.page import Library
from step3_rag.resources import Resources

TEXTS = {
    "shells": "The noise in a seashell is the noise around it.\n",
    "lights": "The lighthouse at Eddystone stands on rocks.\n",
}


def sure(task: str, cases: Sequence[Case]) -> list[float]:
    """A fake grader that says yes to everything."""
    return [1.0] * len(cases)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Library, FakeChat, list[Path]]]:
    """A library over two collections, its model, and the folders that the model was loaded for."""
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.md").write_text(text)
        ingest([tmp_path / f"{name}.md"], tmp_path / name, FakeEncoder())
    chat = FakeChat(say=lambda prompt: "What noise is in a seashell?" if "Next question" in prompt else said(prompt))
    loaded: list[Path] = []

    @contextmanager
    def open_fakes(folder: Path, **_: Any) -> Iterator[Resources]:
        loaded.append(folder)
        index = Index(folder)
        router: Any = FakeRouter()
        yield Resources(index, FakeEncoder(), ChatModel(chat), router, {"embedding": sure}, {"late": as_they_come})
        index.close()

    monkeypatch.setattr(resources, "open_resources", open_fakes)
    monkeypatch.setattr(page, "Encoder", lambda name: FakeEncoder())
    with ExitStack() as stack:
        yield Library(stack), chat, loaded


def said(prompt: str) -> str:
    """The answer that the fake model gives: whichever text the prompt holds."""
    return next((text.strip() for text in TEXTS.values() if text.strip() in prompt), "Nothing.")


def ask(library: Library, question: str, folder: Path, history: Sequence[tuple[str, str]] = ()) -> Answer:
    last = list(library.ask(question, history, folder))[-1]
    assert isinstance(last, Answer)
    return last


def test_each_collection_is_answered_from_its_own_files(
    opened: tuple[Library, FakeChat, list[Path]], tmp_path: Path
) -> None:
    library, _, loaded = opened
    for name, question in (("shells", "what noise is in a seashell"), ("lights", "where is the lighthouse")):
        found = ask(library, question, tmp_path / name)
        assert found.text == TEXTS[name].strip()
        cited = {Path(c.passage.source).name for sentence in found.sentences for c in sentence.citations}
        assert cited == {f"{name}.md"}
    assert loaded == [tmp_path / "shells"]  # one model for all
    first = library.resources(tmp_path / "lights")
    assert library.resources(tmp_path / "lights").index is first.index


def test_a_follow_up_is_made_stand_alone(opened: tuple[Library, FakeChat, list[Path]], tmp_path: Path) -> None:
    library, chat, _ = opened
    history = [("what is in a seashell", "There is noise in a seashell.")]
    assert ask(library, "what noise is it", tmp_path / "shells", history).question == "What noise is in a seashell?"
    assert any("Next question: what noise is it" in prompt for prompt, _ in chat.requests)


def test_a_collection_that_does_not_exist_is_said(opened: tuple[Library, FakeChat, list[Path]], tmp_path: Path) -> None:
    library, _, _ = opened
    with pytest.raises(UserError, match="no collection"):
        ask(library, "what is there", tmp_path / "nothing")
    assert ask(library, "where is the lighthouse", tmp_path / "lights").text == TEXTS["lights"].strip()


def test_the_embedder_is_the_one_that_the_collection_was_made_with(
    opened: tuple[Library, FakeChat, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str) -> FakeEncoder:
        asked.append(name)
        return FakeEncoder()

    monkeypatch.setattr(page, "Encoder", load)
    library, _, _ = opened
    for name in ("shells", "lights", "yet to be made"):
        library.encoder(tmp_path / name)
    assert asked == [FakeEncoder.name, DEFAULT_ENCODER]
