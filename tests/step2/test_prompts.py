"""Prompts as files: those that come along are sound, and a malformed one of yours says what is wrong."""

import json
from pathlib import Path

import pytest

from shared.errors import UserError
from step2_tool_calling.conversation import Message
from step2_tool_calling.prompts import examples_with, load_prompt, names, writes_tools
from step2_tool_calling.tool import Tool


@pytest.mark.parametrize("name", names())
def test_the_prompts_that_come_along(name: str) -> None:
    prompt = load_prompt(name)
    assert prompt.tries, "each says what it tries"
    assert prompt.label == f"{name} v{prompt.version} ({prompt.digest})"
    assert prompt.messages[0]["role"] == "system"
    assert load_prompt(name) == prompt
    waiting: list[str] = []
    for message in prompt.messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
        else:
            assert waiting == [], "an example call without its result"
            waiting = [call["id"] for call in message.get("tool_calls", [])]
            for call in message.get("tool_calls", []):
                json.loads(call["function"]["arguments"])


def write(folder: Path, body: str, header: str = "version: 3\ntries: x: y") -> str:
    path = folder / "mine.md"
    path.write_text(f"---\n{header}\n---\n{body}")
    return str(path)


def test_a_prompt_of_yours_by_its_path(tmp_path: Path) -> None:
    path = write(
        tmp_path, "# system\nHelp.\n\n## Not a heading of ours\n#also not\n\n# user\nHi\n# assistant\nHello.\n"
    )
    prompt = load_prompt(path)
    assert (prompt.name, prompt.version, prompt.tries) == ("mine", "3", "x: y")
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant"]
    assert prompt.messages[0]["content"] == "Help.\n\n## Not a heading of ours\n#also not"


def test_the_digest_follows_the_text(tmp_path: Path) -> None:
    before = load_prompt(write(tmp_path, "# system\nHelp."))
    assert load_prompt(write(tmp_path, "# system\nHelp!")).digest != before.digest


def test_example_calls_and_their_results_share_an_id(tmp_path: Path) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    body = f"# user\nx\n# assistant\nLook: {call}{call}\n# tool\n1\n# tool\n2\n# assistant\n{call}\n# tool\n3"
    _, both, one, two, third, three = load_prompt(write(tmp_path, body)).messages
    assert both["content"] == "Look:"
    ids = [call["id"] for call in both["tool_calls"]]
    assert len(set(ids)) == 2
    assert [one["tool_call_id"], two["tool_call_id"]] == ids
    assert three["tool_call_id"] == third["tool_calls"][0]["id"]
    assert three["tool_call_id"] not in ids
    assert both["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("no heading", "messages stand under `# system`"),
        ("# robot\nhi", "messages stand under `# system`"),
        ("# assistant\n<tool_call>{name: f}</tool_call>", "an example call is not valid JSON"),
        ("# assistant\n<tool_call>{}", "an example call is not valid JSON"),
    ],
)
def test_a_malformed_prompt_says_what_is_wrong(tmp_path: Path, body: str, problem: str) -> None:
    with pytest.raises(UserError, match="mine.md: .*" + problem):
        load_prompt(write(tmp_path, body))


def test_a_file_without_its_head(tmp_path: Path) -> None:
    path = tmp_path / "mine.md"
    path.write_text("# system\nHelp.")
    with pytest.raises(UserError, match="a prompt begins with `key: value` lines between two lines of ---"):
        load_prompt(str(path))


@pytest.mark.parametrize("name", ["nonsense", "", "no/such.md", "../plain"])
def test_a_prompt_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="no prompt .*; there are .*plain.*or give the path of a .md file"):
        load_prompt(name)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no prompt"):
        load_prompt(str(tmp_path / "mine.md"))


def test_examples_with_tools_that_nobody_offers_are_left_out() -> None:
    async def never(_: dict[str, object]) -> None: ...

    def offered(*tool_names: str) -> list[Message]:
        tools = [Tool(name, "", {"type": "object", "properties": {}}, never) for name in tool_names]
        return examples_with(load_prompt("assistant").messages, tools)

    whole = load_prompt("assistant").messages
    assert offered("calculate", "get_weather", "convert_currency") == whole
    assert [message["role"] for message in offered("calculate")] == ["system", "user", "assistant", "tool", "assistant"]
    assert offered("get_weather") == whole[:1]  # the second example converts money, too


def test_only_a_system_message_has_a_place_for_the_tools() -> None:
    assert [name for name in names() if writes_tools(load_prompt(name).messages)] == ["schema"]
    assert not writes_tools([{"role": "user", "content": "What is {tools}?"}])
