"""A fake embedding model: needs no weights, imports no torch, and gives the same numbers in every process.

A word's vector is made of its CRC, a text's is the mean of its words': texts that share words are near each other,
which is all that the tests of storing and finding need. It says nothing about meaning.
"""

import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


class FakeEncoder:
    name = "fake-hashing-encoder"
    dimensions = 32
    special_tokens = 2

    def __init__(self, max_tokens: int = 64) -> None:
        self.max_tokens = max_tokens
        self.texts_encoded = 0

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for number, tokens in enumerate(self.encode_tokens(texts)):
            mean = tokens.sum(axis=0) if len(tokens) else np.ones(self.dimensions, dtype=np.float32)
            rows[number] = mean / np.linalg.norm(mean)
            if on_progress:
                on_progress(number + 1, len(texts))
        self.texts_encoded += len(texts)
        return rows

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        return [
            np.array([self._word(text[a:b].lower()) for a, b in self.token_spans(text)]).reshape(-1, self.dimensions)
            for text in texts
        ]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]

    def _word(self, word: str) -> NDArray[np.float32]:
        seed = zlib.crc32(word.encode(errors="replace"))
        vector = np.random.default_rng(seed).standard_normal(self.dimensions).astype(np.float32)
        return vector / np.linalg.norm(vector)
