"""Functions as tools: the schema a model sees, from annotations and docstrings, and the signatures that have none.

python -m pytest tests/step2/test_function_schemas.py
"""

import datetime
import threading
from typing import Annotated, Any, Literal, NotRequired, Optional, Union

import pydantic
import pytest
from function_world import Colour, Line, Order, run
from jsonschema import Draft202012Validator
from typing_extensions import TypedDict

from shared.errors import UserError
from step2_tool_calling.function_tools import from_function


class Filters(TypedDict):
    query: str
    limit: NotRequired[int]


class Person(pydantic.BaseModel):
    title: str  # a property may be called like a keyword that is stripped elsewhere
    age: Annotated[int, pydantic.Field(ge=0)]


class Tree(pydantic.BaseModel):
    value: int
    children: list["Tree"] = []


def property_of(annotation: Any) -> dict[str, Any]:
    def function(value): ...  # type: ignore[no-untyped-def]

    function.__annotations__ = {"value": annotation}
    tool = from_function(function)
    Draft202012Validator.check_schema(dict(tool.parameters))
    assert tool.parameters["additionalProperties"] is False
    assert tool.parameters["required"] == ["value"]
    schema: dict[str, Any] = tool.parameters["properties"]["value"]
    return schema


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    """The schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


LINE = closed("item", item={"type": "string"}, count={"type": "integer", "default": 1})


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (Any, {}),
        (Literal["a", 2], {"enum": ["a", 2]}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (
            tuple[int, str],
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        ),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045
        (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),  # noqa: UP007
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Annotated[int, pydantic.Field(ge=1, le=9)], {"type": "integer", "minimum": 1, "maximum": 9}),
        (datetime.date, {"type": "string", "format": "date"}),
        (Line, LINE),
        (
            Order,
            closed("lines", lines={"type": "array", "items": LINE}, paid={"type": "boolean", "default": False}),
        ),
        (Filters, closed("query", query={"type": "string"}, limit={"type": "integer"})),
        (
            Person,
            {
                "type": "object",
                "properties": {"title": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
                "required": ["title", "age"],
            },
        ),
        (
            # A tree of any depth has no finite schema without references: below the first level anything is allowed.
            Tree,
            {
                "type": "object",
                "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {}, "default": []}},
                "required": ["value"],
            },
        ),
    ],
)
def test_annotations_become_schemas(annotation: Any, schema: dict[str, Any]) -> None:
    assert property_of(annotation) == schema


def test_parameters_docstrings_and_defaults() -> None:
    def search(text: str, limit: int = 5, tag: str | None = None) -> str:
        """Search the
        archive.

        More about it.

        Args:
            text: What to look for,
                in any language.
            limit (int): At most so many.
        """
        return f"{text}/{limit}/{tag}"

    tool = from_function(search)
    assert (tool.name, tool.description, tool.unsafe) == ("search", "Search the archive.", False)
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What to look for, in any language."},
            "limit": {"type": "integer", "default": 5, "description": "At most so many."},
            "tag": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["text"],
        "additionalProperties": False,
    }
    assert run(tool, text="x") == "x/5/None"
    assert tool.problem({"text": "x", "colour": 1}) is not None
    assert tool.problem({"limit": 1}) is not None


@pytest.mark.parametrize(
    "docstring",
    [
        "Say it.\n\nArgs:\n    word: The word.\n    times: How often.",
        "Say it.\n\nParameters\n----------\nword : str\n    The word.\ntimes : int\n    How often.",
        "Say it.\n\n:param word: The word.\n:param int times: How often.\n:returns: it",
    ],
    ids=["google", "numpy", "rest"],
)
def test_docstring_styles(docstring: str) -> None:
    def say(word: str, times: Annotated[int, pydantic.Field(description="An annotation wins.")] = 1) -> str:
        return word * times

    say.__doc__ = docstring
    tool = from_function(say)
    assert tool.description == "Say it."
    assert tool.parameters["properties"]["word"]["description"] == "The word."
    assert tool.parameters["properties"]["times"]["description"] == "An annotation wins."


def test_a_function_without_parameters_or_docstring() -> None:
    def now() -> str:
        return "noon"

    tool = from_function(now)
    assert tool.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert tool.description == ""
    assert run(tool) == "noon"


def test_names_that_pydantic_reserves_are_fine() -> None:
    def odd(schema: str, model_config: int, _hidden: bool, json: str = "j") -> list[Any]:
        return [schema, model_config, _hidden, json]

    assert run(from_function(odd), schema="s", model_config=1, _hidden=True) == ["s", 1, True, "j"]


def test_a_keyword_as_a_parameter() -> None:
    def convert(from_: str, to: str, class_: str = "money", note_: str = "") -> str:
        """Convert.

        Args:
            from_: Where it begins.
        """
        return f"{from_} to {to}, {class_}{note_}"

    tool = from_function(convert)
    assert list(tool.parameters["properties"]) == ["from", "to", "class", "note_"]
    assert tool.parameters["properties"]["from"]["description"] == "Where it begins."
    assert run(tool, **{"from": "EUR", "to": "USD", "class": "coin"}) == "EUR to USD, coin"


def star(*words: str) -> None: ...
def stars(**words: str) -> None: ...
def positional(a: int, /) -> None: ...
def bare(a, b: int) -> None: ...  # type: ignore[no-untyped-def]
def strange(a: threading.Lock) -> None: ...
def unknown(a: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (star, r"star: parameter \*words .*use a list or dict"),
        (stars, r"stars: parameter \*\*words .*use a list or dict"),
        (positional, "positional: parameter a is positional-only; remove the /"),
        (bare, "bare: parameter a has no type; annotate it"),
        (strange, "strange: parameter a has no JSON Schema"),
        (unknown, "unknown: cannot read its annotations .*'Missing'"),
        (lambda: 1, "tool name '<lambda>'"),
        (int, "int does not tell its parameters; wrap it in a function"),
        (max, "max does not tell its parameters"),
    ],
)
def test_signatures_without_a_schema(function: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_function(function)
