"""From events to markup: the answer with its citations, and the passages as cards (the graph: page_trace.py).

Pure functions without Gradio. Every word that comes from a file, a model or a person is escaped here, so nothing of it
can become markup, load a picture or run. page.css gives the look, page.py puts the pieces on the page.

    python -m pytest tests/step3/test_page_markup.py
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from step3_rag.answers import NODES, Answer, Citation, Event, Step, Token
from step3_rag.page_trace import label, plain, running_node, trace
from step3_rag.passages import Passage
from step3_rag.trace import cited_passages

AROUND_SPAN = 160  # characters of the passage that a card shows on each side of what is cited
AROUND_PASSAGE = 700  # characters of the source that "in the source" shows on each side of the passage


@dataclass(frozen=True)
class Turn:
    """A question and what is known so far of its answer.

    number: 1 for the first of the conversation; it makes the links to the cards unique. written: the answer as it
    streams. failure: what went wrong, for people; "" when nothing did.
    """

    number: int
    question: str
    steps: tuple[Step, ...] = ()
    written: str = ""
    answer: Answer | None = None
    failure: str = ""

    @property
    def running(self) -> bool:
        """Whether there is more to come."""
        return self.answer is None and not self.failure


def advance(turn: Turn, event: Event) -> Turn:
    """Return the turn with one more event."""
    if isinstance(event, Step):
        return replace(turn, steps=(*turn.steps, event))
    if isinstance(event, Token):
        return replace(turn, written=event.text if event.reset else turn.written + event.text)
    return replace(turn, answer=event)


# --- the answer ---


def answer(turn: Turn) -> str:
    """The question and its answer, with links from each sentence to the cards of its passages."""
    head = f'<h2 class="question"><span class="unseen">You asked: </span>{plain(turn.question)}</h2>'
    return f'<section class="turn" id="turn{turn.number}">{head}{_body(turn)}</section>'


def _body(turn: Turn) -> str:
    found = turn.answer
    if turn.failure:
        kept = f'<p class="said">{plain(turn.written)}</p>' if turn.written else ""
        return f'{kept}<p class="failure" role="alert">{plain(turn.failure)}</p>'
    if found is None:
        if turn.written:
            return f'<p class="said writing">{plain(turn.written)}</p>'
        return f'<p class="waiting">{plain(progress(turn))}</p>'
    if found.abstained:
        reason = f"<p>{plain(_sentence(found.reason))}</p>" if found.reason and found.reason not in found.text else ""
        return f'<div class="abstained"><p class="said">{plain(found.text)}</p>{reason}</div>{_facts(turn, found)}'
    numbers = cited_passages(found)
    said, at = "", 0
    for sentence in found.sentences:
        place = found.text.find(sentence.text, at)
        end = at if place < 0 else place + len(sentence.text)
        cited = sorted({numbers[citation.passage.id] for citation in sentence.citations})
        said += plain(found.text[at:end]) + "".join(_marker(turn, number) for number in cited)
        at = end
    said += plain(found.text[at:])
    note = f'<p class="note">{plain(_sentence(found.reason))}</p>' if found.reason else ""
    return f'<p class="said">{said}</p>{note}{_facts(turn, found)}'


def _marker(turn: Turn, number: int) -> str:
    return (
        f'<a class="cite" href="#{_card_id(turn, number)}" aria-label="source {number}"><span aria-hidden="true">'
        f"{number}</span></a>"
    )


def _card_id(turn: Turn, number: int) -> str:
    return f"turn{turn.number}-source{number}"


def _facts(turn: Turn, found: Answer) -> str:
    facts = [f"understood as: “{found.question}”"] if found.question != turn.question else []
    facts.append(f"{found.seconds:.1f} s")
    if found.tokens:
        facts.append(many(found.tokens, "token"))
    if found.dropped_citations:
        facts.append(f"{many(found.dropped_citations, 'citation')} dropped: not supported")
    facts += [f"also searched: “{query}”" for query in found.rewrites]
    return '<ul class="facts">' + "".join(f"<li>{plain(fact)}</li>" for fact in facts) + "</ul>"


def many(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# --- the passages ---


def cards(turn: Turn, sources: Mapping[str, str]) -> str:
    """What the answer stands on, or what came nearest, as cards; "" while there is no answer.

    sources: the text of the sources by path; one that is missing (deleted meanwhile) costs only its surroundings.
    """
    found = turn.answer
    if found is None:
        return ""
    citations: dict[str, list[Citation]] = {name: [] for name in cited_passages(found)}
    for sentence in found.sentences:
        for citation in sentence.citations:
            citations[citation.passage.id].append(citation)
    title, shown = "Sources", [cited[0].passage for cited in citations.values()]
    if not shown:
        title, shown = "Nearest passages, not cited", [hit.passage for hit in found.nearest]
    if not shown:
        return ""
    items = (
        _card(turn, number, passage, citations.get(passage.id, []), sources.get(passage.source))
        for number, passage in enumerate(shown, 1)
    )
    return f'<section class="sources"><h3>{title}</h3><ol>{"".join(items)}</ol></section>'


def _card(turn: Turn, number: int, passage: Passage, citations: Sequence[Citation], source: str | None) -> str:
    spans = _merged((citation.start, citation.end) for citation in citations)
    name = plain(PurePath(passage.source).name)
    titles = " › ".join(plain(title) for title in passage.heading_path)
    path = f' <span class="path">{titles}</span>' if titles else ""
    support = ""
    if citations:
        best = max(citation.support for citation in citations)
        support = f'<span class="support">support {best:.2f}</span>'
    identity = _card_id(turn, number)
    return (
        f'<li class="card" id="{identity}" tabindex="-1" aria-labelledby="{identity}-name">'
        f'<p class="where" id="{identity}-name"><span class="number">{number}</span> <b>{name}</b>'
        f"{path}</p>{support}"
        f"<blockquote>{_excerpt(passage, spans)}</blockquote>{_in_source(passage, spans, source)}</li>"
    )


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping and touching spans as one, in order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _marked(text: str, offset: int, spans: Sequence[tuple[int, int]]) -> str:
    """`text` with the spans in <mark>; offset: where in the source it begins, in which the spans count."""
    parts, at = [], 0
    for start, end in spans:
        first, last = max(start - offset, at), min(end - offset, len(text))
        if first < last:
            parts += [plain(text[at:first]), "<mark>", plain(text[first:last]), "</mark>"]
            at = last
    return "".join([*parts, plain(text[at:])])


def _excerpt(passage: Passage, spans: Sequence[tuple[int, int]]) -> str:
    """The paragraphs of the cited spans, as far as they are near; the passage's beginning where nothing is cited."""
    text = passage.text
    first, last = (spans[0][0] - passage.start, spans[-1][1] - passage.start) if spans else (0, AROUND_SPAN)
    breaks = text.rfind("\n\n", 0, first), text.find("\n\n", last)
    begin, end = breaks[0] + 2 if breaks[0] >= 0 else 0, breaks[1] if breaks[1] >= 0 else len(text)
    before, after = max(first - AROUND_SPAN, begin), min(last + AROUND_SPAN, end)
    # Within a paragraph to the nearest word, unless there is none: some languages write without spaces.
    if before > begin and (space := text.find(" ", before, min(before + 30, first))) >= 0:
        before = space + 1
    if after < end and (space := text.rfind(" ", max(after - 30, last), after)) >= 0:
        after = space
    shown = _marked(text[before:after], passage.start + before, spans)
    return ("… " if before else "") + shown + (" …" if after < len(text) else "")


def _in_source(passage: Passage, spans: Sequence[tuple[int, int]], source: str | None) -> str:
    """The passage where it stands in its file, the citation within it."""
    if source is None or source[passage.start : passage.end] != passage.text:  # changed since: offsets mean nothing
        return '<p class="note">The source has changed since; its surroundings cannot be shown.</p>'
    first, last = max(passage.start - AROUND_PASSAGE, 0), min(passage.end + AROUND_PASSAGE, len(source))
    before = ("… " if first else "") + plain(source[first : passage.start])
    after = plain(source[passage.end : last]) + (" …" if last < len(source) else "")
    return (
        "<details><summary>In the source</summary>"
        f'<p class="note">{plain(passage.source)}, characters {passage.start:,} to {passage.end:,}</p>'
        f'<div class="source" tabindex="0" role="region" aria-label="The passage in its source">{before}'
        f'<span class="here">{_marked(passage.text, passage.start, spans)}</span>{after}</div></details>'
    )


# --- the rest of the page ---


def decisions(turn: Turn) -> str:
    """The way of this turn through the graph."""
    return trace(turn.steps, running=turn.running, name=f"turn{turn.number}")


def progress(turn: Turn) -> str:
    """What is going on, in one line, for the eye and for a screen reader."""
    if turn.failure:
        return turn.failure
    if turn.answer:
        return "There is no answer; the reason is shown." if turn.answer.abstained else "The answer is complete."
    node = running_node(turn.steps)
    return f"{label(node)}: {NODES[node]}" if node and node in NODES else "Working."


def past(turn: Turn, sources: Mapping[str, str]) -> str:
    """An earlier turn, with its cards and its way through the graph folded."""
    return (
        f'<article class="past">{answer(turn)}<details><summary>Sources and decisions</summary>'
        f"{cards(turn, sources)}{decisions(turn)}</details></article>"
    )
