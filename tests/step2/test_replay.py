"""Conversations again from the log: the same offline, also after kill -9; and what another model would have said.

python -m pytest tests/step2/test_replay.py
"""

import asyncio
import json
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from step2_tool_calling.conversation import Call, Result, Status, Turn, Usage
from step2_tool_calling.log import Conversation, LoggedTurn
from step2_tool_calling.replay import Replay, replay
from tests.shared.fake_endpoint import call, refuse, say

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
        [call(OSLO), call(OSLO), call(LISBON), WARMER],
        [call(("get_weather", {"a": 1})), call(("get_weather", {"b": 1})), call(OSLO, ("read_page", {})), WARMER],
        [say("Hello.")],
        [say("")],
    ],
    ids=[
        "parallel",
        "repaired",
        "malformed",
        "failed and denied",
        "repeated",
        "stale",
        "taken away",
        "no call",
        "empty",
    ],
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


def test_every_status_is_compared(ask: Any, step2: Any, endpoint: Any, logged: Logged, home: Path) -> None:
    wrong, broken = call(("get_weather", {"town": "Oslo"})), call(("get_weather", "{"))
    failed, denied = call(("get_weather", {"city": "Atlantis"})), call(("send_mail", {"to": "eve"}))
    endpoint([wrong, call(("nothing", {})), failed, denied, call(OSLO), call(OSLO, LISBON), broken, WARMER])
    ask("--max-steps", 9)
    was = logged()
    statuses = [result.status for turn in was.turns for result in turn.results]
    assert statuses == ["invalid", "unknown", "error", "denied", "ok", "ok", "ok", "invalid"]
    assert again(was).differences == []
    with sqlite3.connect(home / "step2" / "log.db") as db:
        db.execute("UPDATE calls SET status = 'nonsense'")
    differences = again(logged()).differences
    assert [difference.step for difference in differences] == [1, 2, 3, 4, 5, 6, 7]
    for difference in differences:
        assert "nonsense: " in difference.logged
        assert "nonsense: " not in difference.replayed
    done = step2("replay", 1)
    assert done.code == 1
    assert "  -   nonsense: there is no tool 'nothing'" in done.out
    assert "  +   unknown: there is no tool 'nothing'" in done.out
    assert "7 of 8 turns came out differently" in done.out


def test_the_loops_own_sentences_are_compared(ask: Any, endpoint: Any, logged: Logged) -> None:
    endpoint([call(("nothing", {})), call(("send_mail", {"to": "eve"})), WARMER])
    ask()
    was = logged()
    for turn in was.turns[:2]:
        turn.results[0] = replace(turn.results[0], output="as it was said in the old days")
    assert [difference.step for difference in again(was).differences] == [1, 2]


def test_the_end_is_compared(ask: Any, step2: Any, endpoint: Any, logged: Logged, home: Path) -> None:
    endpoint([call(OSLO), WARMER])
    ask()
    (difference,) = again(replace(logged(), answer="Snow.")).differences
    assert (difference.step, difference.logged, difference.replayed) == (
        None,
        "answer: Snow.",
        f"answer: {WARMER.text}",
    )
    shorter = again(replace(logged(), turns=logged().turns[:1]))  # today's loop would ask once more
    assert [one.replayed for one in shorter.differences] == ["no end: "]
    with sqlite3.connect(home / "step2" / "log.db") as db:
        db.execute("UPDATE conversations SET answer = 'Snow.'")
    done = step2("replay", 1)
    assert done.code == 1
    assert "the end\n  - answer: Snow.\n  + answer: Lisbon" in done.out
    assert "2 turns: the same, but it ends differently" in done.out


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
    assert (replayed.steps, replayed.ending, replayed.answer) == (2, "step limit", "4.5 °C.")
    assert replayed.differences == []


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
    assert "sleep" in [one.name for one in conversation.turns[1].running]  # the other may have made it to the log
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


@pytest.mark.parametrize(
    "option",
    [("--prompt", "careful"), ("-s", "native"), ("--tools", "my_tools.py"), ("--call-threshold", "0"), ("-m", "x")],
)
def test_options_that_an_offline_replay_does_not_have(step2: Any, option: tuple[str, str]) -> None:
    done = step2("replay", 1, *option)
    assert (done.code, done.out) == (2, "")
    assert "changes nothing in an offline replay: add --ask-again" in done.err


def test_asking_again_after_a_prompt_that_writes_the_tools(ask: Any, step2: Any, endpoint: Any) -> None:
    written = say('{"name": "get_weather", "arguments": {"city": "Oslo"}}')
    endpoint([written, WARMER])
    ask("-s", "text", "--prompt", "schema")
    fake = endpoint([written, WARMER])
    assert step2("replay", 1, "--ask-again").out == "2 turns: the same\n"
    assert "{tools}" not in fake.messages[0][0]["content"]


def test_a_failing_endpoint_is_an_error_not_a_difference(ask: Any, step2: Any, endpoint: Any) -> None:
    endpoint([say("Hello.")])
    ask()
    endpoint([refuse(401)])
    done = step2("replay", 1, "--ask-again", "-s", "native")
    assert (done.code, done.out) == (1, "")
    assert "set OPENAI_API_KEY" in done.err


# -- without the program -----------------------------------------------------------------------------------------------


def launches(*statuses: Status) -> Conversation:
    """A conversation in which the same call was made again and again, and ended like this."""
    call_ = Call("1", "launch", '{"where": "moon"}')
    turns = [
        LoggedTurn(step, Turn("", (call_,), Usage()), [Result(call_, status, f"{status} {step}")], [])
        for step, status in enumerate(statuses, start=1)
    ]
    turns.append(LoggedTurn(len(turns) + 1, Turn("Done."), [], []))
    return Conversation(
        1, datetime.now(UTC), "m", "e", "native", "p", ["launch"], [{"role": "user", "content": "Go"}],
        turns, "answer", "Done.", "", Usage(), 0.0, 1.0,
    )  # fmt: skip


@pytest.mark.parametrize("statuses", [["error", "ok"], ["timeout", "error", "timeout"], ["cancelled", "ok"]])
def test_equal_calls_end_as_they_did_one_after_the_other(statuses: list[Status]) -> None:
    replayed = again(launches(*statuses))
    if "cancelled" in statuses:  # its output is the loop's sentence
        assert [difference.step for difference in replayed.differences] == [1]
        assert "cancelled: cancelled" in replayed.differences[0].replayed
    else:
        assert (replayed.ending, replayed.differences) == ("answer", [])


def test_tools_never_run_in_a_replay(logged: Logged) -> None:
    from step2_tool_calling.function_tools import from_function

    def launch(where: str) -> str:
        """Launch."""
        raise AssertionError("launched")

    conversation = launches("ok")
    for tools in ([], [from_function(launch)]):
        replayed = asyncio.run(replay(conversation, tools))
        assert (replayed.answer, replayed.differences) == ("Done.", [])


def test_no_such_conversation(step2: Any) -> None:
    done = step2("replay", 3)
    assert done.code == 2
    assert "no conversation 3" in done.err
