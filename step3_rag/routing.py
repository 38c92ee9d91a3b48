"""Semantic routing: which way a question goes, by the labelled examples it is nearest to.

    question → embed → mean cosine to its 8 nearest examples of each route → collection | small_talk | out_of_scope

No model is trained and no prompt is written: routes.toml holds examples, and adding one changes the behaviour. A
question leaves `collection` only when another route is nearer by a threshold, because the mistakes differ in price: a
question that is turned away is lost, one that is looked up in vain still ends with "I don't know".

    python -m step3_rag route "thanks, that helped" --explain
    python -m step3_rag route --calibrate     # the threshold for the examples that are there now

How the rule was chosen (MiniLM, each example left out in turn, mean recall of the three routes): a mean over 1, 3, 5, 8
neighbours gives 0.83, 0.88, 0.90, 0.90 at its best threshold; a threshold on the similarity itself, in place of the
difference, at most 0.89.
"""

import math
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from step3_rag.encoder import TextEncoder

COLLECTION, SMALL_TALK, OUT_OF_SCOPE = ROUTES = ("collection", "small_talk", "out_of_scope")
EXAMPLES = Path(__file__).with_name("routes.toml")
EVALUATION = Path(__file__).parent / "data" / "routes_eval.toml"
NEIGHBOURS = 8
KEPT = 0.95  # share of the collection's examples that calibration keeps there

Labelled = tuple[str, str]  # (question, route)


@dataclass(frozen=True)
class Route:
    """Where a question goes, and why.

    name: one of ROUTES. similarity: mean cosine to the nearest examples of that route, -1 to 1.
    similarities: the same for every route. nearest: (example, its route, cosine), the nearest of all, best first.
    """

    name: str
    similarity: float
    similarities: Mapping[str, float] = field(default_factory=dict)
    nearest: tuple[tuple[str, str, float], ...] = ()


class Router:
    """Examples and a threshold. Their encodings are kept in memory, for one encoder at a time."""

    def __init__(self, path: Path = EXAMPLES) -> None:
        """Read the examples. Raises UserError that names what is wrong with the file."""
        document = _read(path)
        threshold = document.pop("threshold", None)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise UserError(f"{path}: threshold must be a number; python -m step3_rag route --calibrate finds one")
        self.threshold = float(threshold)
        tables = {name: table.get("examples") if isinstance(table, dict) else None for name, table in document.items()}
        self.examples = _labelled(path, tables)
        self._labels = np.array([ROUTES.index(route) for _, route in self.examples])
        self._encoded: tuple[str, NDArray[np.float32]] | None = None

    def route(self, question: str, encoder: TextEncoder) -> Route:
        """Return the question's route. The first call with an encoder also embeds the examples (1 s for MiniLM)."""
        vectors = self._vectors(encoder)
        cosines = vectors @ encoder.encode([question])[0]
        scores = self._scores(cosines[None])[0]
        place = int(self._decide(scores[None], self.threshold)[0])
        order = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
        return Route(
            ROUTES[place],
            float(scores[place]),
            {name: float(score) for name, score in zip(ROUTES, scores, strict=True)},
            tuple((*self.examples[i], float(cosines[i])) for i in order),
        )

    def calibrate(self, encoder: TextEncoder) -> float:
        """Return the smallest threshold that keeps 95 % of the collection's examples, each judged by the others.

        Rounded up to two decimals; the examples, not data/routes_eval.toml, decide it.
        """
        vectors = self._vectors(encoder)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)  # an example must not vote for itself
        leads = np.sort(_leads(self._scores(cosines))[self._labels == ROUTES.index(COLLECTION)])
        return max(0.0, math.ceil(100 * float(leads[math.ceil(KEPT * len(leads)) - 1])) / 100)

    def measure(self, labelled: Sequence[Labelled], encoder: TextEncoder) -> dict[str, dict[str, int]]:
        """Return the confusion matrix: route wanted → route taken → number of questions."""
        scores = self._scores(encoder.encode([question for question, _ in labelled]) @ self._vectors(encoder).T)
        taken = [ROUTES[place] for place in self._decide(scores, self.threshold)]
        counts = Counter(zip((wanted for _, wanted in labelled), taken, strict=True))
        return {wanted: {got: counts[wanted, got] for got in ROUTES} for wanted in ROUTES}

    def _vectors(self, encoder: TextEncoder) -> NDArray[np.float32]:
        encoded = self._encoded
        if encoded is None or encoded[0] != encoder.name:
            self._encoded = encoded = encoder.name, encoder.encode([question for question, _ in self.examples])
        return encoded[1]

    def _scores(self, cosines: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return [questions, routes] of mean similarity, from cosines [questions, examples]."""
        columns = []
        for label in range(len(ROUTES)):
            mine = np.sort(cosines[:, self._labels == label], axis=1)
            columns.append(mine[:, -NEIGHBOURS:].mean(axis=1))
        return np.stack(columns, axis=1)

    @staticmethod
    def _decide(scores: NDArray[np.float32], threshold: float) -> NDArray[np.intp]:
        """Return each question's place in ROUTES."""
        return np.where(_leads(scores) > threshold, scores[:, 1:].argmax(axis=1) + 1, 0)


def _leads(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return by how much the best other route is nearer than the collection; ROUTES begins with the collection."""
    leads: NDArray[np.float32] = scores[:, 1:].max(axis=1) - scores[:, 0]
    return leads


def load_labelled(path: Path = EVALUATION) -> list[Labelled]:
    """Read questions with the route each should take. Raises UserError that names what is wrong with the file."""
    return _labelled(path, _read(path), least=1)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _labelled(path: Path, lists: Mapping[str, Any], least: int = NEIGHBOURS + 1) -> list[Labelled]:
    """Return (question, route) pairs. Each route needs one example more than neighbours: calibration leaves one out."""
    if set(lists) != set(ROUTES):
        raise UserError(f"{path} must have the routes {', '.join(ROUTES)} and no others")
    found: list[Labelled] = []
    for route in ROUTES:
        texts = lists[route]
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{path}: {route} needs a list of questions, none of them empty")
        if len(set(texts)) < least:
            raise UserError(f"{path}: {route} needs at least {least} different questions, it has {len(set(texts))}")
        found += [(text, route) for text in dict.fromkeys(texts)]
    return found
