"""One training example: a conversation with tools whose last message is what the model should say. And its check.

Nothing enters the data unchecked: every call must name one of the tools, validate against its schema, and hold only
values that can be read in the question. `problem` says in one sentence why an example is refused.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.files import atomic_write

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # OpenAI's rule for function names
CALLS = ("single", "multiple", "parallel", "parallel_multiple")
NO_CALLS = ("no_tool", "missing", "small_talk", "answer")


@dataclass(frozen=True)
class Example:
    """A conversation. source: synthetic, bfcl-live or glaive. kind: one of CALLS or NO_CALLS.

    messages: OpenAI form, the last one the assistant's, with tool_calls or a short text. tools: OpenAI tool objects.
    normalised: texts of the question that a value was made from ("5%" became 0.05), so the check can accept the value.
    """

    id: str
    source: str
    kind: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    normalised: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The user's words, all of them."""
        return "\n".join(m["content"] for m in self.messages if m["role"] != "assistant")

    def template_messages(self) -> list[dict[str, Any]]:
        """The messages as chat templates want them: the arguments of calls as objects, not as JSON text."""
        return [
            message | {"tool_calls": [_parsed(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in self.messages
        ]

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """(function name, arguments) of the expected calls; empty when none is right."""
        return [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in self.messages[-1].get("tool_calls", [])
        ]


def _parsed(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.loads(function["arguments"])
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def answer_with_calls(calls: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The assistant message of these calls. Ids are numbered: random ones would change the file's bytes."""
    tool_calls = []
    for number, (name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        tool_calls.append({"id": f"call_{number}", "type": "function", "function": function})
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def problem(example: Example) -> str | None:
    """Say why an example must not be trained on, or None when it is right."""
    names = [tool["function"]["name"] for tool in example.tools]
    if not names or len(set(names)) < len(names):
        return "it has no tools, or two of the same name"
    for name in names:
        if not NAME.fullmatch(name):
            return f"{name!r} is not a valid function name"
    answer = example.messages[-1]
    if answer["role"] != "assistant" or not (bool(answer.get("tool_calls")) ^ bool(answer["content"].strip())):
        return "its last message is not an assistant's call or text"
    if not example.question.strip():
        return "it asks nothing"
    if bool(answer.get("tool_calls")) != (example.kind in CALLS):
        return f"its kind is {example.kind} but its answer is not"
    try:
        calls = example.calls()
    except ValueError:
        return "arguments are not JSON"
    if len({json.dumps(call, sort_keys=True) for call in calls}) < len(calls):
        return "two of its calls are the same"
    for name, arguments in calls:
        if name not in names:
            return f"{name} is not among the tools"
        parameters = example.tools[names.index(name)]["function"]["parameters"]
        wrong = next(iter(_validator(json.dumps(parameters)).iter_errors(arguments)), None)
        if wrong:
            return f"the arguments of {name} are invalid: {wrong.message[:90]}"
        unknown = arguments.keys() - parameters.get("properties", {}).keys()
        if unknown:
            return f"{name} has no parameter {sorted(unknown)[0]}"
        if example.source == "synthetic":
            for key, value in arguments.items():
                if not _derivable(value, parameters["properties"][key], example):
                    return f"{key} = {value!r} of {name} is not in the question"
    return None


@lru_cache(maxsize=4096)
def _validator(parameters: str) -> "Draft202012Validator":
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(parameters))


def _derivable(value: Any, schema: dict[str, Any], example: Example) -> bool:
    """Whether a value can be read in the question: as it is, or as a normalised form of words that are there."""
    if isinstance(value, bool):
        return True
    for words, values in example.normalised.items():
        if value in values and words.lower() in example.question.lower():
            return True
    if isinstance(value, list):
        return all(_derivable(item, schema.get("items", {}), example) for item in value)
    if isinstance(value, dict):
        return all(_derivable(item, schema.get("properties", {}).get(k, {}), example) for k, item in value.items())
    if isinstance(value, (int, float)):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", example.question.replace(",", ""))
        # Commas also separate ("[4,8]"), so both readings count.
        numbers += re.findall(r"-?\d+(?:\.\d+)?", re.sub(r",(?!\d{3})", " ", example.question).replace(",", ""))
        return any(float(number) == value for number in numbers) or str(value) in example.question
    return str(value).lower() in example.question.lower()


def write_jsonl(examples: Iterable[Example], path: Path) -> None:
    """Write one JSON object a line; same examples, same bytes."""
    lines = [json.dumps(asdict(example), ensure_ascii=False) for example in examples]
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def read_jsonl(path: Path) -> list[Example]:
    """Read what write_jsonl wrote. Raises UserError that names the line when one is not an example."""
    examples = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run the data build first") from None
    for number, line in enumerate(lines, 1):
        try:
            examples.append(Example(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number} is not an example: {error}") from None
    return examples
