"""A prompt as a file: what the base model is told before each question in the column "base, best prompt".

    ---
    tries: rules and two examples
    ---
    # system
    Answer yes or no.
    # user
    …
    # assistant
    yes

The lines between the two --- are for people. Each heading `# system`, `# user`, `# assistant` begins a message; an
assistant message may hold <tool_call>{"name": …, "arguments": {…}}</tool_call>. Step 2's prompt files have this form,
so its best one can be measured here: the fair opponent of a tuned model is the base model with a good prompt.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.tool_calls import ToolCall, ToolCallParser

Message = dict[str, Any]
FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """Messages to put before a question. label: name and digest of the file, so that results say which text it was."""

    label: str
    messages: list[Message]

    def before(self, messages: Sequence[Message]) -> list[Message]:
        """The prompt's messages, then these. A system message of theirs joins the prompt's: templates take one."""
        own = [dict(message) for message in self.messages]
        rest = [dict(message) for message in messages]
        if own and rest and own[0]["role"] == rest[0]["role"] == "system":
            own[0]["content"] += "\n\n" + rest.pop(0)["content"]
        elif rest and rest[0]["role"] == "system":
            own.insert(0, rest.pop(0))
        return own + rest


def load_prompt(name: str) -> Prompt:
    """Read a prompt by name, or by path when it ends in .md. Raises UserError when it is missing or malformed."""
    path = Path(name) if name.endswith(".md") else FOLDER / f"{name}.md"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.md")))
        raise UserError(f"no prompt {name!r}; there are {names}, or give the path of a .md file") from None
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    before, *parts = re.split(r"^# (system|user|assistant)[ \t]*$", body, flags=re.MULTILINE)
    if before.strip() or not parts:
        raise UserError(f"{path.name}: messages stand under `# system`, `# user` or `# assistant`")
    messages = [_message(path, role, content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True)]
    return Prompt(f"{path.stem} ({hashlib.sha256(text.encode()).hexdigest()[:8]})", messages)


def _message(path: Path, role: str, text: str) -> Message:
    if role != "assistant":
        return {"role": role, "content": text}
    parser = ToolCallParser()
    pieces = [*parser.feed(text), *parser.close()]
    calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
    content = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
    if "<tool_call>" in content:
        raise UserError(f"{path.name}: an example call is not valid JSON with a name and arguments")
    if not calls:
        return {"role": role, "content": content}
    # Ids by number: random ones would make every request, and so every cached prefix, a new one.
    tool_calls = [call.as_message() | {"id": f"example_{number}"} for number, call in enumerate(calls)]
    return {"role": role, "content": content, "tool_calls": tool_calls}
