"""Conversations again from the log: the same offline, also after kill -9; and what another model would have said.

python -m pytest tests/step2/test_replay.py
"""

import asyncio
import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import call, refuse, say

from step2_tool_calling.conversation import Call, Result, Turn, Usage
from step2_tool_calling.log import Conversation, LoggedTurn
from step2_tool_calling.replay import Replay, replay

LISBON, OSLO = ("get_weather", {"city": "Lisbon"}), ("get_weather", {"city": "Oslo"})
WARMER = say("Lisbon: 18.5 °C, Oslo: 4.5 °C.")
Logged = Callable[..., Conversation]


def again(conversation: Conversation) -> Replay:
    return asyncio.run(replay(conversation, []))


@pytest.mark.parametrize(
    "script",
    [
        [call(LISBON, OSLO, text="Let me look."), WARMER],
        [call(("get_weather", {"town": "Oslo"})), call(OSLO), WARMER],
        [call(("get_weather", "{")), call(("nothing", {})), WARMER],
        [call(("get_weather", {"city": "Atlantis"})), call(("send_mail", {"to": "eve"})), WARMER],
        [call(OSLO), call(OSLO), WARMER],
        [say("Hello.")],
        [say("")],
    ],
    ids=["parallel", "repaired", "malformed", "failed and denied", "repeated", "no call", "empty"],
)
def test_a_logged_conversation_replays_identically(
    ask: Any, step2: Any, endpoint: Any, logged: Logged, script: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(script)
    assert ask().code == 0
    replayed = again(logged())
    assert (replayed.steps, replayed.differences) == (len(script), [])
    assert (replayed.ending, replayed.answer) == ("answer", script[-1].text)

    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # nobody is there, and nobody is asked
    done = step2("replay", 1)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{len(script)} turn{'s' * (len(script) > 1)}: the same\n"


def test_a_limit_is_where_the_recording_stops(ask: Any, step2: Any, endpoint: Any) -> None:
    endpoint([call(OSLO)])
    assert ask("--max-total-tokens", 50).code == 1
    done = step2("replay", 1)
    assert (done.code, done.out) == (0, "1 turn: the same up to the last complete step\n")
    assert done.err == "the log of 1 stops there: token limit\n"


def test_the_step_limits_last_turn_replays_too(ask: Any, endpoint: Any, logged: Logged) -> None:
    endpoint([call(OSLO), call(LISBON, text="4.5 °C.")])
    ask("--max-steps", 2)
    replayed = again(logged())
    assert (replayed.steps, replayed.answer, replayed.differences) == (2, "4.5 °C.", [])


def test_a_failed_conversation_replays_up_to_the_failure(ask: Any, endpoint: Any, logged: Logged) -> None:
    endpoint([call(OSLO), refuse(400)])
    assert ask().code == 1
    replayed = again(logged())
    assert (replayed.steps, replayed.ending, replayed.differences) == (1, None, [])


def test_killed_in_the_middle_of_a_call(start: Any, step2: Any, endpoint: Any, logged: Logged, tmp_path: Path) -> None:
    endpoint([call(OSLO), call(LISBON, ("sleep", {"seconds": 30})), say("never said")])
    process = start(until=tmp_path / "sleeping")
    process.send_signal(signal.SIGKILL)
    process.wait()

    conversation = logged()
    assert conversation.ending is None
    assert [turn.complete for turn in conversation.turns] == [True, False]
    assert [one.name for one in conversation.turns[1].running] == ["sleep"]
    done = step2("replay", 1)
    assert (done.code, done.out) == (0, "1 turn: the same up to the last complete step\n")
    assert "the log of 1 stops there: it was cut off" in done.err
    shown = step2("log", 1)
    assert "unfinished" in shown.out
    assert "began; its result is not known" in shown.out


def test_ctrl_c_leaves_a_log_that_says_so(start: Any, endpoint: Any, logged: Logged, tmp_path: Path) -> None:
    endpoint([call(OSLO), call(("sleep", {"seconds": 30}))])
    process = start(until=tmp_path / "sleeping")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "cancelled: 2 steps, 2 calls" in stderr
    conversation = logged()
    assert conversation.ending == "cancelled"
    assert [result.status for result in conversation.turns[1].results] == ["cancelled"]
    assert again(conversation).differences == []


# -- asking again ------------------------------------------------------------------------------------------------------


def test_the_same_answers_again_are_no_difference(ask: Any, step2: Any, endpoint: Any) -> None:
    script = [call(LISBON, OSLO), WARMER]
    endpoint(script)
    ask()
    fake = endpoint(script)
    done = step2("replay", 1, "--ask-again", "-s", "native")
    assert (done.code, done.out) == (0, "2 turns: the same\n")
    assert [json.loads(result)["temperature"] for result in fake.results()] == [18.5, 4.5]  # from the log


def test_another_answer_is_shown_and_exits_with_1(ask: Any, step2: Any, endpoint: Any) -> None:
    endpoint([call(LISBON, OSLO), WARMER])
    ask()
    fake = endpoint([call(OSLO, ("get_weather", {"city": "Rome"})), say("Oslo.\x1b[2J")])
    done = step2("replay", 1, "--ask-again", "-s", "native")
    assert done.code == 1
    assert '  - → get_weather({"city": "Lisbon"})' in done.out
    assert '  + → get_weather({"city": "Rome"})' in done.out
    assert "  + Oslo.␛[2J" in done.out
    assert "2 of 2 turns came out differently" in done.out
    assert "this call of get_weather is not in the log" in fake.results()[1]
    document = step2("replay", 1, "--json")
    assert json.loads(document.out)["differences"] == []


def test_a_turn_more_or_less_is_a_difference(ask: Any, step2: Any, endpoint: Any) -> None:
    endpoint([call(OSLO), WARMER])
    ask()
    endpoint([WARMER])
    done = step2("replay", 1, "--ask-again", "-s", "native", "--json")
    assert done.code == 1
    first, second = json.loads(done.out)["differences"]
    assert "get_weather" in first["logged"]
    assert (second["step"], second["replayed"]) == (2, "")


def test_another_prompt_asks_the_same_question(ask: Any, step2: Any, endpoint: Any) -> None:
    endpoint([say("Hello.")])
    ask()
    fake = endpoint([say("Hello.")])
    assert step2("replay", 1, "--ask-again", "-s", "native", "--prompt", "plain").code == 0
    system, question = fake.messages[0]
    assert "helpful assistant" in system["content"]
    assert question == {"role": "user", "content": "Is it warmer in Lisbon or Oslo?"}


def test_a_failing_endpoint_is_an_error_not_a_difference(ask: Any, step2: Any, endpoint: Any) -> None:
    endpoint([say("Hello.")])
    ask()
    endpoint([refuse(401)])
    done = step2("replay", 1, "--ask-again", "-s", "native")
    assert (done.code, done.out) == (1, "")
    assert "set OPENAI_API_KEY" in done.err


# -- without the program -----------------------------------------------------------------------------------------------


def test_tools_never_run_in_a_replay(logged: Logged) -> None:
    from step2_tool_calling.function_tools import from_function

    def launch(where: str) -> str:
        """Launch."""
        raise AssertionError("launched")

    call_ = Call("1", "launch", '{"where": "moon"}')
    turn = LoggedTurn(1, Turn("", (call_,), Usage()), [Result(call_, "ok", "launched")], [])
    last = LoggedTurn(2, Turn("Done."), [], [])
    conversation = Conversation(
        1, datetime.now(UTC), "m", "e", "native", "p", ["launch"], [{"role": "user", "content": "Go"}],
        [turn, last], "answer", "Done.", "", Usage(), 0.0, 1.0,
    )  # fmt: skip
    for tools in ([], [from_function(launch)]):
        replayed = asyncio.run(replay(conversation, tools))
        assert (replayed.answer, replayed.differences) == ("Done.", [])


def test_no_such_conversation(step2: Any) -> None:
    done = step2("replay", 3)
    assert done.code == 2
    assert "no conversation 3" in done.err
