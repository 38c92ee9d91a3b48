"""Pictures of measurements as inline SVG, drawn here and coloured by page.css, so that they need no script.

Every mark has a <title>, which browsers show as a tooltip and read out. Texts are escaped by this file.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

LABELS, VALUES, WIDTH = 150.0, 140.0, 760.0  # columns of text left and right of the bars, and all together
BAR, GAP = 15.0, 14.0
PANEL = 170.0
SQUARE = 360.0


@dataclass(frozen=True)
class Bar:
    """One bar. colour: number of the column, see page.css. Values in the unit of the axis."""

    group: str
    column: str
    colour: int
    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve. faint: drawn thin, behind the others."""

    label: str
    colour: int
    points: Sequence[tuple[float, float]]
    faint: bool = False


@dataclass(frozen=True)
class Dot:
    """A point of the reliability diagram: mean probability, share positive with its interval, items."""

    column: str
    colour: int
    x: float
    y: float
    ci95: tuple[float, float]
    n: int


def bars(entries: Sequence[Bar], top: float, unit: str, chance: float | None = None) -> str:
    """Horizontal bars from 0 to `top`, grouped, with 95 % whiskers. chance: a dashed line at this value."""
    left, plot = LABELS, WIDTH - LABELS - VALUES
    groups = list(dict.fromkeys(entry.group for entry in entries))
    body: list[str] = []
    y = 6.0
    for group in groups:
        members = [entry for entry in entries if entry.group == group]
        middle = y + BAR * len(members) / 2 + 4
        body.append(text(left - 10, middle, group, "end"))
        for entry in members:
            end, low, high = (left + plot * min(1.0, max(0.0, v / top)) for v in (entry.value, *entry.ci95))
            words = f"{_number(entry.value, top)} [{_number(entry.ci95[0], top)}, {_number(entry.ci95[1], top)}]"
            title = escape(f"{entry.column}, {group}: {words} {unit}".strip())
            centre = y + BAR / 2
            body.append(
                f'<g class="c{entry.colour}"><title>{title}</title>'
                f'<rect class="bar" x="{left:.1f}" y="{y + 1:.1f}" width="{end - left:.1f}" height="{BAR - 2:.1f}"/>'
                f'<path class="whisker" d="M{low:.1f} {centre:.1f}H{high:.1f}M{low:.1f} {centre - 3:.1f}v6'
                f'M{high:.1f} {centre - 3:.1f}v6"/></g>'
            )
            body.append(text(left + plot + 10, centre + 4, words, "start", "minor"))
            y += BAR
        y += GAP
    axis = [_grid(left + plot * share, 0, y - GAP + 6) for share in (0, 0.25, 0.5, 0.75, 1)]
    axis += [
        text(left + plot * share, y + 6, f"{top * share:g}", "middle", "minor") for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    if chance is not None:
        body.append(_grid(left + plot * chance / top, 0, y - GAP + 6, "chance"))
    return svg(WIDTH, y + 12, axis + body, f"Bars with 95 % intervals: {', '.join(groups)}")


def curves(
    lines: Sequence[Line], label: str, *, log: bool = False, zero: bool = True, level: float | None = None
) -> str:
    """A line chart over optimiser steps. zero: the axis begins at 0. level: a dashed horizontal line.

    log: powers of ten; values that are not above 0 are left out.
    """
    left, right, bottom = 56.0, 12.0, 22.0
    shown = [(line, [(x, y) for x, y in line.points if math.isfinite(y) and (y > 0 or not log)]) for line in lines]
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for _, points in shown for _, y in points] + ([level] if level is not None else [])
    if not xs:
        return ""
    scale = math.log10 if log else float
    ticks = _powers(min(ys), max(ys)) if log else _ticks(0.0 if zero else min(ys), max(ys))
    low, high = scale(ticks[0]), scale(ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        up = (scale(y) - low) / ((high - low) or 1)
        return left + across * (WIDTH - left - right), 8 + (1 - up) * (PANEL - bottom - 8)

    body = []
    for tick in ticks:
        y = place(min(xs), tick)[1]
        body.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{WIDTH - right:.1f}"/>')
        body.append(text(left - 8, y + 4, f"{tick:g}", "end", "minor"))
    if level is not None:
        y = place(min(xs), level)[1]
        body.append(f'<path class="chance" d="M{left:.1f} {y:.1f}H{WIDTH - right:.1f}"/>')
    for line, points in shown:
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in points)
        kind = "faint" if line.faint else "line"
        title = escape(f"{line.label}: {points[0][1]:.3g} → {points[-1][1]:.3g}") if points else ""
        body.append(f'<path class="{kind} c{line.colour}" d="M{path}"><title>{title}</title></path>' if points else "")
    for x, anchor in ((min(xs), "start"), (max(xs), "end")):
        body.append(text(place(x, ticks[0])[0], PANEL - 4, f"step {x:g}", anchor, "minor"))
    return svg(WIDTH, PANEL, body, f"{label} over the steps")


def reliability(dots: Sequence[Dot]) -> str:
    """Share that is positive against the probability that was given; on the diagonal, both agree."""
    left, bottom = 40.0, 34.0
    side = SQUARE - left - 10

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * side, SQUARE - bottom - y * (SQUARE - bottom - 10)

    body = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        (x, _), (_, y) = place(value, 0), place(0, value)
        body.append(
            f'<path class="grid" d="M{left:.1f} {y:.1f}h{side:.1f}M{x:.1f} {place(0, 0)[1]:.1f}V{place(0, 1)[1]:.1f}"/>'
        )
        body.append(text(left - 6, y + 4, f"{value:g}", "end", "minor"))
        body.append(text(x, SQUARE - bottom + 15, f"{value:g}", "middle", "minor"))
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    body.append(f'<path class="chance" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    for column in dict.fromkeys(dot.column for dot in dots):
        members = sorted((dot for dot in dots if dot.column == column), key=lambda dot: dot.x)
        path = "L".join("{:.1f} {:.1f}".format(*place(dot.x, dot.y)) for dot in members)
        body.append(f'<path class="line thin c{members[0].colour}" d="M{path}"/>')
        for dot in members:
            (x, y), (_, low), (_, high) = place(dot.x, dot.y), place(dot.x, dot.ci95[0]), place(dot.x, dot.ci95[1])
            title = escape(
                f"{column}: said {dot.x:.2f}, true {dot.y:.2f} [{dot.ci95[0]:.2f}, {dot.ci95[1]:.2f}], n = {dot.n}"
            )
            body.append(
                f'<g class="dot c{dot.colour}"><title>{title}</title>'
                f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{min(9.0, 2.5 + math.sqrt(dot.n) / 3):.1f}"/></g>'
            )
    body.append(text(left + side / 2, SQUARE - 3, "probability that was given", "middle", "minor"))
    label = "Reliability: share that is positive by the probability that was given"
    return svg(SQUARE, SQUARE, body, label, "chart square")


def svg(width: float, height: float, body: Iterable[str], label: str, kind: str = "chart") -> str:
    """A picture. label: a text, what it shows. kind: "chart" fills its column, "" keeps its size in pixels."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg class="{kind}" {size} role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    """A line of text in a picture. anchor: "start", "middle" or "end". kind: "minor" is small and grey."""
    shown = f' class="{kind}"' if kind else ""
    return f'<text{shown} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _grid(x: float, top: float, bottom: float, kind: str = "grid") -> str:
    return f'<path class="{kind}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'


def _number(value: float, top: float) -> str:
    return f"{value:.1f}" if top > 10 else f"{value:.2f}"


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose the values."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * number, 10) for number in range(first, max(last, first + 1) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten that enclose the values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**number for number in range(first, max(last, first + 1) + 1)]
