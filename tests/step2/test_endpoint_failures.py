"""Endpoints at their worst: each conversation ends in an answer or in one clear sentence, and in the log.

    python -m pytest tests/step2/test_endpoint_failures.py

The program talks to a fake over real HTTP (fake_endpoint.py). The `step2` fixture fails on any traceback. Models at
their worst: test_bad_calls.py, attacks: test_attacks.py.
"""

import itertools
import json
from typing import Any

import pytest

from tests.shared.fake_endpoint import MODEL, Reply, call, chunk, cut, decide, hang, page, raw, refuse, say

LISBON, OSLO = ("get_weather", {"city": "Lisbon"}), ("get_weather", {"city": "Oslo"})
WARMER = say("Lisbon: 18.5 °C, Oslo: 4.5 °C.")
DONE = "[DONE]"


# -- endpoints that fail -----------------------------------------------------------------------------------------------


def test_a_refused_key_names_the_variable(ask: Any, endpoint: Any, logged: Any) -> None:
    endpoint([refuse(401)])
    done = ask()
    assert (done.code, done.out) == (1, "")
    assert "error: the endpoint refuses the key: set OPENAI_API_KEY" in done.err
    assert logged().ending == "failed"
    assert "OPENAI_API_KEY" in logged().error


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_retried(ask: Any, endpoint: Any, status: int) -> None:
    fake = endpoint([refuse(status), refuse(status), say("Yes.")])
    done = ask()
    assert (done.code, done.out) == (0, "Yes.\n")
    assert len(fake.requests) == 3


def test_the_wait_that_a_rate_limit_asks_for_is_kept(ask: Any, endpoint: Any) -> None:
    fake = endpoint([refuse(429, retry_after_ms="30"), say("Yes.")])
    assert ask().out == "Yes.\n"
    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "over its rate limit, also after retries"),
        (500, "the endpoint refuses the request (500): the disk is full"),
        (400, "the endpoint refuses the request (400): the disk is full"),
        (404, "the endpoint refuses the request (404): the disk is full"),
    ],
)
def test_lasting_trouble_is_one_sentence(ask: Any, endpoint: Any, status: int, words: str) -> None:
    fake = endpoint(itertools.repeat(refuse(status, "the disk\nis full")))
    done = ask()
    assert (done.code, done.out) == (1, "")
    assert words in done.err.splitlines()[-1]
    assert len(fake.requests) == (3 if status in (429, 500) else 1)


def test_trouble_after_a_call_keeps_the_calls_in_the_log(ask: Any, endpoint: Any, logged: Any) -> None:
    endpoint([call(OSLO), *[refuse(500)] * 3])
    assert ask().code == 1
    conversation = logged()
    assert conversation.ending == "failed"
    assert conversation.turns[0].complete
    assert conversation.usage.total == 110  # of the turn that worked


def test_a_stream_cut_once_is_asked_for_again(ask: Any, endpoint: Any) -> None:
    fake = endpoint([cut("Lisbon is"), WARMER])
    done = ask()
    assert (done.code, done.out) == (0, "Lisbon: 18.5 °C, Oslo: 4.5 °C.\n")
    assert len(fake.requests) == 2


def test_a_stream_cut_twice_is_an_error(ask: Any, endpoint: Any) -> None:
    fake = endpoint(itertools.repeat(cut()))
    done = ask()
    assert (done.code, done.out) == (1, "")
    assert "error: the endpoint failed twice in a row: the stream broke off" in done.err
    assert len(fake.requests) == 2


def test_a_stream_that_just_ends_is_a_cut_one(ask: Any, endpoint: Any) -> None:
    """A proxy that gives up closes the stream properly: nothing but the missing finish reason tells."""
    endpoint([raw(chunk({"content": "Lisbon"})), WARMER])
    assert ask().out == WARMER.text + "\n"


def test_silence_ends_at_the_timeout(ask: Any, endpoint: Any) -> None:
    endpoint(itertools.repeat(hang()))
    done = ask("--timeout", 0.1)
    assert done.code == 1
    assert "error: the endpoint did not answer in time (--timeout)" in done.err


def test_silence_once_is_asked_again(ask: Any, endpoint: Any) -> None:
    endpoint([hang(), say("Yes.")])
    assert ask("--timeout", 0.5).out == "Yes.\n"


def test_nobody_there(ask: Any, endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.config import settings

    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    settings.cache_clear()
    done = ask()
    assert done.code == 1
    assert "OPENAI_BASE_URL=http://127.0.0.1:9/v1 does not answer" in done.err


# -- answers that are not what the protocol says -----------------------------------------------------------------------


def test_an_event_that_is_no_json_is_a_broken_stream(ask: Any, endpoint: Any) -> None:
    endpoint([raw('{"choices": [', DONE), WARMER])
    assert ask().out == WARMER.text + "\n"
    endpoint(itertools.repeat(raw('{"choices": [', DONE)))
    done = ask()
    assert done.code == 1
    assert "the endpoint failed twice in a row" in done.err


def test_an_error_inside_the_stream_is_shown(ask: Any, endpoint: Any) -> None:
    endpoint([raw(json.dumps({"error": {"message": "out of memory"}}))])
    done = ask()
    assert done.code == 1
    assert "error: the endpoint failed: out of memory" in done.err


def test_usage_may_be_missing(ask: Any, endpoint: Any, logged: Any) -> None:
    endpoint([say("Yes.", usage=None)])
    assert ask().out == "Yes.\n"
    assert (logged().usage.total, logged().usage.requests) == (0, 1)


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": None, "completion_tokens": None}])
def test_usage_may_be_empty(ask: Any, endpoint: Any, usage: dict[str, Any]) -> None:
    endpoint([say("Yes.", usage=usage)])
    assert ask().out == "Yes.\n"


def test_no_finish_reason_twice_is_an_error(ask: Any, endpoint: Any) -> None:
    endpoint(itertools.repeat(say("Yes.", finish=None)))
    done = ask()
    assert done.code == 1
    assert "the stream ended without a finish reason" in done.err


ODD = [
    "{}",
    '{"choices": null}',
    '{"choices": [{"index": 0, "delta": null}]}',
    '{"choices": [{"index": 0, "delta": {"content": null, "tool_calls": null}}]}',
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_chunks_are_passed_over(ask: Any, endpoint: Any, odd: str) -> None:
    fake = endpoint([raw(odd, chunk({"content": "Yes."}), chunk({}, "stop"), DONE)])
    done = ask()
    assert (done.code, done.out, len(fake.requests)) == (0, "Yes.\n", 1)


def test_a_call_without_a_name_is_an_unknown_tool(ask: Any, endpoint: Any) -> None:
    nameless = '{"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": null}]}}]}'
    fake = endpoint([raw(nameless, chunk({}, "tool_calls"), DONE), say("Yes.")])
    done = ask()
    assert (done.code, done.out) == (0, "Yes.\n")
    assert "there is no tool ''; the tools are: get_weather" in fake.results()[0]


@pytest.mark.parametrize("odd", ['"text"', "[]", "7", '{"choices": 7}', '{"choices": ["a"]}'])
def test_chunks_that_make_no_sense_are_an_error(ask: Any, endpoint: Any, odd: str) -> None:
    endpoint(itertools.repeat(raw(odd, DONE)))
    done = ask()
    assert done.code == 1
    assert "error: the endpoint" in done.err


@pytest.mark.parametrize("strategy", ["native", "constrained"])
def test_some_other_server_is_an_error(ask: Any, endpoint: Any, strategy: str) -> None:
    endpoint(itertools.repeat(page()))
    done = ask("-s", strategy)
    assert done.code == 1
    assert "error: the endpoint" in done.err


def test_constrained_needs_logprobs_and_says_so(ask: Any, endpoint: Any) -> None:
    endpoint([say("Yes.")])  # ignores the request for logprobs, as many endpoints do
    done = ask("-s", "constrained")
    assert done.code == 1
    assert "returns no logprobs, which --strategy constrained needs: use native" in done.err


@pytest.mark.parametrize("choices", ["[]", "null"])
def test_a_decision_without_choices_is_an_error(ask: Any, endpoint: Any, choices: str) -> None:
    endpoint([Reply(body=f'{{"id": "c", "choices": {choices}, "model": "{MODEL}"}}')])
    done = ask("-s", "constrained")
    assert done.code == 1
    assert "error: the endpoint" in done.err or "error: this endpoint" in done.err


def test_constrained_through_the_whole_program(ask: Any, endpoint: Any) -> None:
    fake = endpoint([decide(0.9), call(LISBON, OSLO, LISBON), decide(0.1), WARMER])
    done = ask("-s", "constrained")
    assert (done.code, done.out) == (0, WARMER.text + "\n")
    assert fake.requests[1]["tool_choice"] == "required"
    assert "2 steps, 2 calls" in done.err  # the third repeats the first
    assert [json.loads(result)["temperature"] for result in fake.results(2)] == [18.5, 4.5]
