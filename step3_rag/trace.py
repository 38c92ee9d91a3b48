"""What a person sees of an answer: the way to it, the words as they come, the answer with its sources.

    python -m step3_rag ask "what is an aurora" --trace          # every decision, then the answer
    python -m step3_rag ask "what is an aurora" > answer.txt     # the file gets the answer only

The trace and the sources go to stderr, the answer, and nothing else, to stdout. Text from a model or a document passes
`printable` first: a file must not be able to move the cursor or retitle the window (CWE-150).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.foreign_text import one_line, printable
from shared.terminal import PALETTE, console
from step3_rag.answers import EDGES, Answer, Event, Step, Token
from step3_rag.passages import Hit, Passage

WIDTH = 80  # columns, or the terminal's if it has fewer
DOING = {  # node → what to say while it works
    "route": "reading the question",
    "retrieve": "searching",
    "grade": "grading what was found",
    "rewrite": "putting it in other words",
    "generate": "writing",
    "cite": "looking for support",
    "check": "checking the answer",
}
GOOD, BAD = ("✓ ", PALETTE["green"]), ("✗ ", PALETTE["vermilion"])
# Outcomes on the way to an answer; the others lead back, or out.
_GOOD = {"collection", "found", "found, not graded", "answerable", "new query", "written", "cited", "supported"}


class Trace:
    """Shows the events of one question after the other. steps: show every decision, not only the answer.

    On a terminal the answer appears as it is written; when it is complete it is taken back and printed as it stands:
    with its citations, without what was withdrawn. Where stdout is a file or a pipe nothing can be taken back, so the
    answer is written when it is complete.
    """

    def __init__(self, *, steps: bool) -> None:
        self._steps = steps
        self._err = console(stderr=True)
        self._width = min(WIDTH, self._err.width)
        # Both, because what is written to one is erased through the other.
        self._live = self._err.is_terminal and not self._err.is_dumb_terminal and sys.stdout.isatty()
        self._status = False  # whether a transient last line is there
        self._streamed = ""  # what stdout has of an answer that is not complete

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._clear_status()
        match event:
            case Step():
                self._step(event)
            case Token(text, reset):
                if reset:
                    self._take_back()
                self._stream(text)
            case Answer():
                self._take_back()
                self._answer(event)

    def begin(self) -> None:
        """A question was asked."""
        self._show_status(DOING["route"])

    def stopped(self) -> None:
        """The question will not be answered: leave what was written, and go to a new line."""
        self._clear_status()
        self._end_line()

    def _step(self, step: Step) -> None:
        if self._steps:
            self._take_back()  # a draft between the lines of the trace would read as an answer
            self._line(*step_line(step))
        following = next((to for node, outcome, to in EDGES if (node, outcome) == (step.node, step.outcome)), "")
        if following in DOING and not self._streamed:
            self._show_status(DOING[following])

    def _stream(self, text: str) -> None:
        if self._live and text:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            self._streamed += printable(text)

    def _answer(self, answer: Answer) -> None:
        numbers = cited_passages(answer)
        print(printable(with_markers(answer, numbers)), flush=True)
        if answer.abstained:
            for hit in answer.nearest[:3]:
                self._line(("  nearest: ", "dim"), (place(hit.passage), "dim"))
        for sentence in answer.sentences:
            for citation in sentence.citations:
                number = numbers[citation.passage.id]
                self._line((f"[{number}] ", PALETTE["sky"]), (place(citation.passage), ""))
                quote = one_line(citation.quote, 20 * WIDTH)
                span = f"    {citation.start}–{citation.end}, support {citation.support:.2f}: "
                self._line((span, "dim"), (f"“{quote}”", ""))
        self._line((footer(answer), "dim"))

    # -- lines and the cursor ------------------------------------------------------------------------------------------

    def _line(self, *parts: tuple[str, str]) -> None:
        """Print one line of (text, style) parts, cut to the width."""
        from rich.text import Text

        line = Text.assemble(*parts)
        line.truncate(self._width, overflow="ellipsis")
        self._err.print(line, soft_wrap=True)

    def _show_status(self, text: str) -> None:
        """Show a last line that the next event removes; only where it can be removed."""
        if self._live:
            from rich.text import Text

            self._err.print(Text(f"… {text}", style="dim"), end="", soft_wrap=True)
            self._status = True

    def _clear_status(self) -> None:
        if self._status:
            self._erase(1)
            self._status = False

    def _erase(self, rows: int) -> None:
        """Erase the row the cursor is in and those above it, `rows` in all."""
        from rich.control import Control
        from rich.segment import ControlType

        up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * (rows - 1)
        self._err.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up))

    def _take_back(self) -> None:
        """Remove the streamed text from the terminal, unless its beginning has scrolled out of reach."""
        rows = rows_of(self._streamed, self._err.width)
        if self._streamed and rows <= self._err.height:
            self._erase(rows)
            self._streamed = ""
        self._end_line()

    def _end_line(self) -> None:
        if self._streamed and not self._streamed.endswith("\n"):
            print(flush=True)
        self._streamed = ""


def step_line(step: Step) -> list[tuple[str, str]]:
    """Return the parts of a line about a decision, as (text, style)."""
    details = "  ".join(f"{name} {_value(value)}" for name, value in step.detail.items() if value not in ("", [], {}))
    seconds = f"{step.seconds:5.2f} s"
    if step.outcome == "done":
        return [(f"  {step.node:<9} ", ""), (f"{seconds}  {details}", "dim")]
    mark = GOOD if step.outcome in _GOOD else BAD
    return [mark, (f"{step.node:<9} {step.outcome}", ""), (f"  {seconds}  {details}", "dim")]


def _value(value: Any) -> str:
    """A JSON value as a few words."""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_value(item) for item in value)
    return one_line(str(value), 20 * WIDTH)


def cited_passages(answer: Answer) -> dict[str, int]:
    """Return passage id → the number it is cited by, from 1, in the order of the answer."""
    citations = [citation for sentence in answer.sentences for citation in sentence.citations]
    return {name: number for number, name in enumerate(dict.fromkeys(c.passage.id for c in citations), start=1)}


def with_markers(answer: Answer, numbers: Mapping[str, int]) -> str:
    """Return the answer's text with [n] after each sentence."""
    text, at = "", 0
    for sentence in answer.sentences:
        end = answer.text.index(sentence.text, at) + len(sentence.text)
        marks = "".join(f"[{number}]" for number in sorted({numbers[c.passage.id] for c in sentence.citations}))
        text += answer.text[at:end] + (f" {marks}" if marks else "")
        at = end
    return text + answer.text[at:]


def place(passage: Passage) -> str:
    """Return where a passage stands, in one line: the file, from here if it is below, and the headings."""
    source = Path(passage.source)
    here = Path.cwd()
    name = os.path.relpath(source, here) if source.is_relative_to(here) else str(source)
    return one_line(" > ".join([name, *passage.heading_path]), 10 * WIDTH)


def footer(answer: Answer) -> str:
    """One line about a whole answer."""
    parts = []
    if answer.sentences:
        parts.append(_count(len(cited_passages(answer)), "source"))
    elif answer.reason and not answer.abstained:
        parts.append(answer.reason)
    if answer.dropped_citations:
        parts.append(_count(answer.dropped_citations, "citation") + " dropped")
    if answer.rewrites:
        parts.append(_count(len(answer.rewrites), "rewrite"))
    return ", ".join([*parts, _count(answer.tokens, "token"), f"{answer.seconds:.1f} s"])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rows_of(text: str, width: int) -> int:
    """Return how many rows of a terminal `width` columns wide a printable text takes, from the first column on."""
    from rich.cells import cell_len

    rows, column = 1, 0
    for character in text:
        size = 8 - column % 8 if character == "\t" else cell_len(character)
        if character == "\n":
            rows, column = rows + 1, 0
        elif column + size > width:  # a full row wraps only when the next character comes
            rows, column = rows + 1, size
        else:
            column += size
    return rows


# -- for machines --------------------------------------------------------------------------------------------------


def document(answer: Answer, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what `--json` prints about one question."""

    def where(passage: Passage) -> dict[str, Any]:
        return {"passage": passage.id, "source": passage.source, "heading_path": list(passage.heading_path)}

    def near(hit: Hit) -> dict[str, Any]:
        return where(hit.passage) | {"start": hit.passage.start, "end": hit.passage.end, "score": hit.score}

    sentences = [
        {
            "text": sentence.text,
            "citations": [
                where(c.passage) | {"start": c.start, "end": c.end, "quote": c.quote, "support": c.support}
                for c in sentence.citations
            ],
        }
        for sentence in answer.sentences
    ]
    return {
        "question": answer.question,
        "answer": answer.text,
        "abstained": answer.abstained,
        "reason": answer.reason,
        "route": answer.route,
        "rewrites": list(answer.rewrites),
        "sentences": sentences,
        "nearest": [near(hit) for hit in answer.nearest],
        "dropped_citations": answer.dropped_citations,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 3),
        "steps": [
            {"node": s.node, "outcome": s.outcome, "detail": dict(s.detail), "seconds": round(s.seconds, 3)}
            for s in steps
        ],
    }
