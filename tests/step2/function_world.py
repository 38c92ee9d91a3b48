"""Types that a tool's parameters may have, and a call as the loop makes it, for the tests of functions as tools."""

import asyncio
import enum
from dataclasses import dataclass, field
from typing import Any

from step2_tool_calling.tool import Tool


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Line:
    item: str
    count: int = 1


@dataclass
class Order:
    lines: list[Line]
    paid: bool = field(default=False)


def run(tool: Tool, **arguments: Any) -> Any:
    """Call a tool the way the loop does: validate, then run."""
    assert tool.problem(arguments) is None, tool.problem(arguments)
    return asyncio.run(tool.run(arguments))
