"""A file of tools as a reader would write it: plain typed functions, one helper, one that needs approval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt  # imported names are not tools
from typing import Literal

from step2_tool_calling.function_tools import unsafe


@dataclass
class Point:
    """A place in the plane."""

    x: float
    y: float = 0.0


def distance(start: Point, end: Point, unit: Literal["m", "km"] = "m") -> float:
    """Distance between two points.

    Args:
        start: Where to begin.
        end: Where to stop.
        unit: What to answer in.
    """
    metres = _length(start.x - end.x, start.y - end.y)
    return metres if unit == "m" else metres / 1000


@unsafe
async def add_marker(at: Point, labels: Sequence[str] = ()) -> str:
    """Put a marker on the shared map."""
    return f"marker at {at.x:g},{at.y:g} with {len(labels)} labels"


def area(radius: float) -> float:
    """Area of a circle.

    :param radius: in metres
    """
    return math.pi * radius**2


def _length(dx: float, dy: float) -> float:
    return sqrt(dx * dx + dy * dy)
