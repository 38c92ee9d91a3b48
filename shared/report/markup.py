"""Pieces of markup that every report uses. What a caller gives as text is escaped here; what it gives as markup is not.

section("speed", "Speed", ["What was measured."], table(["", "tok/s"], [["ours", "185"]]))
"""

from collections.abc import Iterable, Sequence
from html import escape


def facts(rows: Iterable[tuple[str, str, str]]) -> str:
    """The inside of a `dl class="facts"`: (what, value, remark), three texts."""
    return "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in rows)


def legend(pairs: Iterable[tuple[str, int]]) -> str:
    """A list of (text, number of its colour), each text once."""
    items = "".join(f'<li class="c{colour}">{escape(label)}</li>' for label, colour in dict(pairs).items())
    return f'<ul class="legend">{items}</ul>'


def section(name: str, title: str, prose: Sequence[str], show: str, by_hand: Sequence[str] = ()) -> str:
    """A section with its explanation beside what it shows. prose, show: markup.

    name: its address, of letters, digits and hyphens. title: a text. by_hand: commands that show the same, as texts.
    """
    words = "".join(f"<p>{paragraph}</p>" for paragraph in prose)
    commands = "".join(f"<code>{escape(command)}</code>" for command in by_hand)
    aside = f'<p class="try"><b>The same by hand</b>{commands}</p>' if commands else ""
    return (
        f'<section id="{name}" aria-labelledby="h-{name}">'
        f'<div class="prose"><h2 id="h-{name}">{escape(title)}</h2>{words}</div>'
        f'<div class="show">{show}</div>{aside}</section>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are markup."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{cells[0]}</th>{"".join(f"<td>{cell}</td>" for cell in cells[1:])}</tr>' for cells in rows
    )
    return scrolled(f'<table class="numbers"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>')


def scrolled(wide: str) -> str:
    """A picture or table that scrolls inside itself where the window is narrow."""
    return f'<div class="scroll">{wide}</div>'
