"""The three strategies against a fake endpoint: what they send, what they make of the answer, when they stop reading.

python -m pytest tests/step2/test_strategies.py
"""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from shared.errors import UserError
from step2_tool_calling.conversation import Message, Turn
from step2_tool_calling.strategies import Model, Name, call_probability, take_turn
from step2_tool_calling.tool import Tool
from tests.shared.fake_endpoint import (
    MODEL,
    FakeEndpoint,
    Reply,
    call,
    chunk,
    decide,
    decision,
    fake_endpoint,
    raw,
    refuse,
    say,
)


async def nothing(_: dict[str, Any]) -> None: ...


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "The weather.", SCHEMA, nothing)
OSLO, LISBON = ("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Lisbon"})
QUESTION: list[Message] = [{"role": "user", "content": "Is it warmer in Lisbon or Oslo?"}]
ANSWERED: list[Message] = [*QUESTION, {"role": "assistant", "content": ""}, {"role": "tool", "content": "4.5"}]


class Asked:
    """A turn, the text that streamed, and what the endpoint was asked."""

    def __init__(self, turn: Turn, streamed: list[str], fake: FakeEndpoint) -> None:
        self.turn, self.streamed, self.requests = turn, streamed, fake.requests

    @property
    def calls(self) -> list[tuple[str, dict[str, Any] | None]]:
        return [(one.name, one.arguments()) for one in self.turn.calls]


def ask(
    script: Iterable[Reply],
    strategy: Name,
    messages: list[Message] = QUESTION,
    tools: tuple[Tool, ...] = (WEATHER,),
    **more: Any,
) -> Asked:
    from openai import AsyncOpenAI

    streamed: list[str] = []

    async def once(fake: FakeEndpoint) -> Turn:
        async with AsyncOpenAI(base_url=fake.base_url, api_key="unused", max_retries=0, timeout=2) as client:
            return await take_turn(strategy, Model(client, MODEL, **more), messages, tools, streamed.append)

    with fake_endpoint(script) as fake:
        return Asked(asyncio.run(once(fake)), streamed, fake)


# -- native ------------------------------------------------------------------------------------------------------------


def test_native_sends_the_tools_and_puts_the_streamed_pieces_together() -> None:
    asked = ask([call(LISBON, OSLO, text="Let me look.")], "native")
    assert asked.calls == [LISBON, OSLO]
    assert [one.id for one in asked.turn.calls] == ["id_0", "id_1"]
    assert (asked.turn.content, asked.turn.finish) == ("Let me look.", "tool_calls")
    assert asked.streamed == ["Let", " me", " look."]
    (request,) = asked.requests
    assert request["tools"] == [{"type": "function", "function": WEATHER.as_openai()["function"]}]
    assert "tool_choice" not in request
    assert (request["temperature"], request["max_tokens"], request["stream_options"]) == (
        0.0,
        512,
        {"include_usage": True},
    )
    assert "seed" not in request


def test_without_tools_there_is_no_tools_field() -> None:
    for strategy in ("native", "constrained", "text"):
        (request,) = ask([say("Yes.")], strategy, tools=()).requests
        assert "tools" not in request


def test_settings_reach_the_request() -> None:
    more = {"max_tokens": 7, "temperature": 0.5, "seed": 3, "extra": {"top_p": 0.9}}
    (request,) = ask([say("Yes.")], "native", **more).requests
    assert {key: request[key] for key in ("max_tokens", "temperature", "seed", "top_p")} == {
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "top_p": 0.9,
    }


def test_cached_tokens_are_counted_where_the_endpoint_tells() -> None:
    usage: dict[str, Any] = {
        "prompt_tokens": 90,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    used = ask([say("Yes.", usage=usage)], "native").turn.usage
    assert (used.prompt, used.cached, used.completion, used.requests) == (90, 64, 5, 1)


def test_calls_without_ids_get_some() -> None:
    parts = [{"index": n, "function": {"name": "get_weather", "arguments": "{}"}} for n in (0, 1)]
    asked = ask([raw(chunk({"tool_calls": parts}), chunk({}, "tool_calls"))], "native")
    assert [one.id for one in asked.turn.calls] == ["call_0", "call_1"]


def part(index: int | None, id_: str | None, name: str | None, arguments: str) -> str:
    """A chunk with one piece of a call; None leaves a field out."""
    fields = {"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}
    return chunk({"tool_calls": [{key: value for key, value in fields.items() if value is not None}]})


TOOL, HALF, REST = "get_weather", '{"city": ', '"Oslo"}'
WHOLE = HALF + '"Lisbon"}'


@pytest.mark.parametrize(
    "parts",
    [
        # One index for all calls: Gemini's endpoint, whole calls; others, in pieces, with the id once or in each.
        [(0, "a", TOOL, WHOLE), (0, "b", TOOL, HALF + REST)],
        [(0, "a", TOOL, WHOLE), (0, "b", TOOL, ""), (0, None, None, HALF), (0, "", None, REST)],
        [(0, "a", TOOL, WHOLE), (0, "b", TOOL, HALF), (0, "b", None, REST)],
        # No index at all, with ids or without.
        [(None, "a", TOOL, WHOLE), (None, "b", TOOL, HALF), (None, None, None, REST)],
        [(None, None, TOOL, WHOLE), (None, None, TOOL, HALF), (None, None, None, REST)],
        # As OpenAI does it, in turns; with a fresh id for every piece, as some servers do; the id after the name.
        [(0, "a", TOOL, ""), (1, "b", TOOL, HALF), (0, None, None, WHOLE), (1, None, None, REST)],
        [(0, "a", TOOL, WHOLE), (1, "b", TOOL, HALF), (1, "c", None, REST)],
        [(0, "a", TOOL, WHOLE), (1, None, TOOL, HALF), (1, "b", None, REST)],
    ],
)
def test_pieces_find_their_call(parts: list[tuple[int | None, str | None, str | None, str]]) -> None:
    asked = ask([raw(*(part(*one) for one in parts), chunk({}, "tool_calls"))], "native")
    assert asked.calls == [LISBON, OSLO]
    ids = [one.id for one in asked.turn.calls]
    assert ids == (["a", "b"] if parts[0][1] else ["call_0", "call_1"])


def test_half_surrogate_pairs_are_joined_or_replaced() -> None:
    """A chunk that ends inside an emoji; what is left alone could not be sent back to the endpoint."""
    pieces = [chunk({"content": text}) for text in ("\ud83d", "\ude00 and \ud83d")]
    asked = ask([raw(*pieces, part(0, "\ud83d", TOOL, '{"city": "\ude00"}'), chunk({}, "tool_calls"))], "native")
    assert asked.turn.content == "😀 and �"
    assert [(one.id, one.text) for one in asked.turn.calls] == [("�", '{"city": "�"}')]


def test_the_first_token_comes_before_the_last() -> None:
    turn = ask([say("Yes, it is.")], "native").turn
    assert 0 < turn.first_token <= turn.seconds < 2


# -- constrained -------------------------------------------------------------------------------------------------------


def test_constrained_forces_calls_that_the_schema_allows() -> None:
    asked = ask([decide(0.7), call(LISBON, OSLO, text="ignored")], "constrained")
    decision, forced = asked.requests
    assert (decision["max_tokens"], decision["logprobs"], decision["top_logprobs"]) == (1, True, 20)
    assert "tool_choice" not in decision  # the model's own choice is what is measured
    assert forced["tool_choice"] == "required"
    assert forced["tools"][0]["function"]["strict"] is True
    assert asked.calls == [LISBON, OSLO]
    assert (asked.turn.content, asked.streamed) == ("", [])
    used = asked.turn.usage
    assert (used.prompt, used.completion, used.requests) == (200, 11, 2)  # both requests are paid for


def test_below_the_threshold_the_model_answers() -> None:
    asked = ask([decide(0.3), say("Hello!")], "constrained")
    assert "tools" not in asked.requests[1]
    assert asked.requests[1]["messages"] == QUESTION
    assert (asked.turn.content, asked.calls, asked.streamed) == ("Hello!", [], ["Hello!"])
    assert ask([decide(0.3), call(OSLO)], "constrained", call_threshold=0.2).calls == [OSLO]


def test_a_threshold_of_0_always_calls_once() -> None:
    asked = ask([call(OSLO)], "constrained", call_threshold=0.0)
    assert asked.calls == [OSLO]
    assert len(asked.requests) == 1  # nothing to decide
    # After results there must be a way to end: the model decides as with a threshold of one half.
    asked = ask([decide(0.4), say("4.5 °C.")], "constrained", ANSWERED, call_threshold=0.0)
    assert asked.turn.content == "4.5 °C."


def test_answers_are_written_from_the_results_alone() -> None:
    """Seeing its own calls, a small model writes more of them."""
    results: list[Message] = [
        {"role": "tool", "content": "Lisbon: 18.5 °C"},
        {"role": "tool", "content": "Oslo: 4.5 °C"},
    ]
    earlier: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    messages = [*earlier, *QUESTION, {"role": "assistant", "content": "", "tool_calls": []}, *results]
    asked = ask([decide(0.1), say("Lisbon.")], "constrained", messages)
    sent = asked.requests[1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert sent[0] == QUESTION[0]
    assert "1. Lisbon: 18.5 °C\n2. Oslo: 4.5 °C\n" in sent[2]["content"]
    assert asked.requests[0]["messages"] == messages  # the decision saw everything


def repeating(*cities: str) -> Reply:
    """Calls with these cities, then fifty of the last one."""
    events = []
    for index, city in enumerate([*cities, *[cities[-1]] * 50]):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        events.append(chunk({"tool_calls": [{"index": index, "id": f"id_{index}", "function": function}]}))
    return raw(*events, chunk({}, "length"))


def test_repetition_ends_the_reading() -> None:
    asked = ask([decide(0.9), repeating("Oslo", "Lisbon")], "constrained")
    assert asked.calls == [OSLO, LISBON]
    assert asked.turn.finish == "tool_calls"
    assert asked.requests[1]["stream_options"]["continuous_usage_stats"] is True


def test_a_single_slip_back_does_not() -> None:
    rome = ("get_weather", {"city": "Rome"})
    assert ask([decide(0.9), repeating("Oslo", "Lisbon", "Oslo", "Rome")], "constrained").calls == [OSLO, LISBON, rome]


def probability(script: Iterable[Reply]) -> float:
    from openai import AsyncOpenAI

    async def once(fake: FakeEndpoint) -> float:
        async with AsyncOpenAI(base_url=fake.base_url, api_key="unused", max_retries=0) as client:
            return (await call_probability(Model(client, MODEL), QUESTION, [WEATHER]))[0]

    with fake_endpoint(script) as fake:
        return asyncio.run(once(fake))


@pytest.mark.parametrize("chosen", [0.0, 0.25, 0.9999])
def test_the_probability_adds_up_all_ways_to_begin_a_call(chosen: float) -> None:
    assert probability([decide(chosen)]) == pytest.approx(chosen, abs=1e-6)


def test_tokens_that_only_look_alike_do_not_count() -> None:
    answer = decision(decide(0.5))
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    top += [{"token": token, "logprob": -0.1, "bytes": None} for token in ("", "</", "<b>", " <tool_call>", "tool")]
    assert probability([Reply(body=json.dumps(answer))]) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("top", [None, []])
def test_a_token_without_alternatives_is_no_decision(top: Any) -> None:
    answer = decision(decide(0.5))
    answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = top
    with pytest.raises(UserError, match="this endpoint returns no logprobs"):
        probability([Reply(body=json.dumps(answer))])


@pytest.mark.parametrize("content", [[7], [{"token": "a"}], [{"top_logprobs": [{"token": "<", "logprob": None}]}], {}])
def test_logprobs_of_another_form_are_an_error(content: Any) -> None:
    answer = decision(decide(0.5))
    answer["choices"][0]["logprobs"]["content"] = content
    with pytest.raises(UserError, match="returns no logprobs|not answer in OpenAI's form"):
        probability([Reply(body=json.dumps(answer))])


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_needs_nothing_but_chat() -> None:
    said = 'I will look.\n{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    asked = ask([say(said)], "text")
    (request,) = asked.requests
    assert "tools" not in request
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert "get_weather" in request["messages"][0]["content"]
    assert (asked.turn.content, asked.calls) == ("I will look.", [OSLO])


# -- failures (the whole program's are in test_endpoint_failures.py) ---------------------------------------------------


@pytest.mark.parametrize("strategy", ["native", "constrained", "text"])
def test_a_failing_endpoint_is_a_user_error_of_exit_code_1(strategy: Name) -> None:
    with pytest.raises(UserError, match="the endpoint refuses the request \\(400\\): too long") as raised:
        ask([refuse(400, "too long")], strategy)
    assert raised.value.exit_code == 1


def test_a_question_in_another_encoding_is_a_user_error() -> None:
    """Bytes that are no UTF-8 come from the command line as half surrogate pairs."""
    with pytest.raises(UserError, match="bytes that are not UTF-8"):
        ask([say("Yes.")], "native", [{"role": "user", "content": "caf\udce9"}])


def test_a_bug_stays_a_bug() -> None:
    """Only what the endpoint did becomes a UserError."""

    async def once(fake: FakeEndpoint) -> None:
        from openai import AsyncOpenAI

        def broken(_: str) -> None:
            raise AttributeError("a bug in an observer")

        async with AsyncOpenAI(base_url=fake.base_url, api_key="unused", max_retries=0) as client:
            await take_turn("native", Model(client, MODEL), QUESTION, [], broken)

    with fake_endpoint([say("Yes.")]) as fake, pytest.raises(AttributeError, match="a bug in an observer"):
        asyncio.run(once(fake))
