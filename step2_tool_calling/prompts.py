"""Prompts as files: versioned, commented, comparable (`eval --prompts plain,careful,examples`).

A prompt is prompts/NAME.md: a few `key: value` lines between two `---` lines (what it tries, its version), then the
messages that come before the user's question, each under a heading `# system`, `# user`, `# assistant` or `# tool`.
An assistant message may hold <tool_call>{"name": …, "arguments": {…}}</tool_call>: a worked example of a call. A
system message with {tools} in it describes the tools itself; only the strategy `text` fills that in.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UserError
from shared.tool_calls import ToolCall, ToolCallParser
from step2_tool_calling.conversation import Message
from step2_tool_calling.text_calls import PLACEHOLDER
from step2_tool_calling.tool import Tool

FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """Messages to put before a question. digest: of the file, so that a log or result says which text it was."""

    name: str
    version: str
    tries: str
    messages: list[Message]
    digest: str

    @property
    def label(self) -> str:
        """What logs and results call it."""
        return f"{self.name} v{self.version} ({self.digest})"


def names() -> list[str]:
    """The prompts that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def load_prompt(name: str) -> Prompt:
    """Read a prompt by name, or by path when it ends in .md. Raises UserError when it is missing or malformed."""
    path = Path(name) if name.endswith(".md") else FOLDER / f"{name}.md"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"no prompt {name!r}; there are {', '.join(names())}, or give the path of a .md file") from None
    match = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    if match is None:
        raise UserError(f"{path.name}: a prompt begins with `key: value` lines between two lines of ---")
    header = dict(line.split(":", 1) for line in match[1].splitlines() if ":" in line)
    messages = [_message(path, role, body.strip()) for role, body in _sections(path, match[2])]
    for index, call_id in enumerate(_ids(messages)):
        messages[index].update(call_id)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Prompt(path.stem, header.get("version", "1").strip(), header.get("tries", "").strip(), messages, digest)


def examples_with(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """A prompt's messages without the examples that call a tool nobody offers: a small model copies such a call.

    An example is everything from one user message to the next.
    """
    offered = {tool.name for tool in tools}
    kept: list[Message] = []
    example: list[Message] = []
    for message in [*messages, {"role": "user"}]:  # the last one only closes the example before it
        if message["role"] == "user":
            called = {call["function"]["name"] for one in example for call in one.get("tool_calls", ())}
            kept += [dict(one) for one in example] if called <= offered else []
            example = []
        example.append(message)
    return kept


def writes_tools(messages: Sequence[Message]) -> bool:
    """Whether the messages have a place for the tools' schemas, {tools}, that the strategy `text` has to fill."""
    return any(message["role"] == "system" and PLACEHOLDER in message["content"] for message in messages)


def _sections(path: Path, body: str) -> list[tuple[str, str]]:
    parts = re.split(r"^# (\w+)[ \t]*$", body, flags=re.MULTILINE)
    sections = list(zip(parts[1::2], parts[2::2], strict=True))
    unknown = [role for role, _ in sections if role not in ("system", "user", "assistant", "tool")]
    if parts[0].strip() or unknown:
        raise UserError(f"{path.name}: messages stand under `# system`, `# user`, `# assistant` or `# tool`")
    return sections


def _message(path: Path, role: str, text: str) -> Message:
    if role != "assistant":
        return {"role": role, "content": text}
    parser = ToolCallParser()
    pieces = [*parser.feed(text), *parser.close()]
    calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
    content = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
    if "<tool_call>" in content:
        raise UserError(f"{path.name}: an example call is not valid JSON with a name and arguments")
    message: Message = {"role": "assistant", "content": content}
    return message | {"tool_calls": [call.as_message() for call in calls]} if calls else message


def _ids(messages: list[Message]) -> list[Message]:
    """Ids that join example calls and their results: the same file always makes the same messages."""
    updates: list[Message] = []
    waiting: list[str] = []
    count = 0
    for message in messages:
        update: Message = {}
        if message.get("tool_calls"):
            waiting = [f"example_{count + i}" for i in range(len(message["tool_calls"]))]
            count += len(waiting)
            update["tool_calls"] = [
                call | {"id": call_id} for call, call_id in zip(message["tool_calls"], waiting, strict=True)
            ]
        elif message["role"] == "tool":
            update["tool_call_id"] = waiting.pop(0) if waiting else "example"
        updates.append(update)
    return updates
