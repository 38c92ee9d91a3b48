"""BM25 over the passages: finds the words themselves, names and numbers above all, which embeddings blur.

score = sum over query words of idf(word) × tf / (tf + k1 × (1 - b + b × length / mean length))

bm25s computes every word's share beforehand and keeps a sparse matrix, words × passages, so a query only adds up the
rows of its words; memory-mapped, those are all that is read. The index is immutable: it is made again when passages
change (which reads text and embeds nothing).
Sources: Robertson & Zaragoza, "The Probabilistic Relevance Framework", 2009; Lù, "BM25S", 2024.

    python -m pytest tests/step3/test_retrieval.py
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Words that are in nearly every question and say nothing about its topic, but have the longest rows to add up.
STOPWORDS = frozenset(
    re.findall(
        r"\S+",
        "a about an and any are as at be been being but by can could did do does doing for from had has have having he "
        "her his how i if in into is it its just me my no nor not of on or our s she should so some such t than that "
        "the their them then there these they this those to too us was we were what when where which who whom whose "
        "why will with would you your",
    )
)
_PIECE = re.compile(r"[a-z0-9]+|[A-Z]+(?![a-z])|[A-Z][a-z0-9]*")


def words(text: str) -> list[str]:
    """Return the words that count, in the order of the text: lower case, plural endings taken off, no stop words.

    An identifier counts as itself and as its parts: parse_config and parseConfig are found by "parse config", YouTube
    still by "youtube".
    """
    found = []
    for word in re.findall(r"\w+", text):
        forms = [word]
        if not (word.islower() or word.isdigit()) or "_" in word:
            pieces = _PIECE.findall(word) if word.isascii() else word.split("_")
            if pieces != [word]:
                forms += pieces
        found += [singular(form.casefold()) for form in forms]
    return [word for word in found if word and word not in STOPWORDS]


def singular(word: str) -> str:
    """Return the word without an English plural ending.

    The S-stemmer of Harman, "How effective is suffixing?", JASIS 1991 (Lucene's EnglishMinimalStemFilter): three
    rules that leave names alone and need no package. Others were not compared.
    """
    if len(word) < 4 or not word.endswith("s") or word[-2] in "us":
        return word
    if word.endswith("ies"):
        return word if word[-4] in "ae" else word[:-3] + "y"
    if word.endswith("es"):
        return word if word[-3] in "aeo" else word[:-1]
    return word[:-1]


def build_lexical_index(folder: Path, ids: Iterable[str], texts: Iterable[str]) -> None:
    """Write the index of `texts` into the empty or missing `folder`; the caller makes that atomic."""
    import bm25s  # type: ignore[import-untyped]

    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    # A text without words gets the empty word, which no query has: bm25s cannot index a collection without any word.
    index.index([words(text) or [""] for text in texts] or [[""]], show_progress=False)
    index.save(folder, show_progress=False)
    np.save(folder / "ids.npy", np.array(list(ids), dtype="S32"))


class LexicalIndex:
    """An index read from disk, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._index = bm25s.BM25.load(folder, mmap=True)
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")

    def search(self, query: str, depth: int) -> list[tuple[str, float]]:
        """Return (id, score) of at most `depth` passages that share a word with the query, best first.

        Equal scores come in the order of the passages.
        """
        tokens = self._index.get_tokens_ids(words(query))
        if not tokens:
            return []
        scores = self._index.get_scores_from_ids(tokens)
        places = np.flatnonzero(scores)
        if len(places) > depth:
            least = np.partition(scores[places], -depth)[-depth]
            places = places[scores[places] >= least]
        best = places[np.argsort(-scores[places], kind="stable")][:depth]
        return [(self._ids[place].decode(), float(scores[place])) for place in best]
