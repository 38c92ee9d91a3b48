"""step3_rag/speed.py and growth.py at a tiny size: that they measure what they say, not how fast anything is.

python -m pytest tests/step3/test_speed.py
python -m pytest tests/step3/test_speed.py -m real     # LangChain's embeddings against ours
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collections_on_disk import contents, run, write_files
from fake_encoder import FakeEncoder

from shared.errors import UserError
from shared.results import read_results, write_results
from step3_rag import growth, speed
from step3_rag.encoder import Encoder
from step3_rag.index import Index
from step3_rag.store import Store

QUESTIONS = [f"amber number{n}" for n in range(12)]


def fake_embeddings(turn: float = 0.0) -> Any:
    """The fake encoder behind LangChain's interface; turn: how far its vectors lean away."""
    embeddings = pytest.importorskip("langchain_core.embeddings", reason="the extra `speed` is not installed")

    class FakeEmbeddings(embeddings.Embeddings):  # type: ignore[misc,name-defined]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            rows = FakeEncoder().encode(texts)
            rows[:, 0] += turn
            return (3 * rows).tolist()  # the length must not matter

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    return FakeEmbeddings()


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A collection of 24 passages."""
    write_files(tmp_path / "docs", 12, sections=2)
    run(tmp_path / "real", tmp_path / "docs")
    return tmp_path / "real"


def test_both_ways_ingest_the_same_chunks(tmp_path: Path) -> None:
    pytest.importorskip("langchain_chroma", reason="the extra `speed` is not installed")
    write_files(tmp_path / "docs", 12, sections=2)
    begun = time.perf_counter()
    times = speed.compare_ingest(tmp_path / "docs", FakeEncoder(), fake_embeddings(), tmp_path / "work", 2)
    assert times.chunks == 24
    assert len(times.ours) == len(times.langchain) == 2
    assert all(seconds > 0 for seconds in (*times.ours, *times.langchain))
    assert sum(times.ours) + sum(times.langchain) < time.perf_counter() - begun
    assert times.distance < 1e-5  # float16 in the store
    assert Store(tmp_path / "work" / "ours-0").count() == 24
    leaning = speed.compare_ingest(tmp_path / "docs", FakeEncoder(), fake_embeddings(0.5), tmp_path / "lean", 1)
    assert leaning.distance > 0.01


@pytest.mark.real
def test_langchains_default_embeddings_are_the_same_vectors(tmp_path: Path) -> None:
    for package in speed.missing():
        pytest.skip(f"the extra `speed` is not installed: no {package}")
    (tmp_path / "docs").mkdir()
    for n, text in enumerate(["A short one.", "Two\nlines of text.", "Übergröße, 日本 🙂", "x " * 300]):
        (tmp_path / "docs" / f"{n}.txt").write_text(text)
    times = speed.compare_ingest(tmp_path / "docs", Encoder(), speed.default_embeddings(), tmp_path / "work", 1)
    assert times.chunks >= 4
    assert times.distance < 1e-2


def test_the_ratio_is_the_median_over_turns() -> None:
    times = speed.IngestTimes(100, [1.0, 2.0, 4.0], [3.0, 4.0, 20.0], 0.001)
    assert times.ratio == 3.0  # of 3, 2, 5
    ours, langchain = speed.ingest_rows(times)
    assert ours["metrics"]["times as fast"]["value"] == 3.0
    assert ours["metrics"]["chunks/s"]["value"] == 50.0
    assert langchain["metrics"]["seconds"]["value"] == 4.0
    assert "times as fast" not in langchain["metrics"]


def test_a_collection_is_enlarged_by_plausible_chunks_and_repeatably(real: Path, tmp_path: Path) -> None:
    source = Store(real)
    texts = [passage.indexed_text for passage in source.all_passages()]
    rows = source.vectors(source.ids())
    vectors = np.stack([rows[name] for name in source.ids()])
    found = []
    for name, sizes in (("once", (250,)), ("steps", (10, 30, 250))):
        store = Store(tmp_path / name, encoder=FakeEncoder.name)
        for size in sizes:
            growth.enlarge(store, size, texts, vectors)
            assert store.count() == size
        passages = list(store.all_passages())
        assert [p.text for p in passages[:24]] == texts  # the real ones come first
        assert len({p.text for p in passages[24:]}) > 200
        for passage in passages:
            assert store.source_text(passage.source)[passage.start : passage.end] == passage.text
        made = store.vectors([p.id for p in passages])
        for number, passage in enumerate(passages):
            cosine = float(made[passage.id] @ vectors[number % 24])
            assert cosine > (0.999 if number < 24 else 0.6)
            assert float(np.linalg.norm(made[passage.id])) == pytest.approx(1, abs=1e-3)
        mean = np.mean([made[p.id] @ vectors[n % 24] for n, p in enumerate(passages) if n >= 24])
        assert mean == pytest.approx(0.86, abs=0.03)
        found.append([p.text for p in passages])
    assert found[0] == found[1]


def test_growth_measures_every_size_in_a_process_of_its_own(real: Path, tmp_path: Path) -> None:
    sizes = (24, 130)
    rows = growth.grow(real, tmp_path / "grown", sizes, QUESTIONS, FakeEncoder)
    assert [row["name"] for row in rows] == ["24 chunks", "130 chunks"]
    for row in rows:
        values = {name: entry["value"] for name, entry in row["metrics"].items()}
        assert values["search p50"] > values["embed p50"] > 0  # the search embeds, too
        assert values["search p95"] >= values["search p50"]
        assert values["search / embed p50"] == pytest.approx(values["search p50"] / values["embed p50"])
        assert values["memory"] > 0
        assert all(values[part] > 0 for part in ("database", "vector index", "word index"))
    assert rows[1]["metrics"]["database"]["value"] > rows[0]["metrics"]["database"]["value"]
    index = Index(tmp_path / "grown")
    assert index.store.count() == 130
    index.close()
    assert contents(real)["sources"]  # left as it was

    write_results(tmp_path / "speed.json", command="x", rows=rows, n=len(QUESTIONS))
    assert read_results(tmp_path / "speed.json")["rows"] == rows
    pytest.importorskip("matplotlib", reason="the extra `speed` is not installed")
    growth.plot(rows, sizes, tmp_path / "plots" / "speed.png")
    assert (tmp_path / "plots" / "speed.png").stat().st_size > 5000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the peak")
def test_memory_is_that_of_this_process() -> None:
    before = growth.resident_mb()
    ballast = np.ones(100_000_000, dtype=np.uint8)  # so large that malloc maps it anew, not into memory freed before
    assert growth.resident_mb() - before == pytest.approx(100, abs=5)
    assert ballast.any()
    assert 20 < before < 20_000


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "EXTRAS", ("json", "no_such_package_1", "no_such_package_2"))
    assert speed.missing() == ["no_such_package_1", "no_such_package_2"]
    with pytest.raises(UserError, match="not installed: no_such_package_1, no_such_package_2; run: .venv/bin/uv pip"):
        speed.main(tmp_path)
    assert os.listdir(tmp_path) == []


def test_p95_is_near_the_top() -> None:
    assert growth._p95([float(n) for n in range(101)]) == 95.0
