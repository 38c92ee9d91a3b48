"""What a person sees: the calls while they run, the answer as it streams, what it cost, and the log afterwards.

    python -m step2_tool_calling ask "Is it warmer in Lisbon or Oslo?"                # the trace and the answer
    python -m step2_tool_calling ask "Is it warmer in Lisbon or Oslo?" > answer.txt   # the file gets the answer only
    python -m step2_tool_calling log 12                                               # a conversation, afterwards

The trace goes to stderr, in lines of at most 80 columns; the answer, and nothing else, goes to stdout. Text from a
model or a tool passes `printable` first: a web page must not be able to move the cursor, retitle the window or hide
what a call did behind an escape sequence (CWE-150).
"""

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from shared.foreign_text import one_line
from shared.foreign_text import printable as printable  # chat.py and others import it from here
from shared.terminal import PALETTE, console
from step2_tool_calling.conversation import (
    Call,
    CallDone,
    CallStarted,
    Event,
    Finished,
    Message,
    Started,
    TextDelta,
    Turn,
    TurnDone,
    Usage,
)

if TYPE_CHECKING:
    from rich.console import Console

    from step2_tool_calling.log import Conversation, LoggedTurn, Summary

WIDTH = 80  # columns, or the terminal's if it has fewer


def _one_line(text: str) -> str:
    """The beginning of a text, in one line; far more of it than a line shows, far less than a tool may return."""
    return one_line(text, 20 * WIDTH)


def _call_text(call: Call) -> str:
    """A call as a Python programmer would write it; arguments that are no JSON object stand as the model wrote them."""
    arguments = call.arguments()
    inside = call.text
    if arguments is not None:
        inside = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    return printable(f"{call.name}({inside})")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _dollars(cost: float | None) -> str:
    if cost is None:
        return "price unknown"
    return "< $0.0001" if 0 < cost < 0.0001 else f"${cost:.{4 if 0 < cost < 1 else 2}f}"


def _tokens(usage: Usage) -> str:
    return _count(usage.total, "token") + (f" ({usage.cached:,} cached)" if usage.cached else "")


def _footer(ending: str | None, steps: int, calls: int, usage: Usage, seconds: float, cost: float | None) -> str:
    """One line about a whole conversation. It starts with how it ended, unless that was by an answer."""
    local = " local" if cost == 0 and usage.total else ""
    parts = [_count(steps, "step"), _count(calls, "call"), _tokens(usage), f"{seconds:.1f} s"]
    if ending is not None:
        parts.append(_dollars(cost) + local)
    return ("" if ending == "answer" else f"{ending or 'unfinished'}: ") + ", ".join(parts)


class Trace:
    """An observer of the loop that tells a person about it.

    On a terminal the model's text appears as it streams. When it turns out to have come before calls, and so not to be
    the answer, it is taken back and shown dim. Where stdout is a file or a pipe nothing can be taken back: the answer
    is written when it is complete. The error of a conversation that failed is left to whoever catches it.
    """

    def __init__(self) -> None:
        self._out = console(stderr=True)
        self._width = min(WIDTH, self._out.width)
        # Both, because what is written to one is erased through the other.
        self._live = self._out.is_terminal and not self._out.is_dumb_terminal and sys.stdout.isatty()
        self._status = ""  # the transient last line, if there is one
        self._begin("")

    def _begin(self, model: str) -> None:
        self._model = model
        self._steps = self._calls = 0
        self._streamed = ""  # what stdout has of this turn
        self._answered = False
        self._open: list[tuple[Call, str]] = []  # the turn's unfinished calls, and what to call each in the trace
        self._running: list[str] = []

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._clear_status()
        match event:
            case Started():
                self._begin(printable(event.model))
                self._show_status(f"… waiting for {self._model}")
            case TextDelta(text):
                self._stream(text)
            case TurnDone(step, turn):
                self._steps = step
                self._turn(turn)
            case CallStarted(_, call):
                labels = (label for other, label in self._open if other == call and label not in self._running)
                self._running.append(next(labels))
                self._show_status(f"… running {', '.join(self._running)}")
            case CallDone():
                self._call_done(event)
            case Finished():
                self._finished(event)

    def _stream(self, text: str) -> None:
        if self._live:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            self._streamed += printable(text)

    def _turn(self, turn: Turn) -> None:
        if turn.calls:
            self._take_back()
            if turn.content.strip():
                self._print((printable(turn.content.strip()), "dim"), whole=True)
        else:
            self._answered = bool(self._streamed.strip())
            self._end_line()
        names = [call.name for call in turn.calls]
        for number, call in enumerate(turn.calls, start=1):
            # Results arrive in any order: where two calls have one name, a number says whose result it is.
            tag = f"#{number} " if names.count(call.name) > 1 else ""
            self._open.append((call, tag + _one_line(call.name)))
            self._print(("→ ", PALETTE["sky"]), (tag + _one_line(_call_text(call)), ""))
        self._calls += len(turn.calls)

    def _call_done(self, event: CallDone) -> None:
        result = event.result
        entry = next(entry for entry in self._open if entry[0] == result.call)
        self._open.remove(entry)
        if entry[1] in self._running:
            self._running.remove(entry[1])
        mark = ("✓ ", PALETTE["green"]) if result.status == "ok" else ("✗ ", PALETTE["vermilion"])
        seconds = f"  {result.seconds:.2f} s" if result.seconds else ""  # refused ones took no time
        self._print(mark, (entry[1], ""), (f"{seconds}  {_one_line(result.output)}", "dim"))
        if self._running:
            self._show_status(f"… running {', '.join(self._running)}")
        elif not self._open:
            self._show_status(f"… waiting for {self._model}")

    def _finished(self, event: Finished) -> None:
        self._end_line()
        if event.answer and not self._answered and event.ending not in ("failed", "cancelled"):
            print(printable(event.answer), flush=True)
        footer = _footer(event.ending, self._steps, self._calls, event.usage, event.seconds, event.cost)
        self._print((footer, "dim"))

    # -- lines and the cursor ------------------------------------------------------------------------------------------

    def _print(self, *parts: tuple[str, str], whole: bool = False) -> None:
        """Print one line of (text, style) parts, cut to the width, or wrapped to it when `whole`."""
        from rich.text import Text

        line = Text.assemble(*parts)
        if whole:
            self._out.print(line, width=self._width)
        else:
            line.truncate(self._width, overflow="ellipsis")
            self._out.print(line, soft_wrap=True)

    def _show_status(self, text: str) -> None:
        """Show a last line that the next event removes; only where it can be removed."""
        if self._live:
            from rich.text import Text

            line = Text(text, style="dim")
            line.truncate(self._width - 1, overflow="ellipsis")  # a full line would move the cursor to the next
            self._out.print(line, end="", soft_wrap=True)
            self._status = text

    def _clear_status(self) -> None:
        if self._status:
            self._erase(1)
            self._status = ""

    def _erase(self, rows: int) -> None:
        """Erase the row the cursor is in and those above it, `rows` in all."""
        from rich.control import Control
        from rich.segment import ControlType

        up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * (rows - 1)
        self._out.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up))

    def _end_line(self) -> None:
        if self._streamed and not self._streamed.endswith("\n"):
            print(flush=True)
        self._streamed = ""

    def _take_back(self) -> None:
        """Remove this turn's text from the terminal, unless its beginning has scrolled out of reach."""
        rows = rows_of(self._streamed, self._out.width)
        if self._streamed and rows <= self._out.height:
            self._erase(rows)
            self._streamed = ""
        self._end_line()


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


# -- the log -----------------------------------------------------------------------------------------------------------


def print_list(out: "Console", summaries: Iterable["Summary"]) -> None:
    """Print conversations as a table, one line each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), width=min(WIDTH, out.width))
    table.add_column("id", justify="right")
    table.add_column("when", no_wrap=True)
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("calls", "tokens", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ending", no_wrap=True)
    for summary in summaries:
        table.add_row(
            str(summary.id),
            f"{summary.started_at.astimezone():%m-%d %H:%M}",
            Text(_one_line(summary.question)),
            f"{summary.calls:,}",
            f"{summary.usage.total:,}",
            "–" if summary.cost is None else _dollars(summary.cost),
            summary.ending or "unfinished",
        )
    out.print(table)


def print_conversation(out: "Console", conversation: "Conversation") -> None:
    """Print a logged conversation, whole: what was asked, every call with its arguments and result, the answer."""
    shown = conversation
    _print_text(out, f"conversation {shown.id} · {shown.started_at.astimezone():%Y-%m-%d %H:%M}", style="bold")
    _print_text(out, " · ".join([shown.model, shown.strategy, shown.prompt, shown.endpoint]), style="dim")
    _print_text(out, f"tools: {', '.join(shown.tools) or 'none'}", style="dim")
    for message in shown.messages:
        _print_message(out, message)
    for turn in shown.turns:
        _print_turn(out, turn)
    calls = sum(len(turn.turn.calls) for turn in shown.turns)
    out.print()
    _print_text(
        out, _footer(shown.ending, len(shown.turns), calls, shown.usage, shown.seconds, shown.cost), style="dim"
    )
    if shown.error:
        _print_text(out, shown.error, style=PALETTE["vermilion"])


def _print_text(out: "Console", text: str, indent: int = 0, style: str = "") -> None:
    from rich.padding import Padding
    from rich.text import Text

    body = Padding(Text(printable(text), style), (0, 0, 0, indent), expand=False)
    out.print(body, width=min(WIDTH, out.width))


def _print_message(out: "Console", message: Message) -> None:
    content = message.get("content") or ""
    out.print()
    _print_text(out, str(message.get("role")), style="bold")
    _print_text(out, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), indent=2)
    for call in message.get("tool_calls") or ():
        _print_text(out, f"→ {call['function']['name']}({call['function']['arguments']})", indent=2)


def _print_turn(out: "Console", logged: "LoggedTurn") -> None:
    turn = logged.turn
    out.print()
    cut = " · cut off at its token limit" if turn.finish == "length" else ""
    _print_text(out, f"step {logged.step} · {_tokens(turn.usage)} · {turn.seconds:.1f} s{cut}", style="bold")
    if turn.content.strip():
        _print_text(out, turn.content.strip(), indent=2)
    results = list(logged.results)
    for call in turn.calls:
        _print_text(out, f"→ {_call_text(call)}", indent=2)
        result = next((result for result in results if result.call == call), None)
        if result is None:
            state = "began; its result is not known" if call in logged.running else "did not begin"
            _print_text(out, f"✗ {state}", indent=2, style=PALETTE["vermilion"])
            continue
        results.remove(result)
        good = result.status == "ok"
        style = PALETTE["green" if good else "vermilion"]
        _print_text(out, f"{'✓' if good else '✗ ' + result.status} {result.seconds:.2f} s", indent=2, style=style)
        _print_text(out, result.output, indent=4)
