"""What a chapter of the tour is, and what it finds: a handful of blocks that terminal, page and JSON all show.

    stage.show(Facts([("parameters", "134,515,008", "")]))

A chapter calls `stage.show` for each block as soon as it has it, so a chapter that fails keeps what it found before.
Blocks hold plain data; only a picture holds markup (inline SVG, drawn by pictures.py, which escapes every text).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph of the narration."""

    words: str


@dataclass(frozen=True)
class Verdict:
    """What really happened, and whether it is what the chapter set out to show."""

    good: bool
    words: str


@dataclass(frozen=True)
class Talk:
    """Who said what, in order: (who, words)."""

    turns: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """(what, value, remark), the remark possibly ""."""

    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of texts, the first column naming the row. title: what is in it, with n where it is measured."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An inline SVG. words: what it shows, for the terminal, for its caption and for who cannot see it.

    legend: (label, colour number of the style sheet).
    """

    title: str
    svg: str
    words: str
    legend: Sequence[tuple[str, int]] = ()


Block = Text | Verdict | Talk | Facts | Table | Picture
KINDS: dict[str, Callable[..., Block]] = {c.__name__: c for c in (Text, Verdict, Talk, Facts, Table, Picture)}


@dataclass
class Found:
    """A chapter that was run. error: why it ended early, "" if it did not. made: date, revision, machine."""

    name: str
    model: str
    made: dict[str, str]
    seconds: float = 0.0
    error: str = ""
    blocks: list[Block] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, each block with its kind."""
        return vars(self) | {"blocks": [{"kind": type(block).__name__} | asdict(block) for block in self.blocks]}


def from_json(document: dict[str, Any]) -> Found:
    """The inverse of as_json. Raises KeyError or TypeError for anything else."""
    blocks = [KINDS[block["kind"]](**{k: v for k, v in block.items() if k != "kind"}) for block in document["blocks"]]
    return Found(**document | {"blocks": blocks})


@dataclass(frozen=True)
class Chapter:
    """One chapter. prose: what it is about, before anything has happened. commands: the same by hand.

    perform: does it; raises UserError for what went wrong.
    """

    name: str
    title: str
    prose: Sequence[str]
    commands: Sequence[str]
    perform: "Callable[[Stage], None]"


@dataclass
class Stage:
    """What a chapter works with. folder: its own, kept when it is interrupted. model: a spec, as MODEL takes it.

    show: publish a block. remark: a word about progress, for the terminal only.
    """

    tour: Path
    name: str
    model: str
    show: Callable[[Block], None]
    remark: Callable[[str], None]
    begun: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        return self.tour / self.name
