"""The frame and the look of every report, and how it is written.

    save(path, page(title="Did it help?", overline="Fine-tuning, measured", summary="It did.", ...))

A report is one file that asks nobody for anything: its own policy forbids it every request. What is called a text below
is escaped here; what is called markup is the caller's to escape.
"""

import errno
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from shared.errors import UserError
from shared.files import atomic_write
from shared.report import markup
from shared.terminal import PALETTE


def page(
    *,
    title: str,
    overline: str,
    summary: str,
    facts: Iterable[tuple[str, str, str]],
    sections: Mapping[str, str],
    main: str,
    footer: str,
    heading: str | None = None,
    style: str = "",
    script: str = "",
) -> str:
    """Return a report as HTML.

    title, overline, heading (the title if None): texts. summary, main, footer: markup. facts: (what, value, remark),
    texts. sections: address → title of each section that the head links to. style: rules after those of page.css.
    script: `script` elements; a page with none may run none.
    """
    here = Path(__file__).parent
    palette = ":root { " + " ".join(f"--{name}: {colour};" for name, colour in PALETTE.items()) + " }"
    parts = {
        "scripts": "script-src 'unsafe-inline'; " if script else "",
        "title": escape(title),
        "style": "\n".join([palette, (here / "page.css").read_text("utf-8"), style]),
        "overline": escape(overline),
        "heading": escape(title if heading is None else heading),
        "summary": summary,
        "facts": markup.facts(facts),
        "nav": "".join(f'<a href="#{address}">{escape(name)}</a>' for address, name in sections.items()),
        "main": main,
        "footer": footer,
        "script": script,
    }
    # One pass, so that a text with {{style}} in it stays a text.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (here / "page.html").read_text("utf-8"))


def save(path: Path, report: str) -> None:
    """Write a report in one step: whoever opens `path` sees the old one or the new one, even after a kill -9.

    Raises UserError when it cannot be written there.
    """
    try:
        atomic_write(path, report)
    except OSError as error:
        if error.errno == errno.ENOSPC:  # another file would not help; shared.terminal.run says what does
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file with --output") from None
