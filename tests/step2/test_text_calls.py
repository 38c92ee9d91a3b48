"""Calls written as text: the forms models write them in, and what must not be taken for one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step2_tool_calling.conversation import Message
from step2_tool_calling.text_calls import as_text_messages, find_calls
from step2_tool_calling.tool import Tool


async def nothing(_: dict[str, Any]) -> None: ...


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "The weather.", SCHEMA, nothing)
OSLO = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'


@pytest.mark.parametrize(
    "text",
    [
        OSLO,
        f"<tool_call>{OSLO}</tool_call>",
        f"<tool_call>\n{OSLO}",  # small models often forget the end
        f"```json\n{OSLO}\n```",
        f"```\n{OSLO}\n```",
        f"[{OSLO}]",
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        '{"function": "get_weather", "arguments": {"city": "Oslo"}}',
        '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}',
        '{"name": "get_weather", "city": "Oslo"}',  # flat, but the name is one of the tools'
    ],
)
def test_a_call_in_every_form(text: str) -> None:
    prose, calls = find_calls(text, [WEATHER])
    assert prose == ""
    assert [(call.name, call.arguments()) for call in calls] == [("get_weather", {"city": "Oslo"})]


def test_prose_around_calls_stays() -> None:
    text = f"Let me look.\n{OSLO}\nand\n{OSLO.replace('Oslo', 'Rome')} That is all."
    prose, calls = find_calls(text, [WEATHER])
    assert prose.split() == ["Let", "me", "look.", "and", "That", "is", "all."]
    assert [call.arguments() for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert len({call.id for call in calls}) == 2


def test_the_calls_of_a_list_keep_their_order_and_have_ids_of_their_own() -> None:
    _, calls = find_calls(f"[{OSLO}, {OSLO}]\n{OSLO}", [WEATHER])
    assert [call.id for call in calls] == ["call_0", "call_1", "call_2"]


@pytest.mark.parametrize(
    "text",
    [
        "It is 4.5 °C in Oslo.",
        'The file holds {"name": "Ada", "age": 36}.',
        '{"city": "Oslo"}',
        "[1, 2, 3]",
        '{"name": "get_weather", "arguments": "Oslo"}',
        '{"name": 7, "arguments": {}}',
        '{"name": "get_weather", "arguments": {"city": "Os',
        "{" * 200,
        "",
    ],
)
def test_other_text_is_no_call(text: str) -> None:
    assert find_calls(text, [WEATHER]) == (text, [])


@pytest.mark.parametrize("depth", [90, 200, 950, 1500])
def test_deep_nesting_is_no_call_and_no_crash(depth: int) -> None:
    value = "[" * depth + "]" * depth
    _, calls = find_calls(f'{{"name": "get_weather", "arguments": {{"city": {value}}}}} {OSLO}', [WEATHER])
    assert find_calls("[" * depth, [WEATHER])[1] == []
    # Beyond json.loads' own depth the inner lists are text, and the call after them is still found.
    assert calls[-1].arguments() == {"city": "Oslo"}
    assert len(calls) == (2 if depth == 90 else 1)


def test_a_number_that_python_refuses_is_no_call() -> None:
    text = '{"name": "get_weather", "arguments": {"city": ' + "9" * 5000 + "}}"
    assert find_calls(text, [WEATHER]) == (text, [])


@given(st.text(alphabet='{}[]":, naemrgutsf<>/_`\\', max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    prose, calls = find_calls(text, [WEATHER])
    assert calls or prose == text.strip()


# -- conversations without a tools field -------------------------------------------------------------------------------


def test_schemas_take_the_place_in_the_system_message_or_its_end() -> None:
    schema = json.dumps(WEATHER.as_openai()["function"])
    placed, _ = as_text_messages([{"role": "system", "content": "Functions: {tools}!"}, {"role": "user"}], [WEATHER])
    assert placed["content"] == f"Functions: {schema}!"
    (appended,) = as_text_messages([{"role": "system", "content": "Help."}], [WEATHER])
    assert appended["content"] == f"Help.\n\nFunctions:\n{schema}"


def test_without_a_system_message_the_schemas_get_one() -> None:
    question: Message = {"role": "user", "content": "Is it cold?"}
    system, user = as_text_messages([question], [WEATHER])
    assert "get_weather" in system["content"]
    assert user == question
    assert as_text_messages([question], []) == [question]


def test_without_tools_nothing_is_said_of_functions() -> None:
    assert as_text_messages([{"role": "system", "content": "Help."}], []) == [{"role": "system", "content": "Help."}]


def test_calls_and_results_become_text_that_alternates() -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    history: list[Message] = [
        {"role": "user", "content": "Is it cold?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": function}] * 2},
        {"role": "tool", "tool_call_id": "a", "content": "4.5"},
        {"role": "tool", "tool_call_id": "b", "content": "18.5"},
    ]
    _, asked, called, results = as_text_messages(history, [WEATHER])
    assert called == {"role": "assistant", "content": f"{OSLO}\n{OSLO}"}
    assert results == {"role": "user", "content": "Function result: 4.5\nFunction result: 18.5"}
    assert asked == history[0]
    assert find_calls(called["content"], [WEATHER])[1][0].arguments() == {"city": "Oslo"}  # the form it looks for
