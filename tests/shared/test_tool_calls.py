"""Tool calls are found whatever pieces the text arrives in, and nothing the model wrote is lost."""

import json
import random

import pytest

from shared.tool_calls import ToolCall, ToolCallParser, parse_call

ONE = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
TWO = ONE + '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'


def parse(text: str, sizes: random.Random | None = None) -> tuple[str, list[ToolCall]]:
    parser, pieces = ToolCallParser(), []
    while text:
        size = len(text) if sizes is None else sizes.randint(1, 5)
        pieces += parser.feed(text[:size])
        text = text[size:]
    pieces += parser.close()
    return "".join(p for p in pieces if isinstance(p, str)), [p for p in pieces if isinstance(p, ToolCall)]


@pytest.mark.parametrize(
    ("text", "plain", "names"),
    [
        ("just text", "just text", []),
        (ONE, "", ["f"]),
        (TWO, "", ["f", "g"]),
        ("Let me see. " + ONE, "Let me see. ", ["f"]),
        ("a < b and a <tool b", "a < b and a <tool b", []),
        ("<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", []),
        ('<tool_call>\n{"name": "f", "arguments": {"x"', '<tool_call>\n{"name": "f", "arguments": {"x"', []),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 2}}', "", ["f"]),  # stopped right after the brace
        (ONE + "\nand more", "and more", ["f"]),
        ("", "", []),
    ],
)
def test_any_chunking_gives_the_same_result(text: str, plain: str, names: list[str]) -> None:
    for seed in range(30):
        got_plain, calls = parse(text, random.Random(seed) if seed else None)
        assert (got_plain, [c.name for c in calls]) == (plain, names)


def test_text_is_shown_as_soon_as_it_cannot_be_a_tag() -> None:
    parser = ToolCallParser()
    assert parser.feed("Hello <") == ["Hello "]
    assert parser.feed("tool") == []
    assert parser.feed("box>") == ["<toolbox>"]


def test_arguments_are_json_text_and_ids_differ() -> None:
    _, (first, second) = parse(TWO)
    assert json.loads(first.arguments) == {"x": 1}
    assert first.id != second.id
    assert first.as_message()["function"] == {"name": "f", "arguments": '{"x": 1}'}


@pytest.mark.parametrize("bad", ["", "[]", '{"arguments": {}}', '{"name": 3}', '{"name": "f", "arguments": [1]}'])
def test_what_is_not_a_call(bad: str) -> None:
    assert parse_call(bad) is None
