"""Where do questions go? The confusion matrix of the router, on written and on found questions.

    python -m step3_rag eval routing

Two sets. data/routes_eval.toml: questions for all three routes, written for this purpose by the hand that wrote the
examples. The data sets: other people's questions, every one of them for a collection; what is turned away there is
lost without a look. Takes seconds, so nothing is kept.
"""

from collections.abc import Mapping, Sequence

from shared.results import Metric, Row, metric
from step3_rag.encoder import TextEncoder
from step3_rag.evaluation.datasets import Question
from step3_rag.evaluation.tables import share
from step3_rag.routing import COLLECTION, ROUTES, Router, load_labelled


def routing_rows(router: Router, encoder: TextEncoder, questions: Mapping[str, Sequence[Question]]) -> list[Row]:
    """One row per route and per data set: how many went where, and the share that went right.

    questions: data set → its questions. Raises UserError as load_labelled does.
    """
    matrix = router.measure(load_labelled(), encoder)
    rows = [_row(f"{wanted}, written", wanted, taken) for wanted, taken in matrix.items()]
    for name, asked in questions.items():
        taken = router.measure([(question.text, COLLECTION) for question in asked], encoder)[COLLECTION]
        rows.append(_row(f"{COLLECTION}, {name}", COLLECTION, taken))
    return rows


def _row(name: str, wanted: str, taken: Mapping[str, int]) -> Row:
    right, count = taken[wanted], sum(taken.values())
    metrics: dict[str, Metric] = {"right %": share([True] * right + [False] * (count - right))}
    metrics |= {f"→ {route}": metric(taken[route]) for route in ROUTES}
    return {"name": name, "metrics": metrics | {"questions": metric(count)}}
