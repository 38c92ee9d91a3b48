"""`step2 chat` with lines from a pipe: history, commands, undo, and trouble that does not end the conversation.

python -m pytest tests/step2/test_chat.py
"""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from step2_tool_calling.chat import Chat
from step2_tool_calling.conversation import Finished, Usage
from tests.shared.fake_endpoint import FakeEndpoint, call, hang, refuse, say

OSLO, LISBON = ("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Lisbon"})


@pytest.fixture
def chat(ask: Any, step2: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type these lines into `chat`, with the tools of conftest.py."""

    def talk(*lines: str, options: tuple[object, ...] = ()) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return step2("chat", "--no-builtin", "--tools", "my_tools.py", "-s", "native", "--prompt", "plain", *options)

    return talk


def said(fake: FakeEndpoint, request: int) -> list[tuple[str, str]]:
    """The messages of a request without the prompt's."""
    return [(message["role"], message["content"]) for message in fake.messages[request][1:]]


def test_the_history_goes_on_with_calls_and_results(chat: Any, endpoint: Any, logged: Any) -> None:
    fake = endpoint([call(OSLO), say("4.5 °C."), say("No.")])
    done = chat("How cold is Oslo?", "", "Is that warm?")
    assert (done.code, done.out) == (0, "4.5 °C.\nNo.\n")
    assert "you> How cold is Oslo?" in done.err
    assert said(fake, 2) == [
        ("user", "How cold is Oslo?"),
        ("assistant", ""),
        ("tool", '{"city": "Oslo", "temperature": 4.5}'),
        ("assistant", "4.5 °C."),
        ("user", "Is that warm?"),
    ]
    assert logged(2).messages[-1]["content"] == "Is that warm?"  # each question is a conversation of its own


def test_undo_takes_back_the_question_and_all_that_followed(chat: Any, endpoint: Any) -> None:
    fake = endpoint([say("Hello."), call(OSLO), say("4.5 °C."), say("Bye.")])
    done = chat("Hi", "How cold is Oslo?", "/undo", "Bye", "/undo", "/undo", "/undo")
    assert said(fake, 3) == [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    assert done.err.count("taken back") == 3
    assert "there is no question to take back" in done.err


def test_examples_with_tools_that_are_not_offered_are_left_out(chat: Any, endpoint: Any) -> None:
    fake = endpoint([say("Hello."), say("Bye.")])
    done = chat("Hi", "/undo", "/undo", "Bye", options=("--prompt", "assistant"))
    assert said(fake, 0) == [("user", "Hi")]  # the prompt's examples call calculate and convert_currency
    assert said(fake, 1) == [("user", "Bye")]
    assert done.err.count("taken back") == 1


def test_undo_leaves_the_examples(chat: Any, endpoint: Any) -> None:
    example = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    text = f"# system\nHelp.\n# user\nRome?\n# assistant\n{example}\n# tool\n20\n# assistant\n20 °C.\n"
    Path("mine.md").write_text(f"---\nversion: 1\n---\n{text}")
    fake = endpoint([say("Hello."), say("Bye.")])
    done = chat("Hi", "/undo", "/undo", "Bye", options=("--prompt", "mine.md"))
    assert [role for role, _ in said(fake, 1)] == ["user", "assistant", "tool", "assistant", "user"]
    assert done.err.count("taken back") == 1


def test_cost_counts_all_questions(chat: Any, endpoint: Any) -> None:
    endpoint([call(OSLO), say("4.5 °C."), say("No.")])
    done = chat("/cost", "How cold is Oslo?", "Is that warm?", "/cost")
    assert "0 requests, 0 tokens (0 cached), local" in done.err
    assert "3 requests, 330 tokens (0 cached), local" in done.err


def test_cost_counts_questions_that_failed(chat: Any, endpoint: Any) -> None:
    endpoint([call(OSLO), refuse(400), say("Bye.")])
    done = chat("How cold is Oslo?", "/cost", "Bye", "/cost")
    assert "1 requests, 110 tokens (0 cached), local" in done.err
    assert "2 requests, 220 tokens (0 cached), local" in done.err


def test_cost_counts_questions_that_were_stopped() -> None:
    """A question is one conversation of the loop, which tells how it ended, also when that was Ctrl-C."""
    finished = Finished("", "cancelled", Usage(100, 0, 10, 1), 1.0, 0.0)

    class Stopped:
        def preamble(self) -> list[Any]:
            return []

        async def put(self, _: list[Any], observers: list[Any]) -> None:
            for observe in observers:
                observe(finished)
            raise asyncio.CancelledError

    chat = Chat(Stopped(), [])  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(chat.question("Hi"))
    assert (chat.used, chat.messages) == (finished.usage, [])
    assert chat.idle.is_set()


def test_cost_without_a_price(chat: Any, endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("step2_tool_calling.session.is_local", lambda _: False)
    endpoint([say("Hello.")])
    assert "1 requests, 110 tokens (0 cached), price unknown" in chat("Hi", "/cost").err


def test_commands(chat: Any, endpoint: Any) -> None:
    fake = endpoint([])
    done = chat("/tools", "/help", "/nonsense [bold]x", "/quit", "never read")
    assert done.code == 0
    assert "get_weather  The temperature in a city, in degrees Celsius." in done.err
    assert "/undo    take back the last question" in done.err
    assert "no command /nonsense; /help lists them" in done.err
    assert "never read" not in done.err
    assert fake.requests == []


def test_trouble_ends_the_answer_not_the_chat(chat: Any, endpoint: Any) -> None:
    fake = endpoint([say("Hello."), call(OSLO), refuse(400, "too long"), say("Bye.")])
    done = chat("Hi", "How cold is Oslo?", "Bye")
    assert (done.code, done.out) == (0, "Hello.\nBye.\n")
    assert "error: the endpoint refuses the request (400): too long" in done.err
    # The question that failed is gone, with its calls: the next request is one that endpoints accept.
    assert said(fake, 3) == [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]


def test_a_hanging_endpoint_ends_at_the_timeout(chat: Any, endpoint: Any) -> None:
    endpoint([hang(), hang(), hang(), say("Bye.")])
    done = chat("Hi", "Bye", options=("--timeout", 0.4))
    assert done.out == "Bye.\n"
    assert "did not answer in time" in done.err


def test_a_limit_is_told_and_the_history_stays(chat: Any, endpoint: Any) -> None:
    fake = endpoint([call(OSLO), say("4.5 °C.")])
    done = chat("How cold is Oslo?", "Well?", options=("--max-total-tokens", 100))
    assert "token limit: 1 step, 1 call" in done.err
    assert [role for role, _ in said(fake, 1)] == ["user", "assistant", "tool", "user"]


def test_json_is_the_whole_history(chat: Any, endpoint: Any) -> None:
    endpoint([say("Hello."), say("Bye.")])
    done = chat("Hi", "Bye", options=("--json",))
    document = json.loads(done.out)
    assert [message["role"] for message in document["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert document["usage"]["requests"] == 2


def test_no_input_is_no_chat(chat: Any, endpoint: Any) -> None:
    fake = endpoint([])
    assert chat().code == 0
    assert fake.requests == []


def test_a_session_that_does_not_open_is_an_error(chat: Any, endpoint: Any) -> None:
    endpoint([])
    done = chat("Hi", options=("--only", "nothing"))
    assert (done.code, done.out) == (2, "")
    assert "error: no tool called 'nothing'" in done.err
