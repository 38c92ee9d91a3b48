"""What a person sees, with and without a terminal, and what a hostile tool cannot make them see.

python -m pytest tests/step2/test_trace.py
"""

import contextlib
import re
import sys
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from step2_tool_calling.conversation import (
    Call,
    CallDone,
    CallStarted,
    Ending,
    Event,
    Finished,
    Result,
    Started,
    TextDelta,
    Turn,
    TurnDone,
    Usage,
)
from step2_tool_calling.log import Conversation, LoggedTurn, Summary
from step2_tool_calling.trace import Trace, print_conversation, print_list, printable, rows_of
from tests.shared.terminal_screen import Terminal

LISBON = Call("1", "get_weather", '{"city": "Lisbon", "days": 2}')
RATE = Call("2", "exchange_rate", '{"base": "EUR"}')
ANSWER = "It is warmer in Lisbon: 18.3 °C."
# What a tool could return to own the terminal: clear it, set its title, write to the clipboard, an 8-bit sequence.
HOSTILE = "\x1b[2J\x1b]0;title\x07\x1b]52;c;cm0gLXJm\x07\x9b31m\r\x08\x7f‮gpj.exe"


def started() -> Started:
    return Started([{"role": "user", "content": "?"}], "smollm2-135m", "embedded", "native", "plain@1", ["get_weather"])


def finished(answer: str = ANSWER, ending: Ending = "answer", cost: float | None = 0.0) -> Finished:
    return Finished(answer, ending, Usage(1200, 512, 34, 2), 1.84, cost)


def conversation(content: str = "Let me look. ", answer: str = ANSWER) -> list[Event]:
    told: list[Event] = [started(), *(TextDelta(piece) for piece in re.findall(r"\S*\s*", content))]
    told += [
        TurnDone(1, Turn(content, (LISBON, RATE))),
        CallStarted(1, LISBON),
        CallStarted(1, RATE),
        CallDone(1, Result(RATE, "timeout", "exchange_rate did not finish within 20 s", 20.0)),
        CallDone(1, Result(LISBON, "ok", '{"temperature": 18.3}', 0.21)),
        *(TextDelta(piece) for piece in re.findall(r"\S*\s*", answer)),
        TurnDone(2, Turn(answer)),
        finished(answer),
    ]
    return told


def show(told: list[Event], terminal: Terminal | None = None) -> None:
    """Tell a trace these events. Without a terminal, stdout and stderr are what pytest makes them."""
    stdout, stderr = terminal or sys.stdout, terminal or sys.stderr
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        trace = Trace()
        for event in told:
            trace(event)


# -- without a terminal ------------------------------------------------------------------------------------------------


def test_stdout_gets_the_answer_and_stderr_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    show(conversation())
    out, err = capsys.readouterr()
    assert out == ANSWER + "\n"
    assert err.splitlines() == [
        "Let me look.",
        '→ get_weather(city="Lisbon", days=2)',
        '→ exchange_rate(base="EUR")',
        "✗ exchange_rate  20.00 s  exchange_rate did not finish within 20 s",
        '✓ get_weather  0.21 s  {"temperature": 18.3}',
        "2 steps, 2 calls, 1,234 tokens (512 cached), 1.8 s, $0.00 local",
    ]


def test_lines_are_at_most_80_columns_whatever_comes(capsys: pytest.CaptureFixture[str]) -> None:
    long = Call("1", "n" * 64, '{"text": "' + "你好 " * 200 + '"}')
    broken = Call("2", "x" * 300, "not json\n" * 100)
    told: list[Event] = [
        Started([], "m" * 200, "", "", "", []),
        TurnDone(1, Turn("words and 世界 " * 40, (long, broken, long))),
        CallDone(1, Result(broken, "unknown", "there is no such tool, " * 30)),
        CallStarted(1, long),
        CallDone(1, Result(long, "ok", "[[red]] 🙂 line\n" * 10**5, 0.1)),
        CallDone(1, Result(long, "ok", "x" * 10**7, 0.1)),
        Finished("", "step limit", Usage(10**9, 10**9, 10**9), 10**5, 1234567.0),
    ]
    show(told)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert sum(line.startswith(("→", "✓", "✗")) for line in lines) == 6
    assert lines[-4].endswith("…")


def test_no_escape_sequences_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(conversation())
    assert "\x1b" not in "".join(capsys.readouterr())


def test_two_calls_of_one_tool_are_numbered(capsys: pytest.CaptureFixture[str]) -> None:
    oslo = Call("3", "get_weather", '{"city": "Oslo"}')
    told: list[Event] = [started(), TurnDone(1, Turn("", (LISBON, oslo, RATE)))]
    told += [CallDone(1, Result(call, "ok", "1", 0.1)) for call in (oslo, RATE, LISBON)]
    show(told)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("(")[0] for line in lines[:3]] == ["→ #1 get_weather", "→ #2 get_weather", "→ exchange_rate"]
    assert [line.split("  ")[0] for line in lines[3:]] == ["✓ #2 get_weather", "✓ exchange_rate", "✓ #1 get_weather"]


def test_equal_calls_are_told_apart_by_their_place(terminal: Terminal) -> None:
    same = Call("", "roll", "{}")
    told: list[Event] = [started(), TurnDone(1, Turn("", (same, same))), CallStarted(1, same), CallStarted(1, same)]
    show(told, terminal)
    assert terminal.screen()[-1] == "… running #1 roll, #2 roll"
    show([*told, CallDone(1, Result(same, "ok", "3")), CallDone(1, Result(same, "ok", "5"))], terminal)
    assert terminal.screen()[-3:] == ["✓ #1 roll  3", "✓ #2 roll  5", "… waiting for smollm2-135m"]


@pytest.mark.parametrize(
    ("ending", "cost", "footer"),
    [
        ("answer", 0.0, "0 steps, 0 calls, 1,234 tokens (512 cached), 1.8 s, $0.00 local"),
        ("answer", None, "0 steps, 0 calls, 1,234 tokens (512 cached), 1.8 s, price unknown"),
        ("answer", 0.00001, "0 steps, 0 calls, 1,234 tokens (512 cached), 1.8 s, < $0.0001"),
        ("money limit", 0.01234, "money limit: 0 steps, 0 calls, 1,234 tokens (512 cached), 1.8 s, $0.0123"),
        ("failed", 12.3, "failed: 0 steps, 0 calls, 1,234 tokens (512 cached), 1.8 s, $12.30"),
    ],
)
def test_the_footer(capsys: pytest.CaptureFixture[str], ending: Ending, cost: float | None, footer: str) -> None:
    show([started(), finished("", ending, cost)])
    assert capsys.readouterr().err == footer + "\n"


@pytest.mark.parametrize(
    ("ending", "out"), [("token limit", "So far.\n"), ("step limit", "So far.\n"), ("failed", ""), ("cancelled", "")]
)
def test_what_is_an_answer(capsys: pytest.CaptureFixture[str], ending: Ending, out: str) -> None:
    show([started(), TurnDone(1, Turn("So far.", (LISBON,))), finished("So far.", ending)])
    assert capsys.readouterr().out == out


# -- on a terminal -----------------------------------------------------------------------------------------------------


def test_what_is_on_the_screen_afterwards(terminal: Terminal) -> None:
    show(conversation(), terminal)
    assert terminal.screen() == [
        "Let me look.",
        '→ get_weather(city="Lisbon", days=2)',
        '→ exchange_rate(base="EUR")',
        "✗ exchange_rate  20.00 s  exchange_rate did not finish within 20 s",
        '✓ get_weather  0.21 s  {"temperature": 18.3}',
        ANSWER,
        "2 steps, 2 calls, 1,234 tokens (512 cached), 1.8 s, $0.00 local",
        "",
    ]
    assert "\x1b[2mLet me look.\x1b[0m" in terminal.getvalue()  # dim, when it had turned out not to be the answer


def test_there_is_a_sign_of_life_at_every_moment(terminal: Terminal) -> None:
    last = []
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        trace = Trace()
        for event in conversation():
            trace(event)
            last.append([line for line in terminal.screen() if line][-1])
    seen = list(dict.fromkeys(last))
    assert seen[:2] == ["… waiting for smollm2-135m", "Let"]
    assert "… running get_weather" in seen
    assert "… running get_weather, exchange_rate" in seen
    assert seen.count("It is") == 1  # the answer, while it streams
    assert not any("…" in line for line in terminal.screen())


def test_long_text_before_calls_is_taken_back_whole(terminal: Terminal) -> None:
    show(conversation("One thing.\n\nTwo " + "x" * 200 + " 世界" * 45 + "\n"), terminal)
    screen = terminal.screen()
    assert screen[0] == "One thing."
    assert sum("Two" in line for line in screen) == 1
    assert sum(line.count("世") for line in screen) == 45


def test_text_longer_than_the_screen_stays(terminal: Terminal) -> None:
    show(conversation("line\n" * 30), terminal)
    assert terminal.screen()[:30] == ["line"] * 30
    assert terminal.screen()[60] == '→ get_weather(city="Lisbon", days=2)'


def test_a_stream_cut_in_the_middle_leaves_what_came(terminal: Terminal) -> None:
    show([started(), TextDelta("It is war"), finished("", "failed")], terminal)
    assert terminal.screen()[0] == "It is war"
    assert terminal.screen()[1].startswith("failed: ")


def test_an_answer_that_did_not_stream_is_shown_once(terminal: Terminal) -> None:
    show([started(), TurnDone(1, Turn(ANSWER)), finished()], terminal)
    assert terminal.screen()[0] == ANSWER
    assert terminal.getvalue().count(ANSWER) == 1


def test_no_color_keeps_the_text(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    show(conversation(), terminal)
    assert not re.search(r"\x1b\[[0-9;]*38;", terminal.getvalue())
    assert '✓ get_weather  0.21 s  {"temperature": 18.3}' in terminal.screen()


def test_a_dumb_terminal_gets_no_escape_sequences(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    show(conversation(), terminal)
    assert "\x1b" not in terminal.getvalue()
    assert ANSWER in terminal.screen()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", 1),
        ("x" * 10, 1),
        ("x" * 11, 2),
        ("a\nb", 2),
        ("a\n", 2),
        ("世" * 5, 1),
        ("x" + "世" * 5, 2),
        ("\tab", 1),
        ("\tabc", 2),
        ("xxxxxxxxx世", 2),
        ("e\u0301" * 10, 1),
    ],
)
def test_how_many_rows_a_text_takes(text: str, rows: int) -> None:
    assert rows_of(text, 10) == rows


# -- hostile text ------------------------------------------------------------------------------------------------------


def test_printable() -> None:
    assert printable("plain ü 你好 🙂 \t and\nlines\r\n") == "plain ü 你好 🙂 \t and\nlines\n"
    assert printable("\x1b[31mred\x07") == "␛[31mred␇"
    assert printable("\x9b31m\x7f\ud83d‮") == "�31m���"
    assert printable("שלום\u200f family 👨\u200d👩") == "שלום\u200f family 👨\u200d👩"  # direction marks, joiners stay
    everything = "".join(map(chr, range(0x110000)))
    left = printable(everything)
    assert not set(left) & {chr(code) for code in [*range(9), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000)]}
    assert printable(left) == left


def test_nothing_hostile_reaches_the_terminal(terminal: Terminal) -> None:
    call = Call("1", "tool" + HOSTILE, '{"a": "' + HOSTILE + '"}')
    odd = Call("2", "t", '{"' + HOSTILE.replace("\x1b", "\\u001b") + '": "\\u001b[2J\\u202e"}')
    told: list[Event] = [
        Started([], HOSTILE, "", "", "", []),
        TextDelta(HOSTILE),
        TurnDone(1, Turn(HOSTILE, (call, odd))),
        CallStarted(1, call),
        CallDone(1, Result(call, "ok", HOSTILE, 0.1)),
        TextDelta(HOSTILE),
        TurnDone(2, Turn(HOSTILE)),
        finished(HOSTILE),
    ]
    show(told, terminal)
    message = {"role": "user" + HOSTILE, "content": HOSTILE, "tool_calls": [call.as_message()]}
    messages = [message, message | {"content": [{"text": HOSTILE}]}]
    turn = LoggedTurn(1, Turn(HOSTILE, (call,)), [Result(call, "error", HOSTILE)], [])
    about = (HOSTILE, HOSTILE, HOSTILE, HOSTILE, [HOSTILE], messages, [turn])
    shown = Conversation(1, datetime.now(UTC), *about, "failed", HOSTILE, HOSTILE, Usage(), None, 1.0)
    print_conversation(Console(file=terminal, force_terminal=True), shown)
    summary = Summary(1, datetime.now(UTC), HOSTILE, HOSTILE, 1, Usage(), None, None)
    print_list(Console(file=terminal, force_terminal=True), [summary])
    ours = re.sub(r"\x1b\[(?:\d+(?:;\d+)*m|1A|2K)|\r\x1b\[2K", "", terminal.getvalue())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", ours)


def test_markup_in_a_result_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    show([started(), TurnDone(1, Turn("", (LISBON,))), CallDone(1, Result(LISBON, "ok", "[red]x[/red] :smile:", 0.1))])
    assert "[red]x[/red] :smile:" in capsys.readouterr().err
