"""Pieces of markup that several sections of the report page share."""

from collections.abc import Iterable, Sequence
from html import escape


def legend(pairs: Iterable[tuple[str, int]]) -> str:
    """A list of (label, colour), each label once."""
    items = "".join(f'<li class="c{colour}">{escape(label)}</li>' for label, colour in dict(pairs).items())
    return f'<ul class="legend">{items}</ul>'


def section(name: str, title: str, prose: Sequence[str], show: str) -> str:
    """A section with its explanation beside what it shows; both are markup already."""
    words = "".join(f"<p>{text}</p>" for text in prose)
    return (
        f'<section id="{name}" aria-labelledby="h-{name}">'
        f'<div class="prose"><h2 id="h-{name}">{title}</h2>{words}</div>'
        f'<div class="show">{show}</div></section>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are markup already."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{cells[0]}</th>{"".join(f"<td>{cell}</td>" for cell in cells[1:])}</tr>' for cells in rows
    )
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def scrolled(picture: str) -> str:
    """A picture that scrolls inside itself where the window is narrow."""
    return f'<div class="scroll">{picture}</div>'
