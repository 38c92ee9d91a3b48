"""Tool calls as plain text, for endpoints and models that know no `tools` field.

The tools' schemas go into the system prompt, results come back as user messages, and calls are looked for in the
answer: <tool_call> tags, fenced JSON, or a bare JSON object with a name and arguments.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from step2_tool_calling.conversation import Call, Message, too_deep
from step2_tool_calling.tool import Tool

PLACEHOLDER = "{tools}"


def as_text_messages(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Rewrite a conversation so that it needs no `tools`: schemas in the system message, calls and results as text.

    The system message's {tools} is replaced; without one the schemas are appended to it. Results of one turn share a
    message: many templates insist that user and assistant alternate.
    """
    if tools and not any(message["role"] == "system" for message in messages):
        messages = [{"role": "system", "content": PLACEHOLDER}, *messages]
    schemas = "\n".join(json.dumps(tool.as_openai()["function"], ensure_ascii=False) for tool in tools)
    result: list[Message] = []
    for message in messages:
        if message["role"] == "system":
            text = message["content"]
            if PLACEHOLDER in text or not tools:
                text = text.replace(PLACEHOLDER, schemas)
            else:
                text = f"{text}\n\nFunctions:\n{schemas}"
            result.append({"role": "system", "content": text})
        elif message["role"] == "tool":
            text = f"Function result: {message['content']}"
            if result and result[-1]["role"] == "user":
                text = f"{result.pop()['content']}\n{text}"
            result.append({"role": "user", "content": text})
        elif message.get("tool_calls"):
            calls = "\n".join(_written(call) for call in message["tool_calls"])
            result.append({"role": "assistant", "content": f"{message['content']}\n{calls}".strip()})
        else:
            result.append(dict(message))
    return result


def _written(call: dict[str, Any]) -> str:
    function = call["function"]
    return f'{{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}'


def find_calls(text: str, tools: Sequence[Tool]) -> tuple[str, list[Call]]:
    """Split an answer into its prose and its calls.

    A JSON object counts as a call when it has a "name" (or "function") that is a text, and "arguments" (or
    "parameters") that is an object; or when its name is one of the tools'. Everything else stays prose.
    """
    known = {tool.name for tool in tools}
    calls: list[Call] = []
    prose, position = [], 0
    for start, end, value in _json_values(text):
        found = [call for item in (value if isinstance(value, list) else [value]) if (call := _call(item, known))]
        if found:
            prose.append(text[position:start])
            position = end
            calls += [Call(f"call_{len(calls) + i}", name, arguments) for i, (name, arguments) in enumerate(found)]
    prose.append(text[position:])
    rest = "".join(prose)
    if calls:  # what wrapped the calls is not prose
        rest = re.sub(r"</?tool_call>|```(?:json)?", "", rest)
    return rest.strip(), calls


def _call(value: Any, known: set[str]) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):  # OpenAI's own nesting
        value = value["function"]
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(name, str):
        return None
    if isinstance(arguments, dict):
        return name, json.dumps(arguments, ensure_ascii=False)
    if arguments is None and name in known:
        others = {key: item for key, item in value.items() if key not in ("name", "function", "type")}
        return name, json.dumps(others, ensure_ascii=False)
    return None


def _json_values(text: str) -> Iterator[tuple[int, int, Any]]:
    """Every JSON object or array in the text, outermost ones only, with where it begins and ends.

    Those nested too deep for a call are passed over whole.
    """
    decoder = json.JSONDecoder()
    position = 0
    while (match := re.compile(r"[{\[]").search(text, position)) is not None:
        try:
            value, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):  # not JSON, or JSON with a number of 5,000 digits
            position = match.start() + 1
            continue
        if not too_deep(value):
            yield match.start(), end, value
        position = end
