"""Models that call badly: each conversation ends in an answer or at a limit, and the model is told what was wrong.

    python -m pytest tests/step2/test_bad_calls.py

The program talks to a fake over real HTTP (fake_endpoint.py). The `step2` fixture fails on any traceback.
"""

import itertools
import json
from typing import Any

import pytest

from tests.shared.fake_endpoint import call, say

LISBON, OSLO = ("get_weather", {"city": "Lisbon"}), ("get_weather", {"city": "Oslo"})
WARMER = say("Lisbon: 18.5 °C, Oslo: 4.5 °C.")


def test_parallel_calls_end_in_an_answer_with_their_figures(ask: Any, endpoint: Any, logged: Any) -> None:
    fake = endpoint([call(LISBON, OSLO, text="Let me look."), WARMER])
    done = ask()
    assert (done.code, done.out) == (0, "Lisbon: 18.5 °C, Oslo: 4.5 °C.\n")
    assert '→ #1 get_weather(city="Lisbon")' in done.err
    assert "2 steps, 2 calls, 220 tokens" in done.err
    assistant, first, second = fake.messages[1][-3:]
    assert [c["function"]["name"] for c in assistant["tool_calls"]] == ["get_weather", "get_weather"]
    assert [first["tool_call_id"], second["tool_call_id"]] == ["id_0", "id_1"]
    assert [json.loads(result)["temperature"] for result in fake.results()] == [18.5, 4.5]
    conversation = logged()
    assert (conversation.ending, conversation.cost) == ("answer", 0.0)  # an endpoint on this machine costs nothing
    assert conversation.usage.total == 220


@pytest.mark.parametrize("text", ['{"city": "Oslo"', "[1, 2]", "Oslo", '{"city": ' + "9" * 5000 + "}"])
def test_arguments_that_are_no_json_object_go_back_with_the_reason(ask: Any, endpoint: Any, text: str) -> None:
    fake = endpoint([call(("get_weather", text)), call(OSLO), say("4.5 °C.")])
    done = ask()
    assert (done.code, done.out) == (0, "4.5 °C.\n")
    assert fake.results(1) == ["the arguments of get_weather are not a JSON object"]
    assert "4.5" in fake.results(2)[1]


def test_an_unknown_tool_is_answered_with_the_names_there_are(ask: Any, endpoint: Any) -> None:
    fake = endpoint([call(("get_wether", {"city": "Oslo"})), call(OSLO), say("4.5 °C.")])
    done = ask()
    assert (done.code, done.out) == (0, "4.5 °C.\n")
    assert "there is no tool 'get_wether'; the tools are: get_weather" in fake.results(1)[0]


def test_arguments_against_the_schema_are_repaired_once(ask: Any, endpoint: Any) -> None:
    fake = endpoint([call(("get_weather", {"town": "Oslo"})), call(OSLO), say("4.5 °C.")])
    done = ask()
    assert (done.code, done.out) == (0, "4.5 °C.\n")
    assert "'city' is a required property" in fake.results(1)[0]
    assert "(its parameters: city)" in fake.results(1)[0]


def test_a_tool_called_wrongly_twice_is_taken_away(ask: Any, endpoint: Any) -> None:
    wrong = call(("get_weather", {"town": "Oslo"}))
    fake = endpoint([wrong, wrong, say("I cannot look that up.")])
    assert ask().code == 0
    offered = [[tool["function"]["name"] for tool in request["tools"]] for request in fake.requests]
    assert "get_weather" in offered[1]
    assert "get_weather" not in offered[2]


def test_endless_calling_ends_at_the_step_limit_with_what_the_model_says_then(ask: Any, endpoint: Any) -> None:
    """Calls that differ every time are no repetition; only the limit stops them."""
    sleeps = (call(("sleep", {"seconds": 0.001 * n}), text="One more.") for n in itertools.count(1))
    fake = endpoint(sleeps)
    done = ask("--max-steps", 4)
    assert len(fake.requests) == 4
    assert "tools" not in fake.requests[-1]  # the last turn is for the answer
    assert (done.code, done.out) == (1, "One more.\n")
    assert "stopped by the step limit" in done.err


def test_endless_repetition_ends_when_the_tools_are_gone(ask: Any, endpoint: Any, logged: Any) -> None:
    fake = endpoint([call(OSLO), call(OSLO), say("4.5 °C.")])
    done = ask()
    assert (done.code, done.out) == (0, "4.5 °C.\n")
    assert "tools" not in fake.requests[2]
    first, second = (logged().turns[n].results[0] for n in (0, 1))
    assert (second.status, second.output) == (first.status, first.output)
    assert second.seconds == 0  # answered from memory


@pytest.mark.parametrize(
    ("options", "words"), [(["--max-total-tokens", 110], "token limit"), (["--max-steps", 2], "step limit")]
)
def test_limits_are_errors_that_say_which(ask: Any, endpoint: Any, options: list[object], words: str) -> None:
    endpoint([call(OSLO), call(LISBON)])
    done = ask(*options)
    assert done.code == 1
    assert f"error: stopped by the {words}" in done.err


def test_an_answer_at_the_last_step_is_an_answer(ask: Any, endpoint: Any, logged: Any) -> None:
    endpoint([call(OSLO), say("4.5 °C.")])
    done = ask("--max-steps", 2)
    assert (done.code, done.out) == (0, "4.5 °C.\n")
    assert logged().ending == "answer"


def test_an_empty_answer_is_an_answer(ask: Any, endpoint: Any, logged: Any) -> None:
    endpoint([say("")])
    done = ask()
    assert (done.code, done.out) == (0, "")
    assert logged().ending == "answer"
