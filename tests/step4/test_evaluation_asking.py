"""The three ways to ask, over HTTP, with the official client and numbers checked by hand."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import UserError
from step4_finetune.evaluation.asking import ask, distinct
from step4_finetune.evaluation.prompt import Prompt
from step4_finetune.evaluation.task import Answer, Item, Run, Strategy
from tests.shared.scripted_endpoint import Said, Served, scripted_endpoint

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
QUESTION = Item("q1", "g", [{"role": "user", "content": "Weather in Oslo?"}], None, [WEATHER])


def asked(
    strategy: Strategy, script: Callable[[dict[str, Any]], Said], item: Item = QUESTION, **run: Any
) -> tuple[Answer, Served]:
    async def once(served: Served) -> Answer:
        async with served.client() as client:
            return await ask(client, Run("label", "m", strategy, **run), item)

    with scripted_endpoint(script) as served:
        return asyncio.run(once(served)), served


def test_native_keeps_what_was_said_and_sends_the_tools() -> None:
    said = Said("I will look.", (("weather", {"city": "Oslo"}),))
    answer, served = asked("native", lambda _: said)
    assert answer.text == "I will look."
    assert answer.calls == [{"name": "weather", "arguments": '{"city": "Oslo"}'}]
    assert (answer.id, answer.asked, answer.probability, answer.prompt_tokens) == ("q1", QUESTION.digest, None, 50)
    [request] = served.requests
    assert (request["tools"], request["temperature"], request["max_tokens"]) == ([WEATHER], 0.0, 256)


def test_choice_adds_up_the_spellings_of_yes_and_of_no() -> None:
    first = {"yes": 0.4, "No": 0.2, " Yes": 0.1, "Maybe": 0.3}
    answer, served = asked("choice", lambda _: Said(first=first))
    assert answer.probability == pytest.approx(0.5 / 0.7)
    assert answer.text == "yes"
    assert (served.requests[0]["max_tokens"], served.requests[0]["top_logprobs"]) == (1, 20)


def test_a_word_outside_the_list_has_at_most_the_mass_of_the_last_one_in_it() -> None:
    sure, _ = asked("choice", lambda _: Said(first={"yes": 0.9, "The": 0.01}))
    surer, _ = asked("choice", lambda _: Said(first={"yes": 0.9, "The": 0.001}))
    neither, _ = asked("choice", lambda _: Said(first={"The": 0.6, "A": 0.2}))
    assert sure.probability == pytest.approx(0.9 / 0.91)
    assert surer.probability == pytest.approx(0.9 / 0.901)
    assert neither.probability == 0.5


def test_constrained_reads_the_probability_of_a_call_then_forces_one() -> None:
    def script(request: dict[str, Any]) -> Said:
        if request.get("stream"):
            return Said(calls=(("weather", {"city": "Oslo"}),))
        return Said(first={"The": 0.6, "<tool": 0.3, "<": 0.05})

    answer, served = asked("constrained", script)
    assert answer.probability == pytest.approx(0.35)
    assert answer.calls == [{"name": "weather", "arguments": '{"city": "Oslo"}'}]
    decision, forced = served.requests
    assert "tool_choice" not in decision
    assert forced["tool_choice"] == "required"
    assert forced["tools"][0]["function"]["strict"] is True


def test_calls_that_only_repeat_are_cut_off() -> None:
    calls = (("weather", {"city": "Oslo"}),) * 40
    answer, _ = asked("constrained", lambda r: Said(calls=calls) if r.get("stream") else Said(first={"<": 1.0}))
    assert answer.calls == [{"name": "weather", "arguments": '{"city": "Oslo"}'}]


def test_one_slip_back_is_not_yet_repeating() -> None:
    lisbon, oslo, rome = ({"name": "weather", "arguments": city} for city in ("Lisbon", "Oslo", "Rome"))
    assert distinct([lisbon, oslo, lisbon]) == ([lisbon, oslo], False)
    assert distinct([lisbon, oslo, lisbon, rome]) == ([lisbon, oslo, rome], False)
    assert distinct([lisbon, lisbon]) == ([lisbon], True)
    assert distinct([lisbon, oslo, lisbon, oslo]) == ([lisbon, oslo], True)


def test_a_stream_that_breaks_off_is_asked_for_once_more() -> None:
    broken = iter([True, False])

    def script(request: dict[str, Any]) -> Said:
        if not request.get("stream"):
            return Said(first={"<": 1.0})
        return Said(calls=(("weather", {"city": "Oslo"}),), cut=next(broken))

    answer, served = asked("constrained", script)
    assert json.loads(answer.calls[0]["arguments"]) == {"city": "Oslo"}
    assert len(served.requests) == 3
    with pytest.raises(UserError, match="broke off twice"):
        asked("constrained", lambda r: Said(cut=True) if r.get("stream") else Said(first={"<": 1.0}))


def test_the_prompt_stands_before_the_question_and_system_messages_become_one() -> None:
    prompt = Prompt("p", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "An example"}])
    item = Item("q", "g", [{"role": "system", "content": "In French."}, {"role": "user", "content": "Hello"}], None)
    _, served = asked("native", lambda _: Said("ok"), item, prompt=prompt)
    assert served.requests[0]["messages"] == [
        {"role": "system", "content": "Be brief.\n\nIn French."},
        {"role": "user", "content": "An example"},
        {"role": "user", "content": "Hello"},
    ]
    assert "tools" not in served.requests[0]


def test_an_item_that_is_too_long_is_a_refused_item_and_other_errors_end_the_run() -> None:
    too_long = Said(status=400, message="3000 tokens too many", code="context_length_exceeded")
    answer, _ = asked("native", lambda _: too_long)
    assert (answer.refused, answer.text, answer.calls) == ("3000 tokens too many", "", [])
    vllm = Said(status=400, message="This model's maximum context length is 2048 tokens.")
    assert asked("choice", lambda _: vllm)[0].refused.startswith("This model's maximum")
    for said, words in (
        (Said(status=401, message="bad key"), "OPENAI_API_KEY"),
        (Said(status=404, message="no model m"), "404.*no model m"),
        (Said(status=400, message="bad schema"), "400.*bad schema"),
        (Said("hello"), "no logprobs.*native"),
    ):
        with pytest.raises(UserError, match=words):
            asked("choice", lambda _, said=said: said)  # type: ignore[misc]
