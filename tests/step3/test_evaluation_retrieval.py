"""Retrieval measured over a small index: places of the right passages, the same for a resumed run, and their table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_encoder import FakeEncoder

from step3_rag.evaluation import retrieval_eval
from step3_rag.evaluation.datasets import Dataset, Question, build_collection
from step3_rag.evaluation.metrics import DEPTH
from step3_rag.evaluation.retrieval_eval import RememberingEncoder, arms, measure_retrieval, with_an_answer
from step3_rag.evaluation.tables import retrieval_rows
from step3_rag.index import Index
from step3_rag.retrieval import search

ANIMALS = ("heron", "otter", "badger", "falcon", "salmon", "lizard", "beetle", "magpie", "weasel", "turtle", "ibex")
ARTICLES = {f"boolq-{n:04}.md": f"# The {name}\n\nA {name} eats at number {n}.\n" for n, name in enumerate(ANIMALS)}
STORIES = {
    "story-001.txt": "The captain met Ann in the harbour.\n\n" + "It rained on the sea. " * 60 + "\n\nAnn won.\n"
}


def question(number: int) -> Question:
    return Question(f"q{number}", f"Does the {ANIMALS[number]} eat?", ("yes",), f"boolq-{number:04}.md")


QUESTIONS = tuple(question(number) for number in range(len(ANIMALS)))


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    from shared.config import settings

    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    return Dataset("small", ARTICLES, QUESTIONS)


@pytest.fixture
def index(dataset: Dataset, encoder: FakeEncoder) -> Iterator[Index]:
    index = build_collection(dataset, encoder, lambda *_: None)
    yield index
    index.close()


def test_every_arm_sees_the_same_questions_for_as_many_places(
    dataset: Dataset, index: Index, encoder: FakeEncoder, tmp_path: Path
) -> None:
    counts = with_an_answer(dataset, index)
    assert counts == {q.id: 1 for q in QUESTIONS}
    results = measure_retrieval(dataset, QUESTIONS, counts, index, encoder, tmp_path / "out")
    assert list(results) == list(arms(encoder))
    for arm, outcomes in results.items():
        assert len(outcomes) == len(QUESTIONS)
        for asked, outcome in zip(QUESTIONS, outcomes, strict=True):
            options = arms(encoder)[arm]
            names = [Path(h.passage.source).name for h in search(asked.text, DEPTH, index, encoder, **options)]
            expected = [names.index(asked.source) + 1] if asked.source in names else []
            assert outcome == {"ranks": expected, "relevant": 1}
    assert [outcome["ranks"] for outcome in results["lexical"]] == [[1]] * len(QUESTIONS)


def test_a_second_run_reads_and_a_longer_one_adds(
    dataset: Dataset, index: Index, encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = with_an_answer(dataset, index)
    searched: list[str] = []

    def counted(query: str, *args: Any, **options: Any) -> Any:
        searched.append(query)
        return search(query, *args, **options)

    monkeypatch.setattr(retrieval_eval, "search", counted)
    first = measure_retrieval(dataset, QUESTIONS[:4], counts, index, encoder, tmp_path / "out")
    assert len(searched) == 4 * 5
    assert measure_retrieval(dataset, QUESTIONS[:4], counts, index, encoder, tmp_path / "out") == first
    assert len(searched) == 4 * 5
    advanced: list[int] = []
    measure_retrieval(dataset, QUESTIONS[:6], counts, index, encoder, tmp_path / "out", lambda: advanced.append(1))
    assert len(searched) == 6 * 5
    assert len(advanced) == 6 * 5


def test_in_a_story_only_passages_with_an_answer_count(encoder: FakeEncoder, tmp_path: Path, dataset: Dataset) -> None:
    asked = (
        Question("1", "Whom did the captain meet in the harbour?", ("Ann",), "story-001.txt"),
        Question("2", "Who sank?", ("The admiral",), "story-001.txt"),
    )
    stories = Dataset("stories", STORIES, asked)
    index = build_collection(stories, encoder, lambda *_: None)
    counts = with_an_answer(stories, index)
    passages = index.store.passages_of(next(iter(index.store.digests())))
    assert counts == {"1": sum("Ann" in passage.text for passage in passages)}
    assert 2 <= counts["1"] < len(passages)
    results = measure_retrieval(stories, asked[:1], counts, index, encoder, tmp_path / "out")
    assert 1 in results["lexical"][0]["ranks"]
    assert all(outcome["relevant"] == counts["1"] for outcomes in results.values() for outcome in outcomes)
    index.close()


def test_the_remembering_encoder_gives_the_same_and_encodes_once(encoder: FakeEncoder) -> None:
    remembering = RememberingEncoder(encoder)
    texts = ["a heron", "an otter", "a heron"]
    assert np.array_equal(remembering.encode(texts), FakeEncoder().encode(texts))
    assert encoder.texts_encoded == 2
    remembering.encode(["an otter"])
    assert encoder.texts_encoded == 2
    for got, expected in zip(remembering.encode_tokens(texts), FakeEncoder().encode_tokens(texts), strict=True):
        assert np.abs(got - expected).max() < 1e-3
        assert got.dtype == np.float32


def test_the_table_compares_with_the_better_part() -> None:
    def outcomes(found: int) -> list[dict[str, Any]]:
        return [{"ranks": [1] if n < found else [7], "relevant": 1} for n in range(20)]

    rows = {
        row["name"]: row["metrics"]
        for row in retrieval_rows({"dense": outcomes(10), "lexical": outcomes(8), "fused": outcomes(16)})
    }
    assert rows["dense"]["Δ recall@5"]["value"] is None
    assert rows["fused"]["recall@5"]["value"] == 80
    assert rows["fused"]["recall@10"]["value"] == 100
    assert rows["fused"]["Δ recall@5"]["value"] == pytest.approx(30)
    low, high = rows["fused"]["Δ recall@5"]["ci95"] or (0, 0)
    assert 0 < low < 30 < high
    assert rows["fused"]["p (recall@5)"]["value"] == pytest.approx(2 / 2**6)  # 6 against 0
    assert rows["lexical"]["Δ recall@5"]["value"] == pytest.approx(-10)  # what lost stays
    assert rows["fused"]["MRR@10"]["value"] == pytest.approx(100 * (16 + 4 / 7) / 20)
