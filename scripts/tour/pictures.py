"""The tour's pictures as inline SVG without a script: bars, maps, timelines. Texts are escaped here.

Colours are the style sheet's c0, c1, … (shared/report/page.css), so that dark and light are its business. Bars with
intervals and curves are those of every report (shared/report/charts.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from shared.report.charts import LABELS, WIDTH, svg, text

VALUES = 120.0  # the column of text right of the bars
ROW = 20.0
GREY, ORANGE, BLUE, GREEN, PURPLE, VERMILION = range(6)  # the columns' numbers


@dataclass(frozen=True)
class Span:
    """A stretch of time in a picture, in seconds from its beginning. split: where its second part begins, if it has
    one (a request's first token)."""

    label: str
    start: float
    end: float
    split: float | None = None
    colour: int = BLUE
    depth: int = 0


def bars(rows: Sequence[tuple[str, float, str]], label: str, colour: int = BLUE) -> str:
    """Horizontal bars from 0: (name, value, the value in words)."""
    plot = WIDTH - LABELS - VALUES
    top = max((value for _, value, _ in rows), default=0.0) or 1.0
    body = []
    for number, (name, value, words) in enumerate(rows):
        y, width = 6 + number * ROW, plot * max(0.0, value) / top
        body.append(text(LABELS - 10, y + 13, name, "end"))
        body.append(
            f'<g class="c{colour}"><title>{escape(f"{name}: {words}")}</title>'
            f'<rect class="bar" x="{LABELS:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 4:.1f}"/></g>'
        )
        body.append(text(LABELS + width + 8, y + 13, words, "start", "minor"))
    return svg(WIDTH, 10 + len(rows) * ROW, body, label)


def heat(
    values: Sequence[Sequence[float]], label: str, *, x: Sequence[str], y: Sequence[str], above: int, below: int
) -> str:
    """A map of numbers, 0 the background: `above` colours positive ones, `below` negative ones, the stronger the
    larger. The scale is by the square root, since one cell is often much larger than all others.

    x, y: names of the columns and rows.
    """
    size, left, top = 13.0, 12.0 + 6.5 * max(map(len, y)), 8.0
    largest = max((abs(value) for row in values for value in row), default=0.0) or 1.0
    body = []
    for i, row in enumerate(values):
        body.append(text(left - 6, top + i * size + 10, y[i], "end", "minor"))
        for j, value in enumerate(row):
            strength = (abs(value) / largest) ** 0.5
            title = escape(f"{y[i]}, {x[j]}: {value:+.3f}" if below != above else f"{y[i]}, {x[j]}: {value:.3f}")
            body.append(
                f'<rect class="bar c{above if value > 0 else below}" fill-opacity="{strength:.2f}" '
                f'x="{left + j * size:.1f}" y="{top + i * size:.1f}" width="{size - 1:.0f}" height="{size - 1:.0f}">'
                f"<title>{title}</title></rect>"
            )
    bottom = top + len(values) * size
    for j, name in enumerate(x):
        across = left + j * size + size / 2 + 3
        body.append(
            f'<text class="minor" transform="translate({across:.1f} {bottom + 5:.1f}) rotate(-90)" '
            f'text-anchor="end">{escape(name)}</text>'
        )
    height = bottom + 12 + 6.5 * max(map(len, x))
    return svg(left + len(x) * size + 8, height, body, label, "")


def roles(labels: Sequence[Sequence[int]], names: Sequence[str], label: str) -> str:
    """One square for each attention head, coloured by what it does. labels: [layers][heads] of indices into names."""
    size, left = 12.0, 34.0
    body = []
    for head, column in enumerate(zip(*labels, strict=True)):
        body.append(text(left - 6, 18 + head * size, str(head), "end", "minor"))
        for layer, role in enumerate(column):
            body.append(
                f'<rect class="bar c{role}" x="{left + layer * size:.1f}" y="{8 + head * size:.1f}" '
                f'width="{size - 1:.0f}" height="{size - 1:.0f}">'
                f"<title>layer {layer}, head {head}: {escape(names[role])}</title></rect>"
            )
    bottom = 8 + len(labels[0]) * size
    numbered = range(0, len(labels), 5)
    body += [text(left + layer * size + 6, bottom + 14, str(layer), "middle", "minor") for layer in numbered]
    return svg(left + len(labels) * size + 8, bottom + 20, body, label, "")


def timeline(spans: Sequence[Span], label: str, *, waterfall: bool = False) -> str:
    """Stretches of time on one axis. waterfall: each in a row with its name (a trace); else packed into as few rows
    as they need (the requests of a load)."""
    left = LABELS + 30 if waterfall else 12.0
    plot = WIDTH - left - (VALUES if waterfall else 12.0)
    end = max((span.end for span in spans), default=0.0) or 1.0
    row, body = (ROW if waterfall else 9.0), []
    free: list[float] = []  # when each row has room again
    for number, span in enumerate(sorted(spans, key=lambda s: s.start)):
        lane = next((i for i, until in enumerate(free) if until <= span.start), len(free))
        lane = number if waterfall else lane
        free[lane : lane + 1] = [span.end]
        y = 6 + lane * row
        split = span.end if span.split is None else span.split
        a, b, c = (left + plot * at / end for at in (span.start, split, span.end))
        title = f"{span.label}: {span.end - span.start:.3f} s"
        if span.split is not None:
            title += f", first token after {span.split - span.start:.3f} s"
        body.append(
            f'<g class="c{span.colour}"><title>{escape(title)}</title>'
            f'<rect class="bar{"" if span.split is None else " faded"}" x="{a:.1f}" y="{y:.1f}" '
            f'width="{max(1.0, b - a):.1f}" height="{row - 2:.1f}"/>'
            f'<rect class="bar" x="{b:.1f}" y="{y:.1f}" width="{c - b:.1f}" height="{row - 2:.1f}"/></g>'
        )
        if waterfall:
            body.append(text(6 + 12 * span.depth, y + 13, span.label, "start"))
            body.append(text(c + 6, y + 13, f"{1000 * (span.end - span.start):.0f} ms", "start", "minor"))
    bottom = 6 + len(free) * row
    for share in (0.0, 0.5, 1.0):
        at = left + plot * share
        body.insert(0, f'<path class="grid" d="M{at:.1f} 2V{bottom:.1f}"/>')
        words = f"{end * share:.1f} s" if end > 2 else f"{1000 * end * share:.0f} ms"
        anchor = "start" if share == 0 else ("middle" if share < 1 or waterfall else "end")
        body.append(text(at, bottom + 14, words, anchor, "minor"))
    return svg(WIDTH, bottom + 20, body, label)
