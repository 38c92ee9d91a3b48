"""step3_rag/fusion.py against a brute-force reference, and rerank.py's two formulas against theirs.

python -m pytest tests/step3/test_fusion.py
"""

import importlib.util
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from fake_encoder import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from step3_rag.fusion import fuse
from step3_rag.graders import Case
from step3_rag.rerank import (
    by_grader,
    cross_encoder,
    late_interaction,
    load_reranker,
    max_sim,
    maximal_marginal_relevance,
)

rankings = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8), max_size=4)


def reference(lists: list[list[str]], k: int) -> list[tuple[str, Fraction]]:
    """The formula in exact fractions, over every id that occurs; sorted by score, then by first appearance."""
    names = [name for ranking in lists for name in ranking]
    scores = {
        name: sum((Fraction(1, k + ranking.index(name) + 1) for ranking in lists if name in ranking), Fraction())
        for name in names
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], names.index(pair[0])))


@given(rankings, st.integers(1, 100))
def test_fusion_equals_the_exact_reference_in_order_and_score(lists: list[list[str]], k: int) -> None:
    expected, fused = reference(lists, k), fuse(lists, k)
    assert [name for name, _ in fused] == [name for name, _ in expected]
    assert all(
        math.isclose(score, exact, rel_tol=1e-12) for (_, score), (_, exact) in zip(fused, expected, strict=True)
    )


def test_ties_keep_the_order_of_the_first_list_whatever_the_order_of_addition() -> None:
    """Ranks (1, 3, 2), (2, 1, 3) and (3, 2, 1) tie exactly; floats added left to right differ in the last bit."""
    fused = fuse([["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]])
    assert [name for name, _ in fused] == ["a", "b", "c"]
    assert len({score for _, score in fused}) == 1


def test_hand_computed_example() -> None:
    assert fuse([["x", "y"], ["y", "z"]]) == [
        ("y", pytest.approx(1 / 62 + 1 / 61)),
        ("x", pytest.approx(1 / 61)),
        ("z", pytest.approx(1 / 62)),
    ]


def test_a_name_given_twice_counts_once_and_empty_lists_count_nothing() -> None:
    assert fuse([["x", "y", "x"], []]) == [("x", 1 / 61), ("y", 1 / 62)]
    assert fuse([]) == fuse([[], []]) == []


def test_max_sim_is_the_mean_of_each_query_tokens_best_cosine() -> None:
    query = np.array([[1, 0], [0, 1]], dtype=np.float32)
    passage = np.array([[0.6, 0.8], [0.8, 0.6], [-1, 0]], dtype=np.float32)
    assert max_sim(query, passage) == pytest.approx((0.8 + 0.8) / 2)
    assert max_sim(query, query[:0]) == -1.0


def test_late_interaction_prefers_the_passage_with_all_the_words() -> None:
    score = late_interaction(FakeEncoder())
    all_words, some, none, empty = score("red fox", ["a red one and a fox", "red paint", "blue sky", ""])
    assert all_words == pytest.approx(1.0, abs=1e-6)
    assert all_words > some > none > empty == -1.0
    assert load_reranker("late", FakeEncoder())("x", []) == []


def test_a_grader_reranks_by_how_sure_it_is_of_relevance() -> None:
    asked: list[tuple[str, str, str]] = []

    def fake_grader(task: str, cases: Sequence[Case]) -> list[float]:
        asked.extend((task, case.passage, case.question) for case in cases)
        return [len(case.passage) / 10 for case in cases]

    assert by_grader(fake_grader)("why", ["one", "three"]) == [0.3, 0.5]
    assert asked == [("relevant", "one", "why"), ("relevant", "three", "why")]


def test_a_missing_package_is_named() -> None:
    if importlib.util.find_spec("sentence_transformers"):
        pytest.skip("sentence-transformers is installed here")
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        cross_encoder("some/model")


def brute_force_mmr(values: list[float], vectors: np.ndarray, k: int, balance: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(k, len(values)):
        left = [i for i in range(len(values)) if i not in chosen]
        marginal = {
            i: balance * values[i] - (1 - balance) * max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0)
            for i in left
        }
        chosen.append(max(left, key=lambda i: (round(marginal[i], 5), -i)))
    return chosen


@given(st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 5))
def test_mmr_equals_brute_force(n: int, k: int, balance: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = sorted(rng.random(n).tolist(), reverse=True)
    scaled = [(r - min(relevance)) / ((max(relevance) - min(relevance)) or 1) if n > 1 else 1.0 for r in relevance]
    got = maximal_marginal_relevance(relevance, vectors, k, balance)
    assert [place for place, _ in got] == brute_force_mmr(scaled, vectors, k, balance)


def test_mmr_passes_over_a_copy() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert [i for i, _ in maximal_marginal_relevance([1.0, 0.9, 0.5], vectors, 2, 0.5)] == [0, 2]
    assert [i for i, _ in maximal_marginal_relevance([1.0, 0.9, 0.5], vectors, 2, 1.0)] == [0, 1]
    assert [i for i, _ in maximal_marginal_relevance([1.0, 1.0, 1.0], vectors, 3, 1.0)] == [0, 1, 2]
