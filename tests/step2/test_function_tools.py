"""Functions as tools: the schema a model sees, the types the function gets, the sentence a person reads."""

import asyncio
import datetime
import enum
import functools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Optional, Union

import pydantic
import pytest
from jsonschema import Draft202012Validator
from typing_extensions import TypedDict

from shared.errors import UserError
from step2_tool_calling.function_tools import from_function, load_file, unsafe
from step2_tool_calling.tool import Tool, ToolError

DATA = Path(__file__).parent / "data"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Line:
    item: str
    count: int = 1


@dataclass
class Order:
    lines: list[Line]
    paid: bool = field(default=False)


class Filters(TypedDict):
    query: str
    limit: NotRequired[int]


class Person(pydantic.BaseModel):
    title: str  # a property may be called like a keyword that is stripped elsewhere
    age: Annotated[int, pydantic.Field(ge=0)]


class Tree(pydantic.BaseModel):
    value: int
    children: list["Tree"] = []


def run(tool: Tool, **arguments: Any) -> Any:
    """Call a tool the way the loop does: validate, then run."""
    assert tool.problem(arguments) is None, tool.problem(arguments)
    return asyncio.run(tool.run(arguments))


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


def test_the_function_gets_real_types_and_its_result_becomes_json() -> None:
    seen: list[Any] = []

    def take(colour: Colour, order: Order, day: datetime.date, pair: tuple[int, str], tags: set[str]) -> Order:
        seen.extend([colour, order, day, pair, tags])
        return order

    result = run(
        from_function(take),
        colour="blue",
        order={"lines": [{"item": "tea"}]},
        day="2026-02-28",
        pair=[1, "x"],
        tags=["a"],
    )
    assert seen == [Colour.BLUE, Order([Line("tea", 1)]), datetime.date(2026, 2, 28), (1, "x"), {"a"}]
    assert result == {"lines": [{"item": "tea", "count": 1}], "paid": False}


def test_what_json_schema_cannot_say_is_a_tool_error() -> None:
    def book(day: datetime.date) -> str:
        return str(day)

    tool = from_function(book)
    assert tool.problem({"day": "2026-02-30"}) is None  # "format" is a remark in JSON Schema
    with pytest.raises(ToolError, match="invalid arguments for book: day: .*day value is outside"):
        asyncio.run(tool.run({"day": "2026-02-30"}))


def test_sync_functions_run_in_a_thread_async_ones_in_the_loop() -> None:
    def sync() -> str:
        return threading.current_thread().name

    async def in_loop() -> str:
        return threading.current_thread().name

    assert run(from_function(sync)) != threading.main_thread().name
    assert run(from_function(in_loop)) == threading.main_thread().name


def test_a_hung_function_keeps_neither_the_loop_nor_the_program() -> None:
    release = threading.Event()
    ended: list[BaseException] = []

    def hangs() -> str:
        release.wait(20)
        return "too late"

    async def with_timeout() -> None:
        async with asyncio.timeout(0.05):
            await from_function(hangs).run({})

    begun = time.perf_counter()
    with pytest.raises(TimeoutError):
        asyncio.run(with_timeout())  # would wait for threads of its own pool
    assert time.perf_counter() - begun < 5
    (thread,) = [one for one in threading.enumerate() if one.name == "hangs"]
    assert thread.daemon  # the interpreter waits for all others

    threading.excepthook, before = lambda args: ended.append(args.exc_value), threading.excepthook
    release.set()
    thread.join(5)
    threading.excepthook = before
    assert (thread.is_alive(), ended) == (False, [])  # a result that nobody waits for is dropped in silence


def test_a_wrapped_async_function_is_awaited() -> None:
    async def fetch(city: str) -> str:
        await asyncio.sleep(0)
        return f"{city}: 4.5"

    @functools.wraps(fetch)
    def plain(*arguments: Any, **named: Any) -> Any:
        return fetch(*arguments, **named)

    plain.__annotations__ = fetch.__annotations__
    assert run(from_function(plain), city="Oslo") == "Oslo: 4.5"


def test_exceptions_become_tool_errors() -> None:
    def fails(kind: str) -> str:
        if kind == "tool":
            raise ToolError("try another city")
        if kind == "exit":
            raise SystemExit(3)
        raise StopIteration if kind == "stop" else KeyError(kind)

    tool = from_function(fails)
    with pytest.raises(ToolError, match="^try another city$"):
        run(tool, kind="tool")
    with pytest.raises(ToolError, match="^fails failed: KeyError: 'x'$"):
        run(tool, kind="x")
    with pytest.raises(ToolError, match="^fails failed: SystemExit: 3$"):
        run(tool, kind="exit")
    with pytest.raises(ToolError, match="^fails failed: "):  # a future cannot hold this one
        run(tool, kind="stop")


def test_unsafe_marks() -> None:
    @unsafe
    def send() -> None: ...

    def read() -> None: ...

    assert from_function(send).unsafe
    assert from_function(read, unsafe=True).unsafe
    assert not from_function(read).unsafe


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


def test_a_file_of_tools() -> None:
    tools = {tool.name: tool for tool in load_file(DATA / "my_tools.py")}
    assert list(tools) == ["distance", "add_marker", "area"]
    assert [tool.unsafe for tool in tools.values()] == [False, True, False]
    assert {tool.source for tool in tools.values()} == {str(DATA / "my_tools.py")}
    assert run(tools["distance"], start={"x": 0}, end={"x": 3, "y": 4}) == 5.0
    assert run(tools["distance"], start={"x": 0}, end={"x": 3, "y": 4}, unit="km") == 0.005
    assert run(tools["add_marker"], at={"x": 1, "y": 2}, labels=["a"]) == "marker at 1,2 with 1 labels"
    start = tools["distance"].parameters["properties"]["start"]
    assert start["description"] == "Where to begin."  # of the parameter, not of its class
    assert start["required"] == ["x"]


def test_all_and_tools_choose(tmp_path: Path) -> None:
    body = "def b() -> int: return 1\ndef a() -> int: return 2\ndef _c() -> int: return 3\n"
    chosen = {
        "": ["b", "a"],
        "__all__ = ['_c', 'a']\n": ["a", "_c"],
        "TOOLS = [_c, b]\n": ["_c", "b"],
        "from step2_tool_calling.function_tools import from_function\nTOOLS = [from_function(a, name='z')]\n": ["z"],
    }
    for i, (extra, names) in enumerate(chosen.items()):
        path = tmp_path / f"file{i}.py"
        path.write_text(body + extra)
        tools = load_file(path)
        assert [tool.name for tool in tools] == names
        assert {tool.source for tool in tools} == {str(path)}  # "built-in" would have serve-mcp vouch for them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", "line 1: SyntaxError: invalid syntax"),
        ("x = 1\n\nimport no_such_module\n", "line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f() -> int:\n    return {}['k']\nf()\n", "line 2: KeyError: 'k'"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        ("from math import sqrt\n_x = 1\n", "defines no public function"),
        ("TOOLS = 3\n", "TOOLS must be a list"),
        ("TOOLS = [int]\n", "int does not tell its parameters"),
        ("__all__ = 3\ndef f() -> int: return 1\n", "__all__ must be a list of names"),
        ("def f(x): ...\n", "f: parameter x has no type"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tools.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_file(tmp_path / "none.py")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="not a Python file"):
        load_file(tmp_path / "notes.txt")


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
