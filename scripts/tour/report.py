"""The tour as one page: every figure and picture of every chapter, self-contained, without a script.

Frame and look are those of every report (shared/report), with a few rules of the tour's own (tour.css). Every word of a
model, a document or another program is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from scripts.tour.findings import Block, Chapter, Facts, Found, Picture, Table, Talk, Text, Verdict
from shared.report.markup import facts, legend, scrolled, section, table
from shared.report.page import page

LONG = 28  # characters; a table with a longer cell is one of sentences, not of numbers


def render(chapters: Sequence[Chapter], found: Mapping[str, Found]) -> str:
    """The page. found: by chapter name; a chapter that is not there has not been run yet, and the page says so."""
    return page(
        title="The tour: five steps, one model",
        overline="Five steps, one model",
        summary=_summary(chapters, found),
        facts=_made(list(found.values())),
        sections={chapter.name: f"{number}. {chapter.title}" for number, chapter in enumerate(chapters, 1)},
        main="\n".join(_chapter(chapter, found.get(chapter.name)) for chapter in chapters),
        footer="<p>Made by <code>make tour</code>: what this page says is what happened in that run.</p>",
        style=Path(__file__).with_name("tour.css").read_text("utf-8"),
    )


def _summary(chapters: Sequence[Chapter], found: Mapping[str, Found]) -> str:
    failed = [c.title for c in chapters if c.name in found and found[c.name].error]
    missing = [c.title for c in chapters if c.name not in found]
    seconds = sum(f.seconds for f in found.values())
    words = f"<b>{len(found) - len(failed)} of {len(chapters)}</b> chapters ran to their end"
    words += f", in <b>{seconds / 60:.1f} minutes</b>." if found else "."
    if failed:
        words += f" Failed: {escape(', '.join(failed))}."
    if missing:
        words += f" Not run yet: {escape(', '.join(missing))}."
    return words


def _made(found: Sequence[Found]) -> list[tuple[str, str, str]]:
    """Model, date and machine; several values where chapters were run at different times."""

    def values(pick: str) -> list[str]:
        return sorted({f.made.get(pick, "") for f in found})

    dates = values("date")
    return [
        ("model", ", ".join(sorted({f.model for f in found})), ""),
        ("run", " to ".join(dates[:: max(1, len(dates) - 1)]), f"revision {', '.join(values('revision'))}"),
        ("machine", ", ".join(values("machine")), ""),
    ]


def _chapter(chapter: Chapter, found: Found | None) -> str:
    if found is None:
        show = '<p class="note">Not run yet.</p>'
    else:
        show = "".join(_block(block) for block in found.blocks)
        if found.error:
            show += _block(Verdict(False, f"This chapter failed: {found.error}"))
        show += f'<p class="note">{found.seconds:.0f} s, {escape(found.made.get("date", ""))}</p>'
    return section(chapter.name, chapter.title, [escape(words) for words in chapter.prose], show, chapter.commands)


def _block(block: Block) -> str:
    match block:
        case Text(words):
            return f"<p>{escape(words)}</p>"
        case Verdict(good, words):
            mark = '<span class="good">✓</span>' if good else '<span class="bad">✗</span>'
            return f'<p class="verdict{"" if good else " missed"}">{mark} {escape(words)}</p>'
        case Talk(turns):
            said = "".join(f"<div><dt>{escape(who)}</dt><dd>{escape(words)}</dd></div>" for who, words in turns)
            return f'<dl class="talk">{said}</dl>'
        case Facts(rows):
            return f'<dl class="facts">{facts(rows)}</dl>'
        case Table(title, head, rows):
            cells = [[escape(cell) for cell in row] for row in rows]
            made = table([escape(cell) for cell in head], cells)
            long = any(len(cell) > LONG for row in rows for cell in row)
            return f'<div class="{"words" if long else ""}"><h3>{escape(title)}</h3>{made}</div>'
        case Picture():
            return _picture(block)


def _picture(picture: Picture) -> str:
    """svg is our own markup, its texts escaped by what drew it."""
    colours = legend(picture.legend) if picture.legend else ""
    caption = f"<figcaption>{escape(picture.words)}</figcaption>"
    return f"<figure><h3>{escape(picture.title)}</h3>{colours}{scrolled(picture.svg)}{caption}</figure>"
