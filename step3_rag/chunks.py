"""Cut a document into passages that the embedding model can read whole, and know where each one came from.

Three rules. A heading starts a new passage, so that no passage is about two things. A passage has at most as many
tokens as the model reads (256 for MiniLM, its titles included): what is beyond that would never be embedded. Where a
section is longer, it is cut at the end of a paragraph, else of a sentence, else of a word, and the next passage
repeats the last few tokens, so that a sentence cut in two is whole in one of them.

    python -m pytest tests/step3/test_chunks.py     # every passage's span gives exactly its text, for any text
"""

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from step3_rag.encoder import TextEncoder
from step3_rag.formats import Document, Heading
from step3_rag.passages import Passage

OVERLAP = 32  # tokens repeated from the passage before
# WordPiece makes one token of a run of 100 and more letters, so tokens alone do not bound a passage's length.
MAX_CHARACTERS = 2_000
MAX_CONTEXT = 48  # tokens that titles may take; the innermost are kept
RECIPE = f"2 {OVERLAP} {MAX_CHARACTERS} {MAX_CONTEXT}"  # a change makes every source count as changed

_PARAGRAPH = re.compile(r"\n[ \t]*\r?\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\r?\n\s*")
_WORD = re.compile(r"\s+")
_INK = re.compile(r"\S")


@dataclass(frozen=True)
class _Section:
    """start, end: characters, blanks trimmed. body: first character after the heading lines it opens with."""

    start: int
    end: int
    body: int


def passages_of(source: str, document: Document, encoder: TextEncoder) -> list[Passage]:
    """Return the passages of a document, in order; every character that is not blank is in at least one of them.

    source: the path they will carry.
    """
    passages: list[Passage] = []
    seen: dict[str, int] = {}
    titles = _Titles(document)
    for section in _sections(document):
        for start, end, path, context in _cut(document.text, section, titles, encoder):
            text = document.text[start:end]
            # The place in the file is no part of the id: a line added at the top must not mean embedding all again.
            key = hashlib.sha256("\0".join((source, context, text)).encode(errors="replace")).hexdigest()[:32]
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:  # the same words again in the same file
                key = hashlib.sha256(f"{key} {seen[key]}".encode()).hexdigest()[:32]
            passages.append(Passage(key, source, path, start, end, text, context))
    return passages


class _Titles:
    """Which headings a position lies under, outermost first, worked out once per document."""

    def __init__(self, document: Document) -> None:
        self._starts = [heading.start for heading in document.headings]
        self._paths: list[tuple[Heading, ...]] = []
        sections: list[Heading] = []
        page: list[Heading] = []
        for heading in document.headings:
            if heading.page:  # pages and sections do not nest: either may end inside the other
                page = [heading]
            else:
                while sections and sections[-1].level >= heading.level:
                    sections.pop()
                sections.append(heading)
            self._paths.append((*sections, *page))

    def at(self, position: int) -> tuple[Heading, ...]:
        count = bisect_right(self._starts, position)
        return self._paths[count - 1] if count else ()


def _sections(document: Document) -> Iterator[_Section]:
    """Yield the parts between headings. A heading without text of its own opens the next part instead."""
    text = document.text
    headings = [heading for heading in document.headings if heading.end > heading.start]
    ends = [*(heading.start for heading in headings), len(text)]
    bodies = [0, *(heading.end for heading in headings)]
    start = 0
    for body, end in zip(bodies, ends, strict=True):
        if end < len(text) and not text[body:end].strip():
            continue
        first, last = _trim(text, start, end)
        if first < last:
            yield _Section(first, last, max(first, _skip_blanks(text, body, last)))
        start = end


def _cut(
    text: str, section: _Section, titles: _Titles, encoder: TextEncoder
) -> Iterator[tuple[int, int, tuple[str, ...], str]]:
    """Yield (start, end, heading path, context) of a section's passages."""
    start = floor = section.start
    while start < section.end:
        path = titles.at(section.body if start == section.start else start)
        above = [title.title for title in path if title.start < start and not title.page]
        context, taken = _context(above, encoder.token_spans)
        budget = encoder.max_tokens - encoder.special_tokens - taken

        window = text[start : min(section.end, start + MAX_CHARACTERS)]
        spans = encoder.token_spans(window)
        limit = start + (spans[budget][0] if len(spans) > budget else len(window))
        if (
            start < floor and not text[floor:limit].strip()
        ):  # titles longer than the last ones leave no room for overlap
            start = _skip_blanks(text, floor, section.end)
            continue
        end = limit
        if limit < section.end:
            end = _break(text, max(floor, start + (limit - start) // 2), limit)
        yield (*_trim(text, start, end), tuple(title.title for title in path), context)
        if end == section.end:
            return

        # Go back by the overlap, but never to where this passage began.
        tokens = bisect_left(spans, (end - start, 0))
        back = start + spans[max(0, tokens - max(1, min(OVERLAP, budget // 4)))][0] if spans else end
        floor, resumed = end, _resume(text, max(back, end - MAX_CHARACTERS // 4, start + 1), end)
        start = _skip_blanks(text, resumed, section.end)


def _context(titles: list[str], token_spans: Callable[[str], list[tuple[int, int]]]) -> tuple[str, int]:
    """Return the titles as one line and its tokens, leaving out the outermost until they fit."""
    while titles:
        line = " > ".join(titles)
        if (count := len(token_spans(line))) <= MAX_CONTEXT:
            return line, count
        titles = titles[1:]
    return "", 0


def _break(text: str, low: int, limit: int) -> int:
    """Return the best place to end a passage, above `low` and at most `limit`."""
    for pattern in (_PARAGRAPH, _SENTENCE, _WORD):
        places = [match.end() for match in pattern.finditer(text, low, limit) if match.end() > low]
        if places:
            return places[-1]
    return limit


def _resume(text: str, low: int, end: int) -> int:
    """Return where the next passage starts: at a sentence in [low, end), else at a word, else at `end`."""
    for pattern in (_SENTENCE, _WORD):
        if match := pattern.search(text, low, end):
            return match.end()
    return end


def _skip_blanks(text: str, start: int, end: int) -> int:
    """Return the first character from `start` on that is not blank, or `end`."""
    match = _INK.search(text, start, end)
    return match.start() if match else end


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without blanks at its ends; it is empty when there is nothing else."""
    first = _skip_blanks(text, start, end)
    return first, first + len(text[first:end].rstrip())
