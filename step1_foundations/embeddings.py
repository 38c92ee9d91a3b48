"""The embedding matrix: one learned vector per token, and what lies near what.

    python -m step1_foundations embed king queen Paris London

Vectors are centred (the mean of all of them is subtracted) before any cosine: the vectors of a trained model share a
large common direction, and without centring everything looks similar. Source: Mu & Viswanath, "All-but-the-Top", 2018.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from shared.linear import DenseMatrix, QuantizedMatrix
from shared.transformer import Transformer
from step1_foundations.tokens import visible

if TYPE_CHECKING:
    from rich.console import Console

    from shared.models import LoadedModel

NEIGHBOURS = 8


@dataclass(frozen=True)
class Neighbour:
    """A vocabulary token and the cosine between its centred vector and the word's."""

    id: int
    piece: str
    cosine: float


@dataclass(frozen=True)
class Word:
    """A word and its surroundings. ids: its token, or several whose vectors were averaged."""

    text: str
    ids: list[int]
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Point:
    """A place on the 2-D map. word: index into `words`; is_word: the word itself, or one of its neighbours."""

    label: str
    x: float
    y: float
    word: int
    is_word: bool


@dataclass(frozen=True)
class EmbeddingReport:
    """cosine: [words][words]. explained: the shares of the points' variance that the map's two axes carry."""

    words: list[Word]
    cosine: list[list[float]]
    points: list[Point]
    explained: tuple[float, float]
    centred: bool = True


def embedding_matrix(transformer: Transformer) -> Tensor:
    """Return the whole embedding matrix, float32 [vocabulary, hidden], on the CPU."""
    if isinstance(transformer.embedding, QuantizedMatrix):
        return transformer.embedding.dequantize().cpu()
    assert isinstance(transformer.embedding, DenseMatrix)
    return transformer.embedding.weight.float().cpu()


def embed(model: "LoadedModel", words: list[str]) -> EmbeddingReport:
    """Return neighbours, pairwise cosines and a PCA map of words. Raises UserError for an empty word."""
    if not words or any(not word.strip() for word in words):
        raise UserError("give at least one WORD, none of them empty")
    matrix = embedding_matrix(model.transformer)[: model.tokenizer.backend.get_vocab_size()]
    matrix = F.normalize(matrix - matrix.mean(0), dim=-1)
    ids = [_word_ids(model, word) for word in words]
    vectors = F.normalize(torch.stack([matrix[i].mean(0) for i in ids]), dim=-1)

    near: list[list[Neighbour]] = []
    for vector, own in zip(vectors, ids, strict=True):
        cosine = matrix @ vector
        cosine[own] = -2.0  # a token is no neighbour of itself
        best = cosine.topk(min(NEIGHBOURS, len(cosine) - len(own)))
        near.append(
            [
                Neighbour(i, model.tokenizer.piece(i), c)
                for c, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        )
    labels: list[tuple[str, int, bool]] = [(word, index, True) for index, word in enumerate(words)]
    placed = {i[0] for i in ids if len(i) == 1}  # a token that is near two words, or is a word, gets one point
    others: list[int] = []
    for index, group in enumerate(near):
        for n in group:
            if n.id not in placed:
                placed.add(n.id)
                others.append(n.id)
                labels.append((n.piece, index, False))
    xy, explained = pca(torch.cat([vectors, matrix[others]]))
    return EmbeddingReport(
        words=[Word(*row) for row in zip(words, ids, near, strict=True)],
        cosine=(vectors @ vectors.T).clamp(-1, 1).tolist(),
        points=[
            Point(label, x, y, word, is_word)
            for (label, word, is_word), (x, y) in zip(labels, xy.tolist(), strict=True)
        ],
        explained=explained,
    )


def pca(vectors: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Project vectors [n ≥ 2, hidden] on their two directions of largest variance: ([n, 2], shares of the variance)."""
    centred = vectors - vectors.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    share = s**2 / (s**2).sum().clamp_min(1e-12)
    return u[:, :2] * s[:2], (float(share[0]), float(share[1]))


def _word_ids(model: "LoadedModel", word: str) -> list[int]:
    """The word's token: with a leading space if that is one token (how words stand in running text), else without."""
    spaced, bare = model.tokenizer.encode(" " + word), model.tokenizer.encode(word)
    return bare if len(spaced) > 1 and len(bare) <= len(spaced) else spaced


def print_embeddings(out: "Console", result: EmbeddingReport) -> None:
    """Print neighbours, and for several words the table of cosines."""
    from rich.table import Table
    from rich.text import Text

    for word in result.words:
        note = "" if len(word.ids) == 1 else f"  ({len(word.ids)} tokens, averaged)"
        out.print(Text(f"{word.text}{note}", style="bold"))
        out.print(Text("  " + "  ".join(f"{visible(n.piece)} {n.cosine:.2f}" for n in word.neighbours)))
    if len(result.words) > 1:
        table = Table(title="cosine (centred)", title_justify="left", box=None, header_style="bold")
        table.add_column("", max_width=14, no_wrap=True)
        shown = result.words[:8]  # 8 columns of words fit 80 characters; --json has them all
        for word in shown:
            table.add_column(Text(word.text), max_width=7, justify="right", no_wrap=True)
        for word, row in zip(result.words, result.cosine, strict=True):
            table.add_row(Text(word.text), *(f"{value:.2f}" for value in row[: len(shown)]))
        out.print()
        out.print(table)
    out.print(f"\nthe map's two axes carry {sum(result.explained):.0%} of the points' variance")
