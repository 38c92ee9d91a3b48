"""BM25 over a few thousand passages: which ones share the words of a question, rare words most, function words not.

Only for choosing hard negatives (grader_data.py); a retriever that is to be fast and complete is step 3's business.
Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the idf of Lucene,
which is never negative.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from step4_finetune.decontaminate import words

# Words that say nothing about a topic. A yes/no question is half made of them, and would find its like, not its topic.
_COMMON = (
    "a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it "
    "its made make many much name of on one or she so some than that the their them then there these they this to was "
    "were what when where which who whom whose why will with would you your"
)
COMMON = frozenset(_COMMON.split())

K1, B = 1.2, 0.75  # the usual values: saturation of a word's count, and how much a long text is discounted


class BM25:
    """An index over texts; numbers in the answers are their places in `texts`."""

    def __init__(self, texts: Sequence[str]) -> None:
        found = [[word for word in words(text) if word not in COMMON] for text in texts]
        lengths = np.array([len(text) for text in found])
        discount = K1 * (1 - B + B * lengths / max(1.0, lengths.mean()))
        places: dict[str, list[tuple[int, int]]] = {}
        for place, text in enumerate(found):
            for word, count in Counter(text).items():
                places.setdefault(word, []).append((place, count))
        self._size = len(texts)
        self._weights: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for word, pairs in places.items():
            at, counts = np.array(pairs).T
            idf = np.log(1 + (len(texts) - len(pairs) + 0.5) / (len(pairs) + 0.5))
            self._weights[word] = at, idf * counts * (K1 + 1) / (counts + discount[at])

    def scores(self, query: str) -> NDArray[np.float64]:
        """Return the score of every text."""
        result = np.zeros(self._size)
        for word in words(query):
            if word in self._weights:
                at, weights = self._weights[word]
                result[at] += weights
        return result

    def top(self, query: str, count: int) -> list[int]:
        """Return the best `count` texts with any word of the query, best first; equal scores in the texts' order."""
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[:count]
        return [int(place) for place in best if scores[place] > 0]
