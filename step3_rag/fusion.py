"""Reciprocal rank fusion: merge ranked lists without comparing their scores.

Cosines and BM25 scores live on different scales, so adding them needs tuning per collection; ranks do not.
Source: Cormack, Clarke & Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009.

    python -m step3_rag search "who wrote the first compiler" --explain
    python -m pytest tests/step3/test_fusion.py     # against a brute-force reference
"""

import math
from collections.abc import Sequence

K = 60  # rank damping, the paper's value: rank 1 counts 1/61, rank 10 still 1/70


def fuse(rankings: Sequence[Sequence[str]], k: int = K) -> list[tuple[str, float]]:
    """Return (id, score), best first, where score = sum over the lists that hold the id of 1 / (k + rank).

    rankings: ids, best first, one list per retriever; a list may be empty. An id that a list names twice counts once,
    at its better place. Equal scores keep the order of the first list, then of the second, and so on.
    """
    parts: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, name in enumerate(dict.fromkeys(ranking), start=1):
            parts.setdefault(name, []).append(1 / (k + rank))
    # fsum rounds once, so ranks (1, 2, 3) and (3, 2, 1) in three lists tie exactly, whatever the order of addition.
    scores = [(name, math.fsum(terms)) for name, terms in parts.items()]
    return sorted(scores, key=lambda pair: -pair[1])  # stable, and `parts` is in order of first appearance
