"""Tools from typed Python functions: the signature is the schema, the docstring is the manual.

    python -m step2_tool_calling tools --tools my_tools.py

A function says everything a model needs: names and types of the parameters, which of them are required, what they
mean (docstring-parser reads Google, NumPy and reST style). pydantic turns that into JSON Schema and back: arguments
reach the function as the types it declares (an Enum member, a dataclass), not as bare JSON.
"""

import asyncio
import contextlib
import contextvars
import hashlib
import importlib.util
import inspect
import keyword
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from shared.errors import UserError
from step2_tool_calling.json_schema import UnusableError, self_contained
from step2_tool_calling.tool import NAME, Tool, ToolError

if TYPE_CHECKING:
    from pydantic import BaseModel

F = TypeVar("F", bound=Callable[..., Any])


def unsafe(function: F) -> F:
    """Mark a function that changes something outside or costs money: a person is asked before each call.

    @unsafe
    def send_mail(to: str, text: str) -> str: ...
    """
    function.unsafe = True  # type: ignore[attr-defined]
    return function


def from_function(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    unsafe: bool = False,
    timeout: float = 20.0,
    source: str = "built-in",
) -> Tool:
    """Make a tool of a typed function, sync or async.

    name: default the function's own. unsafe: ask a person first (as the decorator does). timeout: seconds; a sync
    function runs in a thread, which cannot be stopped: after its time the model goes on, and the thread ends by itself
    or with the program. source "built-in" is for this step's own tools: serve-mcp vouches for them.
    The description is the docstring's first paragraph. Results may be anything pydantic can write as JSON.
    Raises UserError, naming function, parameter and fix, for a signature that has no JSON Schema.
    """
    label = name or str(getattr(function, "__name__", "function"))
    if not re.match(NAME, label):
        raise UserError(f"tool name {label!r}: use letters, digits, _ and -, 64 at most")
    summary, notes = _read_docstring(function)
    names, model = _arguments_model(function, label)
    try:
        parameters = _schema(model, notes)
    except UnusableError as error:
        raise UserError(f"{label}: {error}; use simpler types") from None

    async def run(arguments: dict[str, Any]) -> Any:
        from pydantic import ValidationError
        from pydantic_core import PydanticSerializationError, to_jsonable_python

        try:
            parsed = model.model_validate(arguments)
        except ValidationError as error:  # what JSON Schema cannot express: own validators, dates that do not exist
            texts = [f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()[:3]]
            raise ToolError(f"invalid arguments for {label}: {'; '.join(texts)}") from None
        # Parameters that were not given are left to the function's own defaults.
        given = {names[key]: getattr(parsed, key) for key in names if key in parsed.model_fields_set}
        try:
            if inspect.iscoroutinefunction(function):
                result = await function(**given)
            else:
                result = await in_daemon_thread(function, given)
                if inspect.isawaitable(result):  # a decorator's plain wrapper around an async function
                    result = await result
        except ToolError:
            raise
        except (Exception, SystemExit) as error:
            raise ToolError(f"{label} failed: {type(error).__name__}: {error}") from error
        try:
            return result if isinstance(result, str) else to_jsonable_python(result, fallback=str)
        except (PydanticSerializationError, ValueError) as error:
            raise ToolError(f"{label} returned something that is not JSON: {error}") from None

    return Tool(
        name=label,
        description=summary,
        parameters=parameters,
        run=run,
        unsafe=unsafe or getattr(function, "unsafe", False),
        timeout=timeout,
        source=source,
    )


async def in_daemon_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a function in a thread of its own; return or raise what it does.

    asyncio.to_thread is no place for tools: asyncio.run and the interpreter wait for its threads, so one tool that
    hangs would keep the program from ending, and its pool also looks up host names, which hung tools would block.
    Nobody waits for a daemon thread: after a timeout or Ctrl-C its result is dropped.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not done.done():  # cancelled: by the timeout or Ctrl-C
            done.set_result((result, error))

    def work() -> None:
        result, failure = None, None
        try:
            result = function(**arguments)
        except BaseException as error:  # whatever it is, somebody waits for it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    name = str(getattr(function, "__name__", "function"))
    threading.Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True).start()
    result, failure = await done
    if failure is not None:
        raise failure
    return result


def load_file(path: str | Path) -> list[Tool]:
    """Make a tool of every public function that a Python file defines, in the order of definition.

    `__all__` narrows (or widens) the choice to the functions it names; a list `TOOLS` of functions or Tools replaces
    it. The file is run, with all that a Python file may do: load only files you would run yourself.
    Raises UserError for a file that is missing, is not Python, fails when imported or has no functions.
    """
    path = Path(path)
    module = _import(path)
    if (listed := getattr(module, "TOOLS", None)) is not None:
        if not isinstance(listed, list | tuple) or not all(isinstance(one, Tool) or callable(one) for one in listed):
            raise UserError(f"{path}: TOOLS must be a list of functions or Tools")
        tools = [
            replace(one, source=str(path)) if isinstance(one, Tool) else from_function(one, source=str(path))
            for one in listed
        ]
    else:
        tools = [from_function(function, source=str(path)) for function in _public_functions(module)]
    if not tools:
        raise UserError(f"{path} defines no public function; write one, or name its tools in a list TOOLS")
    return tools


def _read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph of the docstring and its remarks on parameters, each on one line."""
    from docstring_parser import ParseError, parse

    text = inspect.getdoc(function) or ""
    try:
        parsed = parse(text)
    except ParseError:  # a docstring is prose first; one that only looks like a style is still a description
        return " ".join(text.split("\n\n")[0].split()), {}
    summary = parsed.short_description or ""
    if parsed.long_description and not parsed.blank_after_short_description:  # the first paragraph has several lines
        summary += " " + parsed.long_description.split("\n\n")[0]
    notes = {}
    for parameter in parsed.params:
        for one in parameter.arg_name.split(","):  # NumPy style may describe "a, b" together
            notes[one.strip()] = " ".join((parameter.description or "").split())
    return " ".join(summary.split()), notes


def _arguments_model(function: Callable[..., Any], label: str) -> tuple[dict[str, str], "type[BaseModel]"]:
    """A pydantic model of the arguments, and which parameter each of its fields stands for.

    Fields have neutral names with the parameter's name as alias: `schema`, `copy` or `_x` are fine for a parameter
    but would hide a method of the model, or be private.
    """
    from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, create_model
    from pydantic.errors import PydanticUndefinedAnnotation

    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:  # whatever evaluating a quoted annotation can raise, NameError first
        raise UserError(f"{label}: cannot read its annotations ({error}); import the types they name") from None
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # int, max and others that are written in C
        raise UserError(f"{label} does not tell its parameters; wrap it in a function with typed parameters") from None
    names: dict[str, str] = {}
    fields: dict[str, Any] = {}
    for i, (name, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise UserError(f"{label}: parameter {stars}{name} has no fixed name; use a list or dict parameter")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(f"{label}: parameter {name} is positional-only; remove the / from the signature")
        if name not in hints:
            raise UserError(f"{label}: parameter {name} has no type; annotate it, for instance {name}: str")
        try:
            TypeAdapter(hints[name]).json_schema()  # alone, so that the message can name the parameter
        except (PydanticUserError, PydanticUndefinedAnnotation) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"{label}: parameter {name} has no JSON Schema ({reason}); use a JSON-like type, a dataclass or a "
                "pydantic model"
            ) from None
        default = ... if parameter.default is parameter.empty else parameter.default
        names[f"argument{i}"] = name
        fields[f"argument{i}"] = (hints[name], Field(default, alias=_argument_name(name)))
    return names, create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)


def _argument_name(parameter: str) -> str:
    """`from_` is how Python spells a parameter called `from` (PEP 8); the model is told `from`."""
    return parameter[:-1] if keyword.iskeyword(parameter[:-1]) and parameter.endswith("_") else parameter


def _schema(model: "type[BaseModel]", notes: dict[str, str]) -> dict[str, Any]:
    """The model's JSON Schema. notes: the docstring's remarks; a Field(description=...) wins over them."""
    from pydantic.json_schema import PydanticJsonSchemaWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # a default that is not JSON: optional all the same
        whole = model.model_json_schema()
    for name, schema in whole.get("properties", {}).items():
        if note := notes.get(name) or notes.get(f"{name}_"):
            schema.setdefault("description", note)
    schema = self_contained(whole, whole)
    return {"type": "object", "properties": {}, **schema}


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a Python file")
    # A name of its own, so that a file called json.py does not replace the library; registered while it runs and
    # after, because dataclasses and quoted annotations look their module up there.
    name = f"tools_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{path}{_line_of(error, path)}: {type(error).__name__}: {_first_line(error)}") from None
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """ " line 7": where in the file the error is, or came through; empty when it is nowhere in it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f" line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" line {lines[-1]}" if lines else ""


def _first_line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return (text.splitlines() or ["no message"])[0]


def _public_functions(module: ModuleType) -> list[Callable[..., Any]]:
    names = getattr(module, "__all__", None)
    functions = {name: value for name, value in vars(module).items() if inspect.isfunction(value)}
    if names is not None:
        if not isinstance(names, list | tuple):
            raise UserError(f"{module.__file__}: __all__ must be a list of names")
        return [function for name, function in functions.items() if name in names]
    own = {name: one for name, one in functions.items() if one.__module__ == module.__name__}
    return [function for name, function in own.items() if not name.startswith("_")]
