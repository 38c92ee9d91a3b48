"""What retrieval hands to everybody else: a Passage, and the Hit that says why it was found.

The graph, the graders, the citations, the page and the evaluation know these two types and nothing of Chroma, BM25 or
SQLite. Both are frozen and hold plain data, so they can be shared between threads and printed as JSON (`asdict`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passage:
    """A piece of a source that can be cited: `text == source_text[start:end]`, exactly.

    id: 32 hexadecimal digits, made of the source's path, the text and its context: the same passage has the same id
        in every run, and keeps it when only its place in the file moves.
    source: absolute path of the file. The source's text is what was read from it (the file itself for Markdown,
        reStructuredText, text and code; the extracted text for HTML and PDF) and is kept in the index.
    heading_path: titles from the outermost section to the innermost; in a PDF the last one is "page N".
    start, end: character offsets (not bytes) into the source's text; end is exclusive.
    context: the titles above the passage that its own text does not contain, joined by " > "; "" when there are none.
    """

    id: str
    source: str
    heading_path: tuple[str, ...]
    start: int
    end: int
    text: str
    context: str = ""

    @property
    def indexed_text(self) -> str:
        """What is embedded and what BM25 counts: the text under its titles, for "Limits" alone says nothing."""
        return f"{self.context}\n\n{self.text}" if self.context else self.text


# The stages a passage can pass through, in order, and the unit of the score each one gives. Higher is always better.
STAGES = {
    "dense": "cosine between the embeddings of query and passage, -1 to 1",
    "lexical": "BM25, 0 and up, comparable within one query only",
    "fused": "reciprocal rank fusion, the sum of 1 / (60 + rank) over the lists",
    "reranked": "whatever the reranker gives; late interaction: mean of the best cosine of each query token, -1 to 1",
    "diverse": "maximal marginal relevance: what the passage adds to those above it",
}


@dataclass(frozen=True)
class Hit:
    """A passage that was found, with its place and its score in every list that held it.

    score: that of the last stage that ordered the result, so hits come sorted by it.
    ranks: stage → place in that stage's list, 1 is best. scores: stage → score, in the unit that STAGES names.
    A stage that did not see the passage, or did not run, is in neither.
    """

    passage: Passage
    score: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
