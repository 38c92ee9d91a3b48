"""Second looks at a short list: late interaction, a cross-encoder by name, a grader, and maximal marginal relevance.

The first stage compares one vector per text. A reranker compares more, so it is given only the best few:
- late interaction keeps every token's vector and looks up the best match of each query token (Khattab & Zaharia,
  "ColBERT", SIGIR 2020). Here the vectors are those of the embedding model, which was not trained for it, so its worth
  is measured, not assumed (results/retrieval_boolq.json).
- a cross-encoder reads query and passage together (Nogueira & Cho, "Passage Re-ranking with BERT", 2019). None is
  small enough to ship; any that sentence-transformers loads can be named.
- a grader (graders.py) is asked how sure it is that the passage is relevant: the chat model, or step 4's adapter.
- maximal marginal relevance does not judge relevance anew, it avoids saying the same thing twice (Carbonell &
  Goldstein, "The Use of MMR", SIGIR 1998).

    python -m step3_rag search "who wrote the first compiler" --rerank late --explain
"""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from step3_rag.encoder import TextEncoder

if TYPE_CHECKING:
    from step3_rag.graders import Grader

# Query and passage texts in, one score per passage out, higher is better.
Reranker = Callable[[str, Sequence[str]], Sequence[float]]
# What looks twice where nobody says: it won. Fused ranks alone lose to the better of their two parts; with this second
# look they are level with it on BoolQ and on NarrativeQA, and first at recall@1 on both (results/retrieval_*.json).
DEFAULT_RERANKER = "late"


def late_interaction(encoder: TextEncoder) -> Reranker:
    """Return ColBERT's MaxSim: each query token takes its best cosine in the passage; the score is their mean.

    The mean (ColBERT takes the sum) ranks alike and can be compared between queries. Cost: the passages are encoded
    anew for every query. Kept on disk they would take 2 × tokens × dimensions bytes: 12 GB for 100,000 passages of
    150 tokens.
    """

    def score(query: str, texts: Sequence[str]) -> list[float]:
        (wanted,) = encoder.encode_tokens([query])
        return [max_sim(wanted, passage) for passage in encoder.encode_tokens(texts)]

    return score


def max_sim(query: NDArray[np.float32], passage: NDArray[np.float32]) -> float:
    """Return the mean over query tokens of the best cosine among passage tokens; -1 when either has no tokens.

    query, passage: unit-length rows [tokens, dimensions].
    """
    if not len(query) or not len(passage):
        return -1.0
    return float((query @ passage.T).max(axis=1).mean())


def cross_encoder(name: str) -> Reranker:
    """Return a cross-encoder as a reranker. name: a directory, or a Hub id if the Hub can be reached.

    Raises UserError when sentence-transformers is not installed or cannot load the model.
    """
    try:
        package = importlib.import_module("sentence_transformers")
    except ImportError:
        raise UserError("a cross-encoder needs one more package: pip install sentence-transformers") from None
    try:
        model = package.CrossEncoder(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the cross-encoder {name!r}: {error}") from None

    def score(query: str, texts: Sequence[str]) -> list[float]:
        return [float(value) for value in model.predict([(query, text) for text in texts])]

    return score


def by_grader(grader: "Grader") -> Reranker:
    """Return a grader as a reranker: the score is how sure it is, 0 to 1, that the passage is relevant."""
    from step3_rag.graders import Case

    return lambda query, texts: grader("relevant", [Case(text, query) for text in texts])


def load_reranker(name: str, encoder: TextEncoder) -> Reranker:
    """Return the reranker called `name`: "late", or a cross-encoder. Raises UserError as cross_encoder does."""
    return late_interaction(encoder) if name == "late" else cross_encoder(name)


def maximal_marginal_relevance(
    relevance: Sequence[float], vectors: NDArray[np.float32], k: int, balance: float
) -> list[tuple[int, float]]:
    """Choose k of n items one at a time, each time the largest balance × relevance - (1 - balance) × redundancy.

    relevance: of each item, higher is better; put on 0 to 1 first, because fused scores span 0.02 and cosines 2.
    vectors: unit-length rows [n, dimensions]; redundancy is the largest cosine with an item already chosen.
    balance: 1 keeps the order of relevance, 0 looks at novelty alone. Returns (index, score) in the order chosen.
    """
    values = np.asarray(relevance, dtype=np.float32)
    spread = float(values.max() - values.min()) if len(values) else 0.0
    values = (values - values.min()) / spread if spread else np.ones_like(values)
    chosen: list[tuple[int, float]] = []
    redundancy = np.zeros(len(values), dtype=np.float32)
    left = np.ones(len(values), dtype=bool)
    while len(chosen) < min(k, len(values)):
        scores = np.where(left, balance * values - (1 - balance) * redundancy, -np.inf)
        best = int(scores.argmax())  # the first of equals, so ties keep the order they came in
        chosen.append((best, float(scores[best])))
        left[best] = False
        similarity = vectors @ vectors[best]
        redundancy = similarity if len(chosen) == 1 else np.maximum(redundancy, similarity)
    return chosen
