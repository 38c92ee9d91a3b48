"""The log as a person reads it: the list of conversations, and one whole conversation.

python -m pytest tests/step2/test_log_view.py
"""

import io
import re
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from step2_tool_calling.conversation import Call, Result, Turn, Usage
from step2_tool_calling.log import Conversation, LoggedTurn, Summary
from step2_tool_calling.trace import print_conversation, print_list

LISBON = Call("1", "get_weather", '{"city": "Lisbon", "days": 2}')
RATE = Call("2", "exchange_rate", '{"base": "EUR"}')
ANSWER = "It is warmer in Lisbon: 18.3 °C."


def text_of(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def lines_of(out: Console) -> list[str]:
    assert isinstance(out.file, io.StringIO)
    assert "\x1b" not in out.file.getvalue()
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def test_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    when = datetime(2026, 11, 23, 12, 5).astimezone()
    out = text_of(200)
    summaries = [
        Summary(
            12,
            when,
            "m",
            "Is it warmer in Lisbon or Oslo right now, and why?\nSay.",
            3,
            Usage(1200, 0, 34),
            0.0,
            "answer",
        ),
        Summary(2, when, "m", "你好" * 40, 0, Usage(), None, None),
    ]
    print_list(out, summaries)
    lines = lines_of(out)
    assert lines[0].split() == ["id", "when", "question", "calls", "tokens", "cost", "ending"]
    assert re.fullmatch(r"12  11-23 12:05  Is it warmer in Lisbon\S* .*…  +3   1,234  \$0\.00  answer", lines[1])
    assert re.fullmatch(r" 2  11-23 12:05  [你好]+…  +0 +0 +–  unfinished", lines[2])
    assert max(map(cell_len, lines)) <= 80


def test_a_whole_conversation() -> None:
    turns = [
        LoggedTurn(
            1,
            Turn("Let me look.", (LISBON, RATE), Usage(900, 512, 40, 1), 0.8, 0.1, "tool_calls"),
            [
                Result(LISBON, "ok", '{"temperature": 18.3, "text": "' + "long " * 40 + '"}', 0.2),
                Result(RATE, "denied", "no"),
            ],
            [],
        ),
        LoggedTurn(2, Turn(ANSWER, (), Usage(1000, 0, 8, 1), 0.4, 0.1, "length"), [], []),
    ]
    asked = [{"role": "system", "content": "You call tools."}, {"role": "user", "content": "Warmer?"}]
    when = datetime(2026, 11, 23, 12, 5).astimezone()
    out = text_of(120)
    print_conversation(
        out,
        Conversation(
            12, when, "smollm2-135m", "embedded", "native", "plain@1", ["get_weather"], asked, turns, "answer", ANSWER,
            "", Usage(1900, 512, 48, 2), 0.0, 1.5,
        ),
    )  # fmt: skip
    lines = lines_of(out)
    assert max(map(cell_len, lines)) <= 80
    assert lines[0] == "conversation 12 · 2026-11-23 12:05"
    assert lines[3:9] == ["", "system", "  You call tools.", "", "user", "  Warmer?"]
    assert lines[10] == "step 1 · 940 tokens (512 cached) · 0.8 s"
    assert "".join(lines).count("long") == 40
    assert "  ✗ denied 0.00 s" in lines
    assert "step 2 · 1,008 tokens · 0.4 s · cut off at its token limit" in lines
    assert lines[-1] == "2 steps, 2 calls, 1,948 tokens (512 cached), 1.5 s, $0.00 local"


def test_a_conversation_that_was_killed() -> None:
    turn = LoggedTurn(1, Turn("", (LISBON, RATE)), [], [LISBON])
    out = text_of()
    print_conversation(
        out, Conversation(3, datetime.now(UTC), "m", "e", "s", "p", [], [], [turn], None, "", "", Usage(), None, 0.8)
    )
    lines = lines_of(out)
    assert "  ✗ began; its result is not known" in lines
    assert "  ✗ did not begin" in lines
    assert lines[-1] == "unfinished: 1 step, 2 calls, 0 tokens, 0.8 s"
