"""A fake collection in memory: passages found by the words that they share with the query. No Chroma, no BM25, no disk.

It has what retrieval.search and the graph use of an Index, and nothing else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_encoder import FakeEncoder

from step3_rag.lexical import words
from step3_rag.passages import Passage
from step3_rag.routing import Route


def passage(name: str, text: str, *, start: int = 0, source: str = "notes.md", titles: Sequence[str] = ()) -> Passage:
    return Passage(name, str(Path("/docs") / source), tuple(titles), start, start + len(text), text)


class FakeIndex:
    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = {p.id: p for p in passages}
        self.store = self
        self.encoder = FakeEncoder.name
        self.queries: list[str] = []

    def refresh(self) -> None: ...

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        return {name: self._passages[name] for name in ids}

    def lexical(self, query: str, depth: int) -> list[tuple[str, float]]:
        self.queries.append(query)
        wanted = set(words(query))
        scores = {name: float(len(wanted & set(words(p.text)))) for name, p in self._passages.items()}
        found = sorted((name for name in scores if scores[name]), key=lambda name: -scores[name])
        return [(name, scores[name]) for name in found[:depth]]

    def dense(self, vector: Any, depth: int) -> list[tuple[str, float]]:
        rows = FakeEncoder().encode([p.text for p in self._passages.values()])
        cosines = dict(zip(self._passages, (rows @ vector).tolist(), strict=True)) if self._passages else {}
        return sorted(cosines.items(), key=lambda pair: -pair[1])[:depth]


class FakeRouter:
    """Sends "hello …" to small talk and "weather …" out, everything else to the collection."""

    def route(self, question: str, encoder: Any) -> Route:
        first = question.split()[0].lower()
        return Route({"hello": "small_talk", "weather": "out_of_scope"}.get(first, "collection"), 0.5)
