"""The way a question took through the reflection graph, as a picture that lights up and as a list of decisions.

Pure functions from steps to SVG and HTML, escaped like all of page_markup.py. The picture is drawn from NODES and EDGES
of answers.py; only where each node stands is decided here.

    python -m pytest tests/step3/test_page_markup.py
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from shared.foreign_text import printable
from step3_rag.answers import EDGES, ENDS, NODES, Step

# Centre of each node's box, in the picture's units: the way to an answer goes straight down, the ways round go by the
# right, the ways out by the left.
_PLACES = {
    "route": (200, 22),
    "small_talk": (342, 22),
    "retrieve": (200, 80),
    "rewrite": (342, 138),
    "grade": (200, 138),
    "generate": (200, 196),
    "cite": (200, 254),
    "check": (200, 312),
    "answer": (200, 370),
    "abstain": (58, 370),
}
_HALF_WIDTH, _HALF_HEIGHT = 54, 17
_WIDTH, _HEIGHT = 400, 406


def plain(text: str) -> str:
    """Text as text: escaped, and without the invisible characters that turn the writing direction."""
    return escape(printable(text))


def running_node(steps: Sequence[Step]) -> str | None:
    """The node at work after these steps: where the last outcome led. None after an end, or an unknown outcome."""
    if not steps:
        return "route"
    last = steps[-1]
    return next((to for node, outcome, to in EDGES if (node, outcome) == (last.node, last.outcome)), None)


def trace(steps: Sequence[Step], *, running: bool, name: str) -> str:
    """The graph, and every decision as a list. name: tells the pictures of a page apart."""
    rows = "".join(_step(step) for step in steps)
    return (
        f'<section class="trace"><h3>How it was decided</h3>{graph(steps, running=running, name=name)}'
        f'<ol class="steps">{rows}</ol></section>'
    )


def graph(steps: Sequence[Step], *, running: bool, name: str) -> str:
    """The picture: nodes that have run are filled and ticked, the one at work is dashed, edges taken are thick."""
    visits = Counter(step.node for step in steps)
    taken = {(step.node, step.outcome) for step in steps}
    now = running_node(steps) if running else None
    # Edges that were taken come last, on top of the others.
    edges = sorted(EDGES, key=lambda edge: edge[:2] in taken)
    lines = "".join(_edge(edge, "taken" if edge[:2] in taken else "idle", name) for edge in edges)
    boxes = "".join(_box(node, visits[node], node == now) for node in NODES)
    heads = "".join(
        f'<marker id="{name}-{kind}" class="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
        for kind in ("idle", "taken")
    )
    way = " → ".join(label(step.node) for step in steps) or "nothing has run yet"
    return (
        f'<svg class="graph" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Way through the graph: {plain(way)}"><defs>{heads}</defs>{lines}{boxes}</svg>'
    )


def _box(node: str, visits: int, now: bool) -> str:
    x, y = _PLACES[node]
    kind = "now" if now else "done" if visits else "idle"
    mark = "… " if now else "✓ " if visits else ""
    times = f" ×{visits}" if visits > 1 else ""
    corner = _HALF_HEIGHT if node in ENDS else 6  # ends are round
    return (
        f'<g class="node {kind}" data-node="{node}"><title>{plain(NODES[node])}</title>'
        f'<rect x="{x - _HALF_WIDTH}" y="{y - _HALF_HEIGHT}" width="{2 * _HALF_WIDTH}" height="{2 * _HALF_HEIGHT}" '
        f'rx="{corner}"/><text x="{x}" y="{y + 4}" text-anchor="middle">{mark}{label(node)}{times}</text></g>'
    )


def _edge(edge: tuple[str, str, str], kind: str, name: str) -> str:
    node, outcome, to = edge
    return (
        f'<path class="edge {kind}" data-edge="{node}-{to}" d="{_line(node, to)}" marker-end="url(#{name}-{kind})">'
        f"<title>{plain(outcome)}</title></path>"
    )


def _line(node: str, to: str) -> str:
    """The way of an edge, in the commands of an SVG path."""
    (x, y), (u, v) = _PLACES[node], _PLACES[to]
    right, left, upper, lower = x + _HALF_WIDTH, x - _HALF_WIDTH, y - _HALF_HEIGHT, y + _HALF_HEIGHT
    if node == "rewrite" and to == "abstain":  # under everything, to the far side
        return f"M{x + 30} {lower}V{_HEIGHT - 5}H{u}V{v + _HALF_HEIGHT}"
    if to == "abstain":
        return f"M{left} {y}H{u}V{v - _HALF_HEIGHT}"
    if node == "rewrite":
        return f"M{x} {upper}V{v}H{u + _HALF_WIDTH}"
    if (node, to) == ("check", "rewrite"):
        return f"M{right} {y + 6}H{u}V{v + _HALF_HEIGHT}"
    if (node, to) == ("check", "generate"):
        return f"M{right} {y - 6}H{right + 20}V{v}H{u + _HALF_WIDTH}"
    if y == v:
        return f"M{right} {y}H{u - _HALF_WIDTH}"
    if abs(y - v) > 58:  # past a node in between
        return f"M{left} {y + 8}H{left - 16}V{v - 8}H{u - _HALF_WIDTH}"
    return f"M{x} {lower}V{v - _HALF_HEIGHT}"


def _step(step: Step) -> str:
    details = "".join(
        f"<dt>{plain(label(key))}</dt><dd>{plain(_value(value))}</dd>" for key, value in step.detail.items()
    )
    return (
        f'<li><p><b>{plain(label(step.node))}</b> <span class="outcome">{plain(step.outcome)}</span> '
        f'<span class="time">{step.seconds:.2f} s</span></p>{f"<dl>{details}</dl>" if details else ""}</li>'
    )


def label(name: str) -> str:
    """A node's or a detail's name as words."""
    return name.replace("_", " ")


def _value(value: Any) -> str:
    """A JSON value in one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{label(str(key))} {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_value(item) for item in value) or "none"
    return str(value)
