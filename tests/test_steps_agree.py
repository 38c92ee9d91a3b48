"""What steps 3 and 4 have to agree on without importing each other: what the grader trains on is in no evaluation.

python -m pytest tests/test_steps_agree.py
"""

from pathlib import Path

import pytest

from step3_rag.evaluation import datasets
from step3_rag.evaluation.datasets import GRADER_WORDS, ask, load, tidy
from step4_finetune import grader_sources
from tests.shared.grader_world import article, write_world


def long_row(title: str, number: int) -> dict[str, str]:
    text = " ".join(f"word{number}x{n}" for n in range(GRADER_WORDS + 20)) + "."
    return {"title": title, "question": f"is this passage number {number}", "passage": text}


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*(long_row(f"Long {n}", n) for n in range(5)), long_row(article(0)[0]["title"], 12)]
    paths = write_world(tmp_path / "artifacts", rows)
    monkeypatch.setattr(datasets, "fetch", paths.__getitem__)
    monkeypatch.setattr(grader_sources, "fetch", paths.__getitem__)


def texts_of(name: str) -> list[str]:
    """The documents as step 4 sees them: without headings, in one line."""
    return [tidy(text.split("\n\n", 1)[1] if text.startswith("# ") else text) for text in load(name).documents.values()]


def assert_nothing_was_trained_on() -> None:
    """Every document of ours against everything that step 4's own code trains on."""
    facts, tales = grader_sources.boolq("train"), grader_sources.narrative("train")
    assert facts
    assert tales
    titles = {passage.topic.lower() for passage in facts}
    texts = {passage.text.split("\n")[-1] for passage in facts}
    windows = [passage.text for passage in tales]
    for name in ("boolq", "narrativeqa", "calibration"):
        dataset = load(name)
        assert dataset.questions
        headings = {text[2:].split("\n")[0].lower() for text in dataset.documents.values() if text.startswith("# ")}
        assert not headings & titles
        documents = texts_of(name)
        assert not set(documents) & texts
        assert not any(window in document for window in windows for document in documents)


def assert_all_unseen_stories_are_used() -> None:
    """The other half of the agreement: what step 4 holds out is what we take, whole."""
    ours = [*texts_of("narrativeqa"), *texts_of("calibration")]
    for passage in grader_sources.narrative("held out"):
        assert sum(passage.text in document for document in ours) == 1, passage.id


@pytest.mark.usefixtures("small_world")
def test_nothing_the_grader_trained_on_is_in_any_split() -> None:
    assert_nothing_was_trained_on()
    assert_all_unseen_stories_are_used()


@pytest.mark.real
def test_nor_is_it_in_the_real_data() -> None:
    assert_nothing_was_trained_on()
    assert_all_unseen_stories_are_used()


def test_both_clean_and_ask_in_the_same_words() -> None:
    for text in ("``A''  b -- c", " plain ", "is it''", "Who?. "):
        assert tidy(text) == grader_sources.tidy(text)
        assert ask(text) == grader_sources.ask(text)
