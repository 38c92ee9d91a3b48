"""Citations: which span of which source supports each sentence of an answer.

A model of 135 M parameters cannot be told to write "[1]", so citations are attributed afterwards, which also works for
every other model, and cannot be invented:

    answer → sentences → per sentence, in each passage, the span that shares most of its words → the grader says how
    sure it is that the passage supports the sentence → below the threshold the citation is dropped, and counted

A stronger model may write markers like [2]. They are read as its proposals, checked in the same way, and taken out.
A sentence that ends with no citation is withdrawn: what is shown stands on a source.

    python -m pytest tests/step3/test_citations.py     # offsets give exactly the quoted text, for any text
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from step3_rag.answers import Citation, Sentence
from step3_rag.lexical import words
from step3_rag.passages import Passage

# How sure somebody is, 0 to 1, that each passage supports the sentence it comes with.
Support = Callable[[Sequence[tuple[Passage, str]]], Sequence[float]]

PROPOSED = 3  # passages per sentence that the grader is asked about, those sharing most words first
SHOWN = 2  # citations per sentence at most


@dataclass(frozen=True)
class Cited:
    """sentences: all of the answer's, those without citations too. text: the answer of those that have some.

    dropped: citations that did not hold: markers, and sentences for which nothing was found.
    """

    sentences: tuple[Sentence, ...]
    text: str
    dropped: int


def cite(answer: str, question: str, passages: Sequence[Passage], support: Support, threshold: float) -> Cited:
    """Find the citations of an answer to a question.

    passages: what the answer was written from, in the order in which markers count, the first being [1].
    threshold: of support, from which on a citation holds.
    """
    pieces = _pieces(answer)
    proposed = [_proposals(piece, question, passages) for piece in pieces]
    asked = [(number, place) for number, spans in enumerate(proposed) for place in spans]
    # All questions about one passage after each other: they share a prompt's beginning.
    asked.sort(key=lambda pair: pair[1])
    scores = support([(passages[place], pieces[number].text) for number, place in asked]) if asked else []
    supports = {pair: float(score) for pair, score in zip(asked, scores, strict=True)}

    sentences, dropped, text = [], 0, ""
    for number, (piece, spans) in enumerate(zip(pieces, proposed, strict=True)):
        holds = {place: supports[number, place] for place in spans if supports[number, place] >= threshold}
        dropped += sum(place not in holds for place in piece.markers) or not holds
        best = sorted(holds, key=lambda place: (place not in piece.markers, -holds[place]))[:SHOWN]
        citations = tuple(_citation(passages[place], *spans[place], holds[place]) for place in best)
        sentences.append(Sentence(piece.text, citations))
        if citations:
            text += (piece.before if text else "") + piece.text
    return Cited(tuple(sentences), text, dropped)


def _citation(passage: Passage, start: int, end: int, support: float) -> Citation:
    return Citation(passage, passage.start + start, passage.start + end, support)


class _Piece(NamedTuple):
    """A sentence of the answer. before: what separated it from the one before. markers: passage numbers from 0."""

    text: str
    before: str
    markers: tuple[int, ...]


def _proposals(piece: _Piece, question: str, passages: Sequence[Passage]) -> dict[int, tuple[int, int]]:
    """Return passage number → the span in it that shares most words with the sentence, for the best few passages.

    A sentence without words of its own ("Yes.") borrows the question's. Spans that share equally many are told apart
    by the question's words, then the shorter one wins. No shared word, no proposal; a passage that the sentence names
    by a marker is always proposed. A title is no evidence: "# Cow tipping" does not say that cows are tipped.
    """
    asked = set(words(question))
    wanted = stated(piece.text) or asked
    found: dict[int, tuple[tuple[int, int, int], tuple[int, int]]] = {}
    for place, passage in enumerate(passages):
        titles = [words(title) for title in passage.heading_path]
        for start, end, _ in split(passage.text):
            if (read := words(passage.text[start:end])) in titles:
                continue
            here = set(read)
            score = (len(here & wanted), len(here & asked), start - end)
            if score[0] and (place not in found or score > found[place][0]):
                found[place] = (score, (start, end))
    order = sorted(found, key=lambda place: found[place][0][:2], reverse=True)
    chosen = order[:PROPOSED] + [place for place in order[PROPOSED:] if place in piece.markers]
    return {place: found[place][1] for place in chosen}


def stated(sentence: str) -> set[str]:
    """Return the words of a sentence of an answer that a passage should have; "yes" is no such word ("no" neither)."""
    return set(words(sentence)) - {"yes"}


# [1], [1, 3], [2-4]. In code it is an index, so code is left alone.
_MARKER = re.compile(r"\s*\[(\d{1,2}(?:\s*[,;–-]\s*\d{1,2})*)\]")


def _pieces(answer: str) -> list[_Piece]:
    """Return the sentences of an answer, without their markers. Markers that stand alone belong to the one before."""
    pieces: list[_Piece] = []
    end = 0
    for span in split(answer):
        text, markers = answer[span.start : span.end], tuple[int, ...]()
        if not span.code:
            text, markers = _without_markers(text)
        if text.strip():
            pieces.append(_Piece(text.strip(), "\n" if "\n" in answer[end : span.start] else " ", markers))
        elif pieces:
            pieces[-1] = pieces[-1]._replace(markers=tuple(dict.fromkeys((*pieces[-1].markers, *markers))))
        end = span.end
    return pieces


def _without_markers(text: str) -> tuple[str, tuple[int, ...]]:
    numbers: list[int] = []
    for match in _MARKER.finditer(text):
        for part in re.split(r"[,;]", match[1]):
            ends = [int(number) for number in re.findall(r"\d+", part)]
            numbers += range(ends[0], ends[-1] + 1)
    return _MARKER.sub("", text), tuple(dict.fromkeys(number - 1 for number in numbers))


# -- sentences -----------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A sentence, list item, heading, table row or block of code: `text[start:end]`, no blanks at its ends."""

    start: int
    end: int
    code: bool = False


_FENCE = re.compile(r"\s*(```|~~~)")
_ITEM = re.compile(r"\s*(?:[-*+•–]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s+(?=\S)")
_ALONE = re.compile(r"\s*(?:#{1,6}\s|\||[-=*_]{3,}\s*$)")  # headings, table rows, rules: a line each
_CODE_LINE = re.compile(
    r"(?:\t|    )\S|.*[{};]\s*$|\s*[\w.\[\]]+\s*[-+*/]?=[^=]|\s*[\w.]+\(.*\)\s*$|\s*(?://|#!|/\*|\*/|\}|\))"
    r"|\s*(?:def|class|import|from|return|if|elif|else|for|while|with|try|except|function|const|let|var|public|private"
    r"|static|void|int|fn|use|#include|@\w+)\b.*[:;({)]\s*$"
)
# A sentence ends at . ! ? … with quotes, brackets and markers after it, then a blank; at an ideographic full stop;
# at a colon that ends its line.
_END = re.compile(r"[.!?…]+(?:[\"'”’)\]]|\s?\[\d[\d,;\s–-]*\])*(?=\s)|[。！？]+[」』”’）]*|:(?=[ \t]*\n)")
_BEFORE_A_NAME = frozenset(
    re.findall(r"\S+", "mr mrs ms dr prof st mt lt sgt rev hon gov sen rep vs cf e.g i.e u.s u.k")
)
_BEFORE_A_NUMBER = frozenset(
    re.findall(r"\S+", "no nos fig figs eq vol p pp ca approx jan feb mar apr jun jul aug sep sept oct nov dec")
)


def split(text: str) -> list[Span]:
    """Return the sentences of a text, in order and apart; together they hold every character that is not blank.

    Knows prose in lines of any length, lists, headings, table rows, and code, fenced or not, which stays in one piece
    from blank line to blank line. Abbreviations are recognised by short English lists, so some sentence may be cut
    where a reader would not: a citation is then a little longer or shorter, never wrong in its place.
    """
    spans: list[Span] = []
    for start, end, code in _blocks(text):
        if code:
            spans += _trimmed(text, start, end, True)
        else:
            for first, last in _sentences(text, start, end):
                spans += _trimmed(text, first, last, False)
    return spans


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, is it code) of blocks: paragraphs, list items, single lines, code."""
    start, fence, lines = 0, "", list[tuple[int, int]]()
    for line in text.splitlines(keepends=True):
        end = start + len(line)
        mark = _FENCE.match(line)
        if fence:
            lines.append((start, end))
            if mark and mark[1] == fence:
                yield lines[0][0], end, True
                fence, lines = "", []
        elif mark:
            yield from _block(text, lines)
            fence, lines = mark[1], [(start, end)]
        elif not line.strip():
            yield from _block(text, lines)
            lines = []
        else:
            lines.append((start, end))
        start = end
    if fence:  # never closed: a passage may begin or end anywhere
        yield lines[0][0], len(text), True
    else:
        yield from _block(text, lines)


def _block(text: str, lines: list[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """Yield the blocks of lines that stand together between blank ones."""
    if not lines:
        return
    likely_code = sum(bool(_CODE_LINE.match(text[a:b])) and not _ITEM.match(text[a:b]) for a, b in lines)
    if 2 * likely_code > len(lines):
        yield lines[0][0], lines[-1][1], True
        return
    first = lines[0][0]
    for start, end in lines:
        line = text[start:end]
        if (_ITEM.match(line) or _ALONE.match(line)) and start > first:
            yield first, start, False
            first = start
        if _ALONE.match(line):
            yield start, end, False
            first = end
    if first < lines[-1][1]:
        yield first, lines[-1][1], False


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the sentences of a block of prose, or of one list item with its mark."""
    item = _ITEM.match(text, start, end)
    first, position = start, item.end() if item else start
    for match in _END.finditer(text, position, end):
        if _ends(text, match, end):
            yield first, match.end()
            first = match.end()
    yield first, end


def _ends(text: str, match: re.Match[str], end: int) -> bool:
    """Whether what looks like the end of a sentence is one: a full stop may belong to an abbreviation."""
    if not match[0].startswith(".") or match[0].startswith(".."):
        return True
    following = text[match.end() : end].lstrip()[:1]
    if following.islower():
        return False
    found = re.search(r"[\w.]*$", text[max(0, match.start() - 20) : match.start()])
    word = found[0] if found else ""
    if len(word) == 1 and word.isupper() and following.isupper():
        return word == "I"  # "J. Smith" is a name; "So did I. Then" are two sentences
    return word.lower() not in _BEFORE_A_NAME and not (word.lower() in _BEFORE_A_NUMBER and following.isdigit())


def _trimmed(text: str, start: int, end: int, code: bool) -> Iterator[Span]:
    part = text[start:end]
    if part.strip():
        left = start + len(part) - len(part.lstrip())
        yield Span(left, start + len(part.rstrip()), code)
