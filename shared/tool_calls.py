"""Find tool calls in generated text, also while it is still being generated.

The model writes   <tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>   (Hermes style, shared/templates/);
clients want OpenAI's tool_calls objects. Text that is not a well-formed call stays text, so nothing is lost.
"""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """One call; arguments is a JSON object as text, as OpenAI sends it."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def as_message(self) -> dict[str, Any]:
        """The object that goes into message.tool_calls."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolCallParser:
    """Feed text as it comes; get back plain text that is safe to show, and complete calls."""

    def __init__(self) -> None:
        self._buffer = ""
        self._after_call = False  # line breaks after a call are layout, not content

    def feed(self, text: str) -> list[str | ToolCall]:
        """Return what became certain with this piece of text, in order."""
        self._buffer += text
        found: list[str | ToolCall] = []
        while True:
            begin = self._buffer.find(BEGIN)
            if begin < 0:
                # Keep back what may be the start of a tag.
                keep = next((k for k in range(len(BEGIN) - 1, 0, -1) if self._buffer.endswith(BEGIN[:k])), 0)
                cut = len(self._buffer) - keep
                self._text(found, self._buffer[:cut])
                self._buffer = self._buffer[cut:]
                return found
            end = self._buffer.find(END, begin)
            if end < 0:
                self._text(found, self._buffer[:begin])
                self._buffer = self._buffer[begin:]
                return found
            self._text(found, self._buffer[:begin])
            whole = self._buffer[begin : end + len(END)]
            call = parse_call(whole[len(BEGIN) : -len(END)])
            self._buffer = self._buffer[end + len(END) :]
            if call is None:
                found.append(whole)
            else:
                self._after_call = True
                found.append(call)

    def close(self) -> list[str | ToolCall]:
        """Return what is left when generation ends: an unfinished call is text."""
        rest, self._buffer = self._buffer, ""
        # Small models often stop right after the closing brace; the call is complete all the same.
        call = parse_call(rest[len(BEGIN) :]) if rest.startswith(BEGIN) else None
        if call is not None:
            return [call]
        found: list[str | ToolCall] = []
        self._text(found, rest)
        return found

    def _text(self, found: list[str | ToolCall], text: str) -> None:
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            found.append(text)


def parse_call(text: str) -> ToolCall | None:
    """Return the call written as {"name": …, "arguments": {…}}, or None when the text is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))
