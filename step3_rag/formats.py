"""From a file's bytes to its text and its headings, for each format: Markdown, HTML, reStructuredText, PDF, code, text.

Markdown, reStructuredText, code and plain text stay as they are, to the character: a citation's offsets then count in
the very file the reader opens. HTML and PDF have no such text, so theirs is extracted, and offsets count in that.

    python -m pytest tests/step3/test_documents.py
"""

import io
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

LINE_END = re.compile(r"\r\n?|\n")


class UnreadableError(Exception):
    """A file without usable text; the message says why, and what would help."""


@dataclass(frozen=True)
class Heading:
    """A title and where it stands.

    level: 1 is outermost. start, end: characters of the heading's own lines, markup included; empty (start == end)
    when the title only names what follows and does not divide it: a page of a PDF, a method within a class.
    """

    level: int
    title: str
    start: int
    end: int
    page: bool = False


@dataclass(frozen=True)
class Document:
    """A source's text and its headings in order; remarks are what could not be read of it."""

    text: str
    headings: tuple[Heading, ...] = ()
    remarks: tuple[str, ...] = ()


def plain(text: str) -> Document:
    """Text without structure."""
    return Document(text)


def markdown(text: str) -> Document:
    """CommonMark, by markdown-it: a # in a code block is no heading, an underlined line is one."""
    from markdown_it import MarkdownIt

    front_matter = re.match(r"---[ \t]*\r?\n(?:[^\n]*\n)*?(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", text)
    # Front matter would read as an underlined heading. Same length and lines, so that no offset moves.
    blanked = re.sub(r"[^\r\n]", " ", front_matter[0]) + text[front_matter.end() :] if front_matter else text
    tokens = MarkdownIt("commonmark").enable("table").parse(blanked)
    starts = _line_starts(text)
    headings = []
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:  # not inside a quotation or a list
            # Marks like strong_open have no content; a line break has none either, but parts two words.
            parts = (" " if child.type.endswith("break") else child.content for child in inline.children or ())
            title = " ".join("".join(parts).split())
            headings.append(Heading(int(token.tag[1]), title, starts[token.map[0]], starts[token.map[1]]))
    return Document(text, tuple(headings))


def restructured_text(text: str) -> Document:
    """Section titles: a line of text with a line of one punctuation mark under it, and perhaps the same above it.

    Levels follow the order in which the styles appear, as in docutils, which is not used: it would run directives.
    """
    starts = _line_starts(text)
    lines = [text[a:b].rstrip() for a, b in pairwise(starts)]
    levels: dict[tuple[str, bool], int] = {}
    headings: list[Heading] = []
    for number in range(1, len(lines)):
        title, under = lines[number - 1], lines[number]
        if not re.fullmatch(r"([!-/:-@\[-`{-~])\1+", under) or not title.strip() or len(under) < len(title.strip()):
            continue
        over = number >= 2 and lines[number - 2] == under
        first = number - 2 if over else number - 1
        alone = first == 0 or not lines[first - 1]
        if re.fullmatch(r"([!-/:-@\[-`{-~])\1+", title) or not alone or (not over and title[0].isspace()):
            continue
        level = levels.setdefault((under[0], over), len(levels) + 1)
        headings.append(Heading(level, title.strip(), starts[first], starts[number + 1]))
    return Document(text, tuple(headings))


# Decorators, and the first line of a definition, in the languages that name its kind. Not a parser: a line in a string
# may be taken for one, and the price is a passage that starts there.
_DEFINITION = re.compile(
    r"^((?:[ \t]*(?:@|#\[)[^\n]*\n){0,9})([ \t]*)"
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub(?:\([a-z]+\))?"
    r"|unsafe|override|open|data|sealed|const)[ \t]+)*"
    r"((?:class|interface|struct|enum|trait|impl|fn|func|fun|def|function|module|namespace|record)\b[^\n]*)",
    re.MULTILINE,
)


def source_code(text: str) -> Document:
    """Definitions at the margin divide the file; indented ones (methods) only name what follows."""
    headings: list[Heading] = []
    for match in _DEFINITION.finditer(text):
        title = re.split(r"[({:;]", match[3], maxsplit=1)[0].strip()[:80]
        indent = len(match[2].expandtabs(4))
        headings.append(Heading(1 + (indent + 3) // 4, title, match.start(), match.start() if indent else match.end()))
    return Document(text, tuple(headings))


_BLOCKS = frozenset(
    re.findall(
        r"\S+",
        "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer form h1 "
        "h2 h3 h4 h5 h6 header hr legend li main ol option p pre section summary table tr ul",
    )
)
_INVISIBLE = frozenset(("script", "style", "noscript", "template", "svg", "nav", "title"))


class _Page(HTMLParser):
    """Collects the visible text of a page, one block a line, and the spans of h1 to h6."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.length = 0
        self.headings: list[Heading] = []
        self.title = ""
        self._hidden: list[str] = []
        self._pre = 0
        self._open: tuple[int, int, int] | None = None  # level, start and first part of the heading being read

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _INVISIBLE:
            self._hidden.append(tag)
        if tag in _BLOCKS:
            self._break("\n" if tag in ("li", "tr", "dt", "dd", "option") else "\n\n")
        elif tag == "br":
            self._break("\n")
        self._pre += tag == "pre"
        if re.fullmatch("h[1-6]", tag):
            self._open = int(tag[1]), self.length, len(self.parts)
        elif tag in ("td", "th", "img"):
            self._add(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:  # whatever was left open inside ends with it
            del self._hidden[self._hidden.index(tag) :]
        self._pre -= tag == "pre" and self._pre > 0
        if re.fullmatch("h[1-6]", tag) and self._open:
            level, start, first = self._open
            self._open = None
            title = " ".join("".join(self.parts[first:]).split())
            if title:
                self.headings.append(Heading(level, title, start, self.length))
        if tag in _BLOCKS:
            self._break("\n\n")

    def handle_data(self, data: str) -> None:
        if self._hidden:
            if self._hidden == ["title"]:  # and not the one inside an svg
                self.title += data
            return
        if not self._pre:
            data = re.sub(r"\s+", " ", data)
            if not self.parts or self.parts[-1][-1].isspace():
                data = data.lstrip()
        self._add(data)

    def _add(self, text: str) -> None:
        if text and not self._hidden:
            self.parts.append(text)
            self.length += len(text)

    def _break(self, wanted: str) -> None:
        """End the line, unless the text so far ends with as many line ends already."""
        if self._hidden or not self.parts:
            return
        tail = "".join(self.parts[-2:])
        have = len(tail) - len(tail.rstrip("\n"))
        self._add("\n" * max(0, len(wanted) - have))


def html(text: str) -> Document:
    """The visible text of a page. Its <title> becomes the first line where the page has no h1."""
    page = _Page()
    page.feed(text)
    page.close()
    body, headings = "".join(page.parts), page.headings
    title = " ".join(page.title.split())
    if title and not any(heading.level == 1 for heading in headings):
        shift = len(title) + 2
        headings = [Heading(h.level, h.title, h.start + shift, h.end + shift) for h in headings]
        body, headings = f"{title}\n\n{body}", [Heading(1, title, 0, len(title)), *headings]
    return Document(clean(body), tuple(headings))


def pdf(data: bytes) -> Document:
    """The text of every page, by pypdf; its bookmarks and its pages as headings.

    Raises UnreadableError for a file that is encrypted, damaged, or has no text (a scan).
    """
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it comments on every irregular file
    try:
        reader = PdfReader(io.BytesIO(data))
        pages: list[str] = []
        remarks = []
        for number, page in enumerate(reader.pages, start=1):
            try:
                pages.append(clean(page.extract_text()).strip())
            except (FileNotDecryptedError, DependencyError):
                raise
            except Exception as error:  # one broken page costs that page; the library raises anything
                pages.append("")
                remarks.append(f"page {number} cannot be read ({type(error).__name__})")
        bookmarks = list(_bookmarks(reader))
    except (FileNotDecryptedError, DependencyError):
        raise UnreadableError("is encrypted; save a copy without a password") from None
    except Exception as error:  # a damaged file can raise anything, as pypdf's documentation says
        raise UnreadableError(f"is not a readable PDF ({type(error).__name__}: {error})") from None
    if not any(pages):
        raise UnreadableError("has no text, only pictures of it; run an OCR program over it first")

    starts = [0]
    for content in pages:
        starts.append(starts[-1] + len(content) + 2)
    text = "\n\n".join(pages)
    headings = [Heading(99, f"page {i + 1}", start, start, page=True) for i, start in enumerate(starts[:-1])]
    for level, title, index in bookmarks:
        place = text.find(title, starts[index], starts[index + 1])
        at = starts[index] if place < 0 else place
        headings.append(Heading(level, title, at, at if place < 0 else at + len(title)))
    return Document(text, tuple(sorted(headings, key=lambda h: (h.start, not h.page, h.level))), tuple(remarks))


def _bookmarks(reader: Any) -> Iterator[tuple[int, str, int]]:
    """Yield (level, title, index of its page), in the order of the outline."""

    def walk(items: list[Any], level: int) -> Iterator[tuple[int, str, int]]:
        for item in items:
            if isinstance(item, list):
                yield from walk(item, level + 1)
            else:
                index = reader.get_destination_page_number(item)
                title = " ".join(clean(str(item.title)).split())
                if title and index is not None and index >= 0:
                    yield level, title, index

    return walk(reader.outline, 1)


def clean(text: str) -> str:
    """Replace what cannot be stored or shown (NUL, half a surrogate pair) by U+FFFD, one for one."""
    return re.sub(r"[\x00\ud800-\udfff]", "\ufffd", text)


def _line_starts(text: str) -> list[int]:
    """Return the offset of every line and, last, of the text's end."""
    starts = [0, *(match.end() for match in LINE_END.finditer(text))]
    return starts if starts[-1] == len(text) else [*starts, len(text)]


# How each suffix is read. Data and configuration files are left out: they drown the prose.
TEXT_FORMATS: dict[str, Callable[[str], Document]] = {
    **dict.fromkeys((".md", ".markdown", ".mdx", ".qmd"), markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), html),
    **dict.fromkeys((".rst", ".rest"), restructured_text),
    **dict.fromkeys((".txt", ".text"), plain),
    **dict.fromkeys(
        re.findall(
            r"\S+",
            ".py .pyi .js .mjs .cjs .jsx .ts .tsx .java .kt .scala .c .h .cc .cpp .cxx .hpp .cs .go .rs .rb .php "
            ".swift .lua .jl .r .sh .bash .sql .pl .ex .exs .hs .ml .zig .dart .vue .svelte",
        ),
        source_code,
    ),
}
