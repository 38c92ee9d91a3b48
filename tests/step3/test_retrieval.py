"""step3_rag/retrieval.py and lexical.py: each list against brute force, the fusion of both, and what a hit remembers.

python -m pytest tests/step3/test_retrieval.py
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import FakeEncoder

from shared.errors import UserError
from step3_rag.fusion import fuse
from step3_rag.index import Index
from step3_rag.ingest import ingest
from step3_rag.lexical import LexicalIndex, build_lexical_index, singular, words
from step3_rag.passages import STAGES
from step3_rag.rerank import late_interaction
from step3_rag.retrieval import DEPTH, SECOND_LOOK, search

TEXTS = [
    "The compiler was written by Grace Hopper in 1952.",
    "Grace periods are written into the contract; a contract has parties.",
    "Compilers translate programs. A compiler of compilers is a generator.",
    "Ada Lovelace wrote about the analytical engine.",
    "Whales are mammals, and mammals breathe air.",
    "parse_config reads the file; parseArgs reads the command line.",
    "YouTube and McDonalds are companies.",
    "Naïve cafés in Übersee 日本",
    "!!! ???",
    "a b c the of and",
    *(f"Filler number {n} about topic {n % 7} and compilers." for n in range(150)),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("retrieval")
    (folder / "docs").mkdir()
    for n, text in enumerate(TEXTS):
        (folder / "docs" / f"{n:03}.txt").write_text(text)
    ingest([folder / "docs"], folder / "collection", FakeEncoder())
    opened = Index(folder / "collection")
    yield opened
    opened.close()


def text_of(index: Index) -> dict[str, str]:
    return {passage.id: passage.text for passage in index.store.all_passages()}


@pytest.mark.parametrize("query", ["who wrote the first compiler", "mammals that breathe", "Grace", "zzz"])
def test_dense_list_is_brute_force_cosine(index: Index, query: str) -> None:
    encoder = FakeEncoder()
    ids = index.store.ids()
    (vector,) = encoder.encode([query])
    stored = index.store.vectors(ids)
    cosines = {name: float(stored[name] @ vector) for name in ids}
    hits = search(query, 10, index, encoder, retrievers=["dense"])
    best = sorted(cosines.values(), reverse=True)[:10]
    assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-3)
    for rank, hit in enumerate(hits, start=1):
        assert hit.score == pytest.approx(cosines[hit.passage.id], abs=1e-3)
        assert hit.ranks == {"dense": rank}
        assert hit.scores == {"dense": hit.score}


def bm25(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """The formula of Robertson & Zaragoza with Lucene's idf, word by word."""
    counts = [Counter(words(text) or [""]) for text in texts]
    lengths = [count.total() for count in counts]
    mean = sum(lengths) / len(lengths)
    scores = [0.0] * len(texts)
    for word in words(query):
        holders = sum(word in count for count in counts)
        idf = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        for n, count in enumerate(counts):
            tf = count[word]
            scores[n] += idf * tf / (tf + k1 * (1 - b + b * lengths[n] / mean))
    return scores


@pytest.mark.parametrize("query", ["who wrote the first compilers", "contract contract", "topic 3", "parse config"])
def test_lexical_list_is_brute_force_bm25_with_ties_in_the_passages_order(index: Index, query: str) -> None:
    scores = bm25(query, TEXTS)
    expected = sorted((n for n in range(len(TEXTS)) if scores[n] > 0), key=lambda n: (-round(scores[n], 5), n))[:DEPTH]
    texts = text_of(index)
    found = index.lexical(query, DEPTH)
    assert [texts[name] for name, _ in found] == [TEXTS[n] for n in expected]
    assert [score for _, score in found] == pytest.approx([scores[n] for n in expected], rel=1e-5)


def test_a_query_without_a_known_word_has_no_lexical_hits(index: Index) -> None:
    for query in ("zzzz", "the of and", "???"):
        assert index.lexical(query, 10) == []
        assert len(search(query, 3, index, FakeEncoder())) == 3  # the dense list still has the nearest


def test_hits_are_the_fusion_of_the_two_lists(index: Index) -> None:
    query = "who wrote the compiler of the contract"
    encoder = FakeEncoder()
    dense = index.dense(encoder.encode([query])[0], DEPTH)
    lexical = index.lexical(query, DEPTH)
    fused = fuse([[name for name, _ in dense], [name for name, _ in lexical]])
    hits = search(query, 12, index, encoder)
    assert [(hit.passage.id, hit.score) for hit in hits] == fused[:12]
    for rank, hit in enumerate(hits, start=1):
        name = hit.passage.id
        assert hit.ranks["fused"] == rank
        for stage, found in (("dense", dense), ("lexical", lexical)):
            places = [other for other, _ in found]
            assert hit.ranks.get(stage) == (places.index(name) + 1 if name in places else None)
            assert hit.scores.get(stage) == dict(found).get(name)
    assert any("lexical" not in hit.ranks for hit in search("zzzz", 5, index, encoder))


def test_the_reranker_sees_twenty_and_decides_the_order(index: Index) -> None:
    seen: list[list[str]] = []

    def shortest_first(query: str, texts: list[str]) -> list[float]:
        seen.append(list(texts))
        return [-len(text) for text in texts]

    hits = search("compilers about topic", 5, index, FakeEncoder(), reranker=shortest_first)  # type: ignore[arg-type]
    assert len(seen[0]) == SECOND_LOOK
    assert [-hit.score for hit in hits] == sorted(map(len, seen[0]))[:5]
    assert [hit.ranks["reranked"] for hit in hits] == [1, 2, 3, 4, 5]
    assert all(hit.scores["reranked"] == hit.score for hit in hits)
    search("compilers about topic", 30, index, FakeEncoder(), reranker=shortest_first)  # type: ignore[arg-type]
    assert len(seen[1]) == 30


def test_late_interaction_and_diversity_compose(index: Index) -> None:
    encoder = FakeEncoder()
    hits = search("compilers about topic 3", 6, index, encoder, reranker=late_interaction(encoder), balance=0.5)
    assert len({hit.passage.id for hit in hits}) == 6
    assert [hit.ranks["diverse"] for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert hits[0].ranks["reranked"] == 1  # nothing above it to repeat
    assert set(hits[0].scores) == {"dense", "lexical", "fused", "reranked", "diverse"} == set(STAGES)
    plain = search("compilers about topic 3", 6, index, encoder, balance=1.0)
    fused = search("compilers about topic 3", 6, index, encoder)
    assert [hit.passage.id for hit in plain] == [hit.passage.id for hit in fused]


def test_hits_are_plain_data(index: Index) -> None:
    (hit,) = search("whales", 1, index, FakeEncoder(), retrievers=["lexical"])
    document = json.loads(json.dumps(dataclasses.asdict(hit)))
    assert document["passage"]["text"] == TEXTS[4]
    assert document["ranks"] == {"lexical": 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        hit.score = 1.0  # type: ignore[misc]


def test_k_may_be_larger_than_the_collection_and_than_the_depth(index: Index) -> None:
    hits = search("compilers", 10_000, index, FakeEncoder())
    assert len({hit.passage.id for hit in hits}) == len(hits) > DEPTH


def test_mistakes_are_named(index: Index) -> None:
    encoder = FakeEncoder()
    with pytest.raises(UserError, match="the query is empty"):
        search(" \n", 5, index, encoder)
    for retrievers in ([], ["sparse"], ["dense", "sparse"]):
        with pytest.raises(UserError, match="use dense, lexical or both"):
            search("x", 5, index, encoder, retrievers=retrievers)
    encoder.name = "another"
    with pytest.raises(UserError, match="was embedded with fake-hashing-encoder, not with another"):
        search("x", 5, index, encoder)


def test_passages_that_an_ingest_has_just_removed_are_skipped(tmp_path: Path) -> None:
    docs, folder = tmp_path / "docs", tmp_path / "collection"
    docs.mkdir()
    for n in range(8):
        (docs / f"{n}.txt").write_text(f"amber basalt {n}")
    ingest([docs], folder, FakeEncoder())
    index = Index(folder)
    index.store.write(removed=[str(docs / f"{n}.txt") for n in range(5)])  # stored, not yet indexed
    assert index.behind()
    hits = search("amber", 3, index, FakeEncoder(), balance=0.5)
    assert sorted(hit.passage.text for hit in hits) == ["amber basalt 5", "amber basalt 6", "amber basalt 7"]
    index.close()


def test_words() -> None:
    assert words("The parseConfig of HTTPServer2's _private YouTube cafés") == [
        "parseconfig", "parse", "config", "httpserver2", "http", "server2", "_private", "private", "youtube", "tube",
        "café",
    ]  # fmt: skip
    assert words("parse_config") == ["parse_config", "parse", "config"]
    assert words("ÜBER_größe") == ["über_größe".casefold(), "über", "größe".casefold()]
    assert words("") == words("the of !!!") == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [("compilers", "compiler"), ("cities", "city"), ("classes", "classe"), ("glass", "glass"), ("bus", "bus"),
     ("gas", "gas"), ("shoes", "shoes"), ("movies", "movy"), ("ties", "ty"), ("horses", "horse"), ("1990s", "1990")],
)  # fmt: skip
def test_singular_follows_harmans_rules(word: str, expected: str) -> None:
    assert singular(word) == expected


def test_an_index_without_any_word_answers_nothing(tmp_path: Path) -> None:
    for name, texts in (("none", []), ("wordless", ["???", "the"])):
        build_lexical_index(tmp_path / name, [f"{n:032}" for n in range(len(texts))], texts)
        assert LexicalIndex(tmp_path / name).search("anything the", 5) == []


def test_top_of_many_equals_a_full_sort(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in chance.zipf(1.5, 8) if n < 50) for _ in range(500)]
    ids = [f"{n:032}" for n in range(500)]
    build_lexical_index(tmp_path / "many", ids, texts)
    index = LexicalIndex(tmp_path / "many")
    everything = index.search("w1 w2 w3 w7", 500)
    assert everything == sorted(everything, key=lambda pair: -pair[1])
    for depth in (1, 7, 100):
        assert index.search("w1 w2 w3 w7", depth) == everything[:depth]
