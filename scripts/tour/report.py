"""The tour as one page: every figure and picture of every chapter, self-contained, without a script.

The look is step 4's report (report.css, report_markup.py), with a few rules of the tour's own (tour.css). Every word of
a model, a document or another program is escaped; the page's own policy forbids it every request.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from scripts.tour.findings import Block, Chapter, Facts, Found, Picture, Table, Talk, Text, Verdict
from shared.terminal import PALETTE
from step4_finetune import report_markup
from step4_finetune.report_markup import legend, scrolled

LOOK = Path(report_markup.__file__).with_name("report.css")
TITLE = "The tour: five steps, one model"
LONG = 28  # characters; a table with a longer cell is one of sentences, not of numbers


def render(chapters: Sequence[Chapter], found: Mapping[str, Found]) -> str:
    """The page. found: by chapter name; a chapter that is not there has not been run yet, and the page says so."""
    here = Path(__file__).parent
    parts = {
        "title": TITLE,
        "palette": ":root { " + " ".join(f"--{name}: {colour};" for name, colour in PALETTE.items()) + " }",
        "style": LOOK.read_text("utf-8") + (here / "tour.css").read_text("utf-8"),
        "summary": _summary(chapters, found),
        "facts": _facts(_made(list(found.values()))),
        "nav": "".join(f'<a href="#{c.name}">{n}. {escape(c.title)}</a>' for n, c in enumerate(chapters, 1)),
        "chapters": "\n".join(_chapter(c, found.get(c.name)) for c in chapters),
        "footer": "Made by <code>make tour</code>. Nothing on this page was sent anywhere or fetched from anywhere; "
        "what it says is what happened in that run.",
    }
    # One pass, so that an answer with {{style}} in it stays an answer.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (here / "report.html").read_text("utf-8"))


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
    name = escape(chapter.name)
    prose = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in chapter.prose)
    commands = "".join(f"<code>{escape(command)}</code>" for command in chapter.commands)
    return (
        f'<section id="{name}" aria-labelledby="h-{name}">'
        f'<div class="prose"><h2 id="h-{name}">{escape(chapter.title)}</h2>{prose}'
        f'<div class="try"><b>The same by hand</b>{commands}</div></div><div class="show">{show}</div></section>'
    )


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
            return f'<dl class="facts">{_facts(rows)}</dl>'
        case Table(title, head, rows):
            cells = [[escape(cell) for cell in row] for row in rows]
            made = report_markup.table([escape(cell) for cell in head], cells)
            long = any(len(cell) > LONG for row in rows for cell in row)
            return f'<div class="{"words" if long else ""}"><h3>{escape(title)}</h3>{made}</div>'
        case Picture():
            return _picture(block)


def _facts(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in rows)


def _picture(picture: Picture) -> str:
    """svg is our own markup, its texts escaped by what drew it."""
    svg = f'<div class="natural">{scrolled(picture.svg)}</div>' if picture.natural else scrolled(picture.svg)
    colours = legend(picture.legend) if picture.legend else ""
    caption = f"<figcaption>{escape(picture.words)}</figcaption>"
    return f"<figure><h3>{escape(picture.title)}</h3>{colours}{svg}{caption}</figure>"
