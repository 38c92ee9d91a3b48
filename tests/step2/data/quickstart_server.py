"""An MCP server after the official package's quick start, with what a client may meet: errors, hints, noise, death."""

import os
import sys

from mcp.server import MCPServer
from mcp.types import ToolAnnotations

mcp = MCPServer("Demo")


@mcp.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool(name="text.greet", annotations=ToolAnnotations(read_only_hint=True))
def greet(name: str, formal: bool = False) -> str:
    """Greet someone by name."""
    print("a remark on stderr", file=sys.stderr)
    return f"Good day, {name}." if formal else f"Hello, {name}!"


@mcp.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))
def environment() -> list[str]:
    """Names of the environment variables this server can see."""
    return sorted(os.environ)


@mcp.tool()
def fail() -> str:
    """Always fail."""
    raise ValueError("the shelf is empty")


@mcp.tool()
def die() -> str:
    """End the server."""
    os._exit(3)


if __name__ == "__main__":
    mcp.run()
