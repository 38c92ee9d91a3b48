"""Who may call a tool: only what a person types after the question allows it.

python -m pytest tests/step2/test_approval.py
"""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from step2_tool_calling.approval import Approval
from step2_tool_calling.tool import Tool
from tests.shared.fake_endpoint import call, say

ROOT = Path(__file__).parents[2]
MAIL = call(("send_mail", {"to": "eve"}))


async def never(_: dict[str, Any]) -> None: ...


SEND = Tool("send_mail", "", {"type": "object"}, never, unsafe=True)
READ = Tool("read_mail", "", {"type": "object"}, never)


# -- in this process ---------------------------------------------------------------------------------------------------


@contextmanager
def at_a_terminal() -> Iterator[int]:
    """stdin and stderr are a terminal; what a person types is written to the descriptor, what it shows is read there.

    No fixture: pytest sets its own stdin again between the fixtures and the test.
    """
    keyboard, terminal = os.openpty()
    saved = sys.stdin, sys.stderr
    with os.fdopen(terminal, "r") as stdin, os.fdopen(os.dup(terminal), "w") as stderr:
        sys.stdin, sys.stderr = stdin, stderr
        try:
            yield keyboard
        finally:
            sys.stdin, sys.stderr = saved
            os.close(keyboard)


def answered(keyboard: int, *, before: bytes = b"", after: bytes = b"") -> bool:
    """Type, ask, type again; the first text must not have decided anything."""

    async def ask() -> bool:
        os.write(keyboard, before)
        await asyncio.sleep(0.05)
        task = asyncio.create_task(Approval("unsafe")(SEND, {"to": "eve"}))
        await asyncio.sleep(0.1)
        assert not task.done()
        os.write(keyboard, after)
        return await asyncio.wait_for(task, 5)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("reply", "allowed"),
    [("y\n", True), (" YES \n", True), ("n\n", False), ("\n", False), ("yep\n", False), ("\x04", False)],
)
def test_only_a_yes_allows(reply: str, allowed: bool) -> None:
    with at_a_terminal() as keyboard:
        assert answered(keyboard, after=reply.encode()) is allowed
        assert b'allow send_mail({"to": "eve"})? [y/N] ' in os.read(keyboard, 1000)


def test_what_was_typed_before_the_question_does_not_answer_it() -> None:
    with at_a_terminal() as keyboard:
        assert not answered(keyboard, before=b"y\ny\nyes\n", after=b"n\n")


def test_what_is_typed_after_the_answer_is_for_the_next_reader() -> None:
    with at_a_terminal() as keyboard:
        assert answered(keyboard, after=b"y\nnext question\n")
        assert sys.stdin.readline() == "next question\n"


def test_a_cancelled_question_leaves_the_terminal_alone() -> None:
    async def ask() -> bool:
        task = asyncio.create_task(Approval("always")(READ, {}))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    begun = time.monotonic()
    with at_a_terminal() as keyboard:
        assert asyncio.run(ask())  # would wait for a thread in readline()
        assert time.monotonic() - begun < 5
        os.write(keyboard, b"next question\n")
        assert sys.stdin.readline() == "next question\n"


def test_escape_sequences_in_arguments_are_shown_not_obeyed() -> None:
    async def ask(keyboard: int) -> bool:
        task = asyncio.create_task(Approval("always")(READ, {"to": "\u202eeve\x9b2J"}))
        await asyncio.sleep(0.1)
        os.write(keyboard, b"\n")
        return await task

    with at_a_terminal() as keyboard:
        assert asyncio.run(ask(keyboard)) is False
        shown = os.read(keyboard, 1000).decode()
    assert "eve" in shown
    assert "\u202e" not in shown
    assert "\x9b" not in shown


def test_with_nobody_to_ask_a_remark_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    approve = Approval("always")
    assert [asyncio.run(approve(tool, {})) for tool in (SEND, SEND, READ)] == [False] * 3
    assert capsys.readouterr().err.splitlines() == [
        "  nobody at the terminal to ask: send_mail not run; --approve never allows it",
        "  nobody at the terminal to ask: read_mail not run; --approve never allows it",
    ]
    unsafe = Approval("unsafe")
    assert asyncio.run(unsafe(READ, {}))
    assert asyncio.run(Approval("never")(SEND, {}))
    assert capsys.readouterr().err == ""


def test_the_remark_comes_with_json_too(ask: Any, endpoint: Any) -> None:
    endpoint([MAIL, say("I may not.")])
    done = ask("--json")
    assert json.loads(done.out)["calls"][0]["status"] == "denied"
    assert "nobody at the terminal to ask: send_mail not run" in done.err


# -- as a person meets it ----------------------------------------------------------------------------------------------


class Person:
    """Somebody at the terminal of a program."""

    def __init__(self, arguments: list[str]) -> None:
        self.keyboard, terminal = os.openpty()
        self.seen = ""
        self.program = subprocess.Popen(
            [sys.executable, "-m", "step2_tool_calling", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )
        os.close(terminal)
        os.set_blocking(self.keyboard, False)

    def types(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def sees(self, words: str, seconds: float = 30) -> bool:
        """Whether these words appear, behind those that were seen last."""
        deadline = time.monotonic() + seconds
        while words not in self.seen and time.monotonic() < deadline:
            try:
                self.seen += os.read(self.keyboard, 10_000).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # the program has ended
                break
        found = words in self.seen
        self.seen = self.seen.partition(words)[2] if found else self.seen
        return found


@pytest.fixture
def person(ask: Any) -> Iterator[Callable[..., Person]]:
    """Start the program, with the tools of conftest.py, at a terminal of its own."""
    people: list[Person] = []

    def at(verb: str, *arguments: str) -> Person:
        options = ["--no-builtin", "--tools", "my_tools.py", "-s", "native"]
        people.append(Person([verb, *arguments, *options]))
        return people[-1]

    yield at
    for somebody in people:
        somebody.program.kill()
        somebody.program.wait()
        os.close(somebody.keyboard)


def test_ctrl_c_at_the_approval_prompt_ends_ask(person: Any, endpoint: Any, logged: Any) -> None:
    endpoint([MAIL])
    somebody = person("ask", "Send Eve a mail.")
    assert somebody.sees("[y/N]"), somebody.seen
    somebody.types("\x03")
    assert somebody.sees("cancelled: 1 step, 1 call"), somebody.seen
    assert somebody.program.wait(timeout=10) == 130
    assert logged().ending == "cancelled"
    assert not Path("sent.txt").exists()


def test_a_pasted_second_line_approves_nothing_and_ctrl_c_frees_the_chat(person: Any, endpoint: Any) -> None:
    fake = endpoint([MAIL, say("The answer."), MAIL, say("Sent.")])
    somebody = person("chat")
    assert somebody.sees("you>"), somebody.seen
    somebody.types("Send Eve a mail.\ny\n")
    assert somebody.sees("[y/N]"), somebody.seen
    assert not somebody.sees("sent", seconds=0.5)
    somebody.types("\x03")
    assert somebody.sees("(stopped)"), somebody.seen
    somebody.types("Good day.\n")
    assert somebody.sees("you>"), somebody.seen
    assert somebody.sees("The answer."), somebody.seen  # not the echo of what was typed
    assert fake.messages[1][-1]["content"] == "Good day."  # the prompt that was left did not take this line
    assert not Path("sent.txt").exists()
    somebody.types("Now send it.\n")
    assert somebody.sees("[y/N]"), somebody.seen
    somebody.types("y\n")
    assert somebody.sees("Sent."), somebody.seen
    assert Path("sent.txt").read_text() == "eve"
