"""Find passages: two retrievers, one fusion, and two optional second looks, in one place.

    query ─┬─ dense: embed, nearest vectors in Chroma ─┐
           └─ lexical: BM25 over the words ────────────┴─ fuse ranks ─ [rerank] ─ [diversify] ─ k hits

Every hit remembers its place and score at each stage, which is what --explain prints and the ablation counts.

    python -m step3_rag search "who wrote the first compiler" --explain
    python -m pytest tests/step3/test_retrieval.py
"""

from collections.abc import Sequence

import numpy as np

from shared.errors import UserError
from step3_rag.encoder import TextEncoder
from step3_rag.fusion import fuse
from step3_rag.index import Index
from step3_rag.passages import Hit
from step3_rag.rerank import Reranker, maximal_marginal_relevance

RETRIEVERS = ("dense", "lexical")
DEPTH = 100  # passages asked of each retriever; fusion looks at nothing below
SECOND_LOOK = 20  # passages, at least, that a reranker or MMR gets to reorder


def search(
    query: str,
    k: int,
    index: Index,
    encoder: TextEncoder,
    *,
    retrievers: Sequence[str] = RETRIEVERS,
    reranker: Reranker | None = None,
    balance: float | None = None,
) -> list[Hit]:
    """Return at most k hits, best first.

    retrievers: "dense", "lexical", or both, which are then fused. reranker: gives the best 20 (or k, if that is more)
    new scores. balance: between relevance (1) and novelty (0), for MMR over the same; None leaves it out.
    Raises UserError for an empty query, an unknown retriever, an encoder that is not the collection's.
    """
    if not query.strip():
        raise UserError("the query is empty")
    if not retrievers or not set(retrievers) <= set(RETRIEVERS):
        raise UserError(f"retrievers {', '.join(retrievers) or '(none)'}: use dense, lexical or both")
    if encoder.name != index.store.encoder:
        raise UserError(f"the collection was embedded with {index.store.encoder}, not with {encoder.name}")
    index.refresh()

    lists: dict[str, list[tuple[str, float]]] = {}
    if "dense" in retrievers:
        lists["dense"] = index.dense(encoder.encode([query])[0], DEPTH)
    if "lexical" in retrievers:
        lists["lexical"] = index.lexical(query, DEPTH)
    order = lists[retrievers[0]]
    if len(lists) > 1:
        lists["fused"] = order = fuse([[name for name, _ in found] for found in lists.values()])

    second_look = reranker is not None or balance is not None
    # A few more than needed: an ingest that is under way may have replaced some since the indexes were made.
    wanted = max(k, SECOND_LOOK) if second_look else k
    passages = index.store.passages([name for name, _ in order[: wanted + 20]])
    order = [pair for pair in order if pair[0] in passages][:wanted]

    if reranker is not None:
        scores = reranker(query, [passages[name].indexed_text for name, _ in order])
        ranked = zip((name for name, _ in order), map(float, scores), strict=True)
        lists["reranked"] = order = sorted(ranked, key=lambda pair: -pair[1])
    if balance is not None:
        vectors = index.store.vectors([name for name, _ in order])
        order = [pair for pair in order if pair[0] in vectors]
    if balance is not None and order:
        matrix = np.stack([vectors[name] for name, _ in order])
        chosen = maximal_marginal_relevance([score for _, score in order], matrix, k, balance)
        lists["diverse"] = order = [(order[place][0], score) for place, score in chosen]

    ranks = {stage: {name: rank for rank, (name, _) in enumerate(found, 1)} for stage, found in lists.items()}
    scored = {stage: dict(found) for stage, found in lists.items()}
    return [
        Hit(
            passages[name],
            score,
            ranks={stage: table[name] for stage, table in ranks.items() if name in table},
            scores={stage: table[name] for stage, table in scored.items() if name in table},
        )
        for name, score in order[:k]
    ]
