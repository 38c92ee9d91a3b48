"""The records that the loop makes, the log keeps and the terminal shows.

A conversation is a list of messages in OpenAI's form plus these records of how each of them came to be.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]

# How a call ended. Only "ok" ran to a result; the others went back to the model as an error it can read.
Status = Literal["ok", "error", "invalid", "unknown", "denied", "timeout", "cancelled"]

# Why the conversation ended. All but "answer" leave the last turn's text, possibly empty, as the answer.
Ending = Literal["answer", "step limit", "token limit", "money limit", "cancelled", "failed"]

# Arguments nested deeper than this are taken for broken. No tool asks for more, and everything that reads them later
# (validators, encoders, repr) is recursive: 900 levels are read by json.loads and then end in a RecursionError.
MAX_LEVELS = 100


@dataclass(frozen=True)
class Usage:
    """Tokens of one or more requests, as the endpoint counts them; cached ones are part of prompt."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    requests: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.requests + other.requests,
        )

    @property
    def total(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Call:
    """A call as the model wrote it. text: its arguments, supposed to be a JSON object; nobody has checked them yet."""

    id: str
    name: str
    text: str

    def arguments(self) -> dict[str, Any] | None:
        """The arguments, or None when the text is not a JSON object, or one of more than 100 levels."""
        try:
            value = json.loads(self.text or "{}")
        except (ValueError, RecursionError):  # not only bad JSON: numbers of 5,000 digits, 3,000 open brackets
            return None
        return value if isinstance(value, dict) and not too_deep(value) else None

    def as_message(self) -> Message:
        """The object for message.tool_calls."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.text}}


def too_deep(value: Any) -> bool:
    """Whether a JSON value is nested more than 100 levels deep; found out level by level, without recursion."""
    level = [value]
    for _ in range(MAX_LEVELS):
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [child for one in inner for child in (one.values() if isinstance(one, dict) else one)]
    return any(isinstance(one, dict | list) for one in level)


@dataclass(frozen=True)
class Turn:
    """What the model said once: text, calls, or both. seconds: until its last token. first_token: until its first."""

    content: str
    calls: tuple[Call, ...] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    first_token: float = 0.0
    finish: str = "stop"

    def as_message(self) -> Message:
        """The assistant message that goes into the history."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.calls:
            message["tool_calls"] = [call.as_message() for call in self.calls]
        return message


@dataclass(frozen=True)
class Result:
    """What came of a call. output: what the model reads, a result or an error sentence. seconds: the tool's own."""

    call: Call
    status: Status
    output: str
    seconds: float = 0.0

    def as_message(self) -> Message:
        """The tool message that answers the call."""
        return {"role": "tool", "tool_call_id": self.call.id, "content": self.output}


# -- events: what an observer of the loop is told, in order ------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A question was put. messages: everything the model will see first, the question last. tools: their names."""

    messages: list[Message]
    model: str
    endpoint: str
    strategy: str
    prompt: str
    tools: list[str]


@dataclass(frozen=True)
class TextDelta:
    """A piece of the model's text, as it streams."""

    text: str


@dataclass(frozen=True)
class TurnDone:
    """The model finished a turn; step counts from 1."""

    step: int
    turn: Turn


@dataclass(frozen=True)
class CallStarted:
    """A validated, approved call begins to run."""

    step: int
    call: Call


@dataclass(frozen=True)
class CallDone:
    """A call has its result, or was refused."""

    step: int
    result: Result


@dataclass(frozen=True)
class Finished:
    """The conversation ended. cost: in US dollars, 0 for local models, None when the model has no price."""

    answer: str
    ending: Ending
    usage: Usage
    seconds: float
    cost: float | None
    error: str = ""


Event = Started | TextDelta | TurnDone | CallStarted | CallDone | Finished
