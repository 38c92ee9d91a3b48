"""How much there is to read: lines per part, and the longest file and function of each.

    .venv/bin/python -m scripts.size           # tests/test_repository.py holds files and functions to the limits
    .venv/bin/python -m scripts.size --json

Lines are counted as an editor does, comments, docstrings and blank ones included. A function's are its own: those of
functions inside it are counted for themselves.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from shared.provenance import tracked_files
from shared.terminal import console, print_json, run

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE = 350  # lines; a longer one probably holds two ideas
LONGEST_FUNCTION = 90  # most of the longest ones is a verb's options
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Part:
    """A top-level folder. The longest are pairs of lines and name."""

    name: str
    files: int = 0
    lines: int = 0
    longest_file: tuple[int, str] = (0, "")
    longest_function: tuple[int, str] = (0, "")


def functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and name of every function, without the lines of functions inside it."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield _length(node) - sum(_length(inner) for inner in _directly_inside(node)), node.name


def _length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _directly_inside(node: ast.AST) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child
        else:
            yield from _directly_inside(child)


def measure(paths: Iterable[Path], root: Path = ROOT) -> list[Part]:
    """The parts in the order of their names. Raises SyntaxError for a file that is not Python."""
    parts: dict[str, Part] = defaultdict(lambda: Part(""))
    for path in paths:
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        part = parts[name.split("/")[0]]
        part.name, lines = name.split("/")[0], len(text.splitlines())
        part.files, part.lines = part.files + 1, part.lines + lines
        part.longest_file = max(part.longest_file, (lines, name))
        for length, function in functions(ast.parse(text)):
            part.longest_function = max(part.longest_function, (length, f"{function} in {name}"))
    return [parts[name] for name in sorted(parts)]


def main(json: Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")] = False) -> None:
    """Lines per part of the repository, and the longest file and function of each."""
    parts = measure(tracked_files(ROOT, "*.py"))
    if json:
        print_json([asdict(part) for part in parts])
        return
    for part in parts:
        file, function = part.longest_file, part.longest_function
        console().print(f"{part.name}: {part.lines:,} lines in {part.files} files", style="bold")
        console().print(f"  {file[0]} {file[1]}\n  {function[0]} {function[1]}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
