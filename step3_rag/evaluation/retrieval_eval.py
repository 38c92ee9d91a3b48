"""Which retriever finds the passage that answers? Each is asked the same questions for the same number of passages.

    python -m step3_rag eval retrieval --limit 200

The arms go through retrieval.search, as the app does. What is slow is done once: a query is embedded once for all
arms, and late interaction's token vectors are kept per passage (0.3 GB for BoolQ in float16, instead of encoding 20
passages for each of 3,270 questions, which would take half an hour).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from step3_rag.chunks import RECIPE
from step3_rag.encoder import TextEncoder
from step3_rag.evaluation.datasets import Dataset, Question, relevant
from step3_rag.evaluation.journal import Outcome, measure, path_of
from step3_rag.evaluation.metrics import DEPTH
from step3_rag.index import Index
from step3_rag.rerank import late_interaction
from step3_rag.retrieval import search

BALANCE = 0.7  # of MMR, in the middle of the usual range; not tuned


class RememberingEncoder:
    """The same encoder, but no text is encoded twice. Token vectors are kept as float16."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self.name, self.dimensions = encoder.name, encoder.dimensions
        self.max_tokens, self.special_tokens = encoder.max_tokens, encoder.special_tokens
        self.token_spans = encoder.token_spans
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._tokens: dict[str, NDArray[np.float16]] = {}

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return unit-length rows [texts, dimensions]."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._vectors]:
            self._vectors.update(zip(new, self._encoder.encode(new, on_progress), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return per text the rows [tokens, dimensions], unit-length up to float16's rounding (1e-3)."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._tokens]:
            for text, rows in zip(new, self._encoder.encode_tokens(new), strict=True):
                self._tokens[text] = rows.astype(np.float16)
        return [self._tokens[text].astype(np.float32) for text in texts]


def arms(encoder: TextEncoder) -> dict[str, dict[str, Any]]:
    """Return name → the options of retrieval.search that make the arm."""
    return {
        "dense": {"retrievers": ["dense"]},
        "lexical": {"retrievers": ["lexical"]},
        "fused": {},
        "fused + MMR": {"balance": BALANCE},
        "fused + late interaction": {"reranker": late_interaction(encoder)},
    }


def with_an_answer(dataset: Dataset, index: Index) -> dict[str, int]:
    """Return question id → how many passages of the collection are relevant, for questions that have any."""
    paths = {Path(path).name: path for path in index.store.digests()}
    cut = {name: index.store.passages_of(path) for name, path in paths.items()}
    counts = {q.id: sum(relevant(q, passage) for passage in cut[q.source]) for q in dataset.questions}
    return {name: count for name, count in counts.items() if count}


def measure_retrieval(
    dataset: Dataset,
    questions: Sequence[Question],
    counts: dict[str, int],
    index: Index,
    encoder: TextEncoder,
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Outcome]]:
    """Ask every arm every question; return arm → outcomes in the order of the questions.

    counts: as with_an_answer returns. An outcome has `ranks`, the places of the relevant passages among the first
    DEPTH, and `relevant`, how many there are. Raises what search and journal.measure raise.
    """
    remembering = RememberingEncoder(encoder)
    results = {}
    for name, options in arms(remembering).items():

        def one(question: Question, options: dict[str, Any] = options) -> Outcome:
            hits = search(question.text, DEPTH, index, remembering, **options)
            ranks = [rank for rank, hit in enumerate(hits, 1) if relevant(question, hit.passage)]
            return {"ranks": ranks, "relevant": counts[question.id]}

        header = {
            "measured": "retrieval",
            "arm": name,
            "options": {key: value for key, value in options.items() if key != "reranker"},
            "dataset": dataset.name,
            "documents": dataset.digest,
            "encoder": encoder.name,
            "chunks": RECIPE,
            "depth": DEPTH,
        }
        results[name] = measure(questions, one, path_of(folder, header), header, advance)
    return results
