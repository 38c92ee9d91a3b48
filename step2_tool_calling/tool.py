"""What a tool is: a name, a sentence, a JSON Schema for its arguments, and something to run.

Everything the model may call becomes a `Tool`, whatever it was before: a Python function (function_tools.py), an
OpenAPI operation (openapi.py), a tool of an MCP server (mcp_client.py). The loop knows nothing else.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shared.errors import UserError

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

# OpenAI's rule for function names. Other sources allow more (dots, slashes); they are renamed when they are read.
NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class ToolError(Exception):
    """A tool could not do what it was asked. Its sentence goes back to the model and must help to repair the call."""


@dataclass(frozen=True)
class Tool:
    """Something the model may call.

    parameters: a JSON Schema of type object. run: takes the validated arguments, returns a text or a JSON value;
    raises ToolError with a sentence the model can act on. unsafe: it changes something outside, or costs money, so a
    person is asked first. timeout: seconds. source: where it came from, for people ("built-in", a file, a URL).
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[dict[str, Any]], Awaitable[Any]]
    unsafe: bool = False
    timeout: float = 20.0
    source: str = "built-in"

    def as_openai(self, *, strict: bool = False) -> dict[str, Any]:
        """The object for the `tools` field of a request. strict: ask the server to hold arguments to the schema."""
        function: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        if strict:
            function["strict"] = True
        return {"type": "function", "function": function}

    @cached_property
    def _validator(self) -> "Draft202012Validator":
        from jsonschema import Draft202012Validator

        return Draft202012Validator(dict(self.parameters))

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """Say what is wrong with these arguments in one sentence for the model, or None when they are valid."""
        try:
            errors = sorted(self._validator.iter_errors(dict(arguments)), key=lambda error: list(map(str, error.path)))
        except (ArithmeticError, ValueError) as reason:  # `multipleOf: 0.5` divides: 10**400 is no float, NaN no int
            return f"invalid arguments for {self.name}: they cannot be checked ({reason})"
        if not errors:
            return None
        texts = []
        for error in errors[:3]:
            where = ".".join(map(str, error.absolute_path))
            texts.append(f"{where}: {error.message}" if where else error.message)
        known = ", ".join(self.parameters.get("properties", {}))
        return f"invalid arguments for {self.name}: {'; '.join(texts)} (its parameters: {known or 'none'})"


def by_name(tools: list[Tool]) -> dict[str, Tool]:
    """Index tools by name. Raises UserError when two have the same one: the model could not tell them apart."""
    index: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in index:
            raise UserError(f"two tools are called {tool.name!r} ({index[tool.name].source} and {tool.source})")
        index[tool.name] = tool
    return index


def as_text(result: Any) -> str:
    """A tool's result as the model reads it: text as it is, anything else as compact JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
