"""The embedding model as step 3 needs it: vectors, token vectors, and where each token stands in the text.

    python -m pytest tests/step3/test_chunks.py -m real     # MiniLM's own tokenizer

Tests use a fake with the same methods (tests/step3/fake_encoder.py), which needs no weights.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

DEFAULT_ENCODER = "minilm-l6-v2"


class TextEncoder(Protocol):
    """An embedding model.

    name: kept in the index, because vectors of different models cannot be compared.
    dimensions: of a vector. max_tokens: longest input, special tokens included. special_tokens: how many those are.
    """

    name: str
    dimensions: int
    max_tokens: int
    special_tokens: int

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return unit-length rows [texts, dimensions]; on_progress(texts done, texts in all)."""
        ...

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return per text the unit-length rows [tokens, dimensions], special tokens left out."""
        ...

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return (first character, character after the last) of each token, special tokens left out."""
        ...


class Encoder:
    """A sentence-transformers model: shared/embeddings.py and its tokenizer."""

    special_tokens = 2  # [CLS] and [SEP]

    def __init__(self, name: str = DEFAULT_ENCODER) -> None:
        """Load a catalogue name or a directory. Raises UserError as shared.embeddings.load_embedder does."""
        from pathlib import Path

        from tokenizers import Tokenizer

        from shared import artifacts, catalog
        from shared.embeddings import load_embedder

        self._embedder = load_embedder(name)
        directory = artifacts.fetch(name) if name in catalog.load() else Path(name).expanduser()
        self._tokenizer: Any = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = name if name in catalog.load() else str(directory.resolve())
        self.dimensions, self.max_tokens = self._embedder.dimensions, self._embedder.max_tokens

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return unit-length rows [texts, dimensions]; batches are sorted by length inside."""
        return self._embedder.encode(texts, on_progress)

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return per text the unit-length rows [tokens, dimensions]."""
        return [rows.numpy() for rows in self._embedder.encode_tokens(texts)]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the span of each token in characters of `text`."""
        clean = text.encode(errors="replace").decode()  # the library refuses lone surrogates; "?" is as long as one
        spans: list[tuple[int, int]] = self._tokenizer.encode(clean, add_special_tokens=False).offsets
        return spans
