"""A source file as HTML: coloured, one element a line, so that a link can land on a line and lead back from it."""

import ast
import html
from collections.abc import Mapping, Sequence

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound

EXCERPT = 60  # lines of code that a lesson shows at once; the page of the file has the rest


def listing(name: str, text: str, first: int = 1, page: str = "", back: Mapping[int, tuple[str, str]] = {}) -> str:
    """Return lines of a file as one HTML block without blank lines, which Markdown then leaves alone.

    name: the file's name, for the language. first: the number of the text's first line.
    page: the address of the file's page, where this is an excerpt elsewhere; "" where this is that page, and every line
    gets its anchor (#L12). back: line to (address, title) of the place that points at it.
    """
    try:
        lexer = get_lexer_for_filename(name, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    coloured = highlight(text, lexer, HtmlFormatter(nowrap=True))
    lines = []
    for number, line in enumerate(coloured.removesuffix("\n").split("\n"), start=first):
        anchor = "" if page else f' id="L{number}"'
        start = f'<a class="number" href="{page}#L{number}" aria-label="{number}"></a>'
        if number in back:
            address, title = (html.escape(part) for part in back[number])
            start += f'<a class="back" href="{address}" title="{title}" aria-label="{title}">↩</a>'
        lines.append(f'<span class="line"{anchor}>{start}{line}\n</span>')
    # The search finds what a function is for (its docstring), not each word of each line.
    return f'<div class="highlight listing" data-search-exclude><pre><code>{"".join(lines)}</code></pre></div>\n'


def extent(name: str, lines: Sequence[str], line: int) -> int:
    """Return the last line of what begins on a line: a function, a class, a statement; else five lines on.

    A decorated function begins at its `def`, where links point. Never more than EXCERPT lines.
    """
    last = line + 4
    if name.endswith(".py"):
        starts = (node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.stmt))
        last = max((node.end_lineno or line for node in starts if node.lineno == line), default=last)
    return min(last, line + EXCERPT - 1, len(lines))
