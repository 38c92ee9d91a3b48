"""The tour on the terminal: each chapter's story as it happens, never wider than 80 columns.

Blocks go to stdout, remarks about progress to stderr. Text from models, documents and other programs passes `printable`
first: it must not be able to move the cursor.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table as Grid
from rich.text import Text as Words

from scripts.tour.findings import Block, Chapter, Facts, Found, Picture, Table, Talk, Text, Verdict
from shared.foreign_text import printable
from shared.terminal import PALETTE

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 80
CELL = 64  # characters of a table's cell; the page has all of it


class Narrator:
    """Prints chapters. out: for the story. errors: for remarks about progress."""

    def __init__(self, out: "Console", errors: "Console") -> None:
        self._out, self._errors = out, errors

    def begin(self, chapter: Chapter, number: int, count: int) -> None:
        """A chapter's heading and what it is about."""
        self._line()
        title = f" {number}/{count}  {chapter.title} "
        self._print(Words(f"──{title}".ljust(self._width, "─"), style=f"bold {PALETTE['sky']}"))
        for paragraph in chapter.prose:
            self._line()
            self._print(Words(paragraph))

    def block(self, block: Block) -> None:
        """One finding."""
        self._line()
        match block:
            case Text(words):
                self._print(Words(printable(words)))
            case Verdict(good, words):
                mark, colour = ("✓ ", PALETTE["green"]) if good else ("✗ ", PALETTE["vermilion"])
                self._print(Words.assemble((mark, f"bold {colour}"), printable(words)))
            case Talk(turns):
                for who, words in turns:
                    self._print(Words.assemble((f"{printable(who)}> ", "bold"), printable(words)))
            case Facts(rows):
                self._print(_facts(rows))
            case Table(title, head, rows):
                self._print(Words(printable(title), style="bold"))
                self._print(_table(head, rows))
            case Picture(title, words=words):
                self._print(Words.assemble((f"[{printable(title)}: see the page] ", "dim"), printable(words)))

    def remark(self, words: str) -> None:
        """A word about progress."""
        self._errors.print(Words(f"  · {printable(words)}", style="dim"), width=min(WIDTH, self._errors.width))

    def end(self, found: Found) -> None:
        """How the chapter ended."""
        self._line()
        if found.error:
            words = f"This chapter failed: {printable(found.error)}"
            self._print(Words.assemble(("✗ ", f"bold {PALETTE['vermilion']}"), words))
        self._print(Words(f"({found.seconds:.0f} s)", style="dim"))

    @property
    def _width(self) -> int:
        return min(WIDTH, self._out.width)

    def _print(self, what: "RenderableType") -> None:
        self._out.print(what, width=self._width, markup=False)

    def _line(self) -> None:
        self._out.print()


def _facts(rows: Sequence[Sequence[str]]) -> Grid:
    grid = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(overflow="fold", style="dim")
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold", style="dim")
    for row in rows:
        grid.add_row(*(Words(printable(cell)) for cell in row))
    return grid


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in head:
        grid.add_column(Words(_cell(name)), overflow="fold", vertical="top")
    for row in rows:
        grid.add_row(*(Words(_cell(cell)) for cell in row))
    return grid


def _cell(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= CELL else shown[: CELL - 1] + "…"
