"""Make a JSON Schema from elsewhere fit for a tool: self-contained, short, and safe to validate with.

Function signatures, OpenAPI documents and MCP servers all describe arguments in JSON Schema, with references into a
larger document. A tool's schema is cut out and put into prompts and grammars, where those references lead nowhere, so
they are replaced by what they point at. Foreign schemas are input like any other: they may be endless, point at a web
address that a validator would fetch, keep it busy for years with a regular expression, or speak to the model.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from shared.foreign_text import printable, unmarked

Schema = dict[str, Any]

# Keywords that hold schemas, by shape (JSON Schema 2020-12, core 10 and 11). All others hold data.
_MAPS = {"properties", "patternProperties", "dependentSchemas"}
_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_SINGLE = {
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
# Dropped: definitions are inlined, dynamic references could lead a validator to the web, and the rest tells a model
# nothing about what to send, and costs tokens.
_DROPPED = {
    "$defs", "definitions", "$schema", "$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef", "$comment",
    "title", "example", "xml", "externalDocs",
}  # fmt: skip
# Keywords that refuse more when the schemas inside allow more. Where one of those had to lose something, they go.
_EXCLUDING = {"not", "if", "oneOf"}
# Keywords that may stand beside $ref without narrowing it, so the two can be one object.
_REMARKS = {"description", "default", "examples", "deprecated", "readOnly", "writeOnly"}

# References to references can grow exponentially ("billion laughs"), and so can YAML's aliases in an enum or a default.
_MAX_NODES = 5_000
_MAX_DEPTH = 60
_MAX_DATA = 2_000  # characters of JSON, for each enum, default, const and the like
_MAX_SCHEMA = 100_000  # characters of JSON: some 30,000 tokens for one tool, more than any model should be given
_MAX_PATTERN = 100  # characters
MAX_DESCRIPTION = 1000  # characters; OpenAI refuses more than 1024


class UnusableError(Exception):
    """A schema, or what it belongs to, cannot become a tool; the message says why, to follow the thing's name."""


def as_description(text: Any) -> str:
    """Return what a document or a server says about a tool or an argument, fit for the prompt and for the terminal.

    At most 1,000 characters; "" for what is no text (YAML can put a list here that its aliases make endless).
    """
    return unmarked(printable(text[:MAX_DESCRIPTION]))[:MAX_DESCRIPTION] if isinstance(text, str) else ""


def self_contained(schema: Any, root: Mapping[str, Any], adapt: Callable[[Schema], Schema] = lambda node: node) -> Any:
    """Return a copy of `schema` with its references into `root` replaced by their targets and titles removed.

    adapt: changes a copy of each object before it is walked (openapi.py converts OpenAPI 3.0's dialect with it).
    A reference that leads back to itself becomes {}, which allows anything: a tree of any depth cannot be written
    out. Whoever runs the tool still checks what is below. Left out are data of more than 2,000 characters, and regular
    expressions that are not certain to be quick: those of more than 100 characters, or with more than one group, a
    repeated group, a back-reference, or more than one `*`, `+`, `?` or `{m,n}`. What remains takes Python's `re` at
    most quadratic time; to tell harmless ones among the others would take an analysis of their automata.
    Raises UnusableError for a reference that is not in `root` and for a schema that grows out of bounds.
    """
    nodes = lost = 0

    def walk(node: Any, trail: tuple[str, ...], depth: int) -> Any:
        nonlocal nodes, lost
        nodes += 1
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise UnusableError("its schema is too large to write out")
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise UnusableError("its schema is not valid (it has something else where a schema belongs)")
        if isinstance(node.get("$ref"), str):
            return follow(node, trail, depth)
        node = adapt(dict(node))
        result: Schema = {}
        for key, value in node.items():
            if key in _DROPPED or key.startswith("x-"):
                continue
            lost_before = lost
            if key in _MAPS and isinstance(value, dict):
                kept = [name for name in value if key != "patternProperties" or _is_quick(name)]
                lost += len(value) - len(kept)
                walked: Any = {str(name): walk(value[name], trail, depth + 1) for name in kept}
            elif key in _LISTS and isinstance(value, list):
                walked = [walk(child, trail, depth + 1) for child in value]
            elif key in _SINGLE:
                walked = walk(value, trail, depth + 1)
            elif key == "description":
                walked = as_description(value)  # "" for what is no text
            elif (_is_quick if key == "pattern" else _is_short)(value):
                walked = value
            else:
                lost += 1
                continue
            if lost == lost_before or key not in _EXCLUDING:
                result[key] = walked
        if len(result.get("patternProperties", {})) < len(node.get("patternProperties", {})):
            result.pop("additionalProperties", None)  # "no others" would exclude what the lost pattern allowed
        return result

    def follow(node: Schema, trail: tuple[str, ...], depth: int) -> Any:
        nonlocal lost
        reference = node["$ref"]
        beside = {key: value for key, value in node.items() if key != "$ref" and key not in _DROPPED}
        beside = walk(beside, trail, depth + 1) if beside else {}
        if reference in trail:
            target: Any = {}
            lost += 1
        else:
            target = walk(lookup(reference, root), (*trail, reference), depth + 1)
        if not beside:
            return target
        if set(beside) <= _REMARKS and isinstance(target, dict):
            return target | beside
        return {"allOf": [target, beside]}

    return walk(schema, (), 0)


def require_valid(schema: Any) -> None:
    """Raise UnusableError unless this is a JSON Schema of type object that can be put into a prompt.

    A description is cleaned (`as_description`), but names and values must reach the server as they are: a schema that
    holds a chat template's tokens in them is refused.
    """
    import jsonschema

    if not isinstance(schema, dict):
        raise UnusableError("its schema is not an object")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except jsonschema.SchemaError as error:
        raise UnusableError(f"its schema is not valid ({error.message})") from None
    except (TypeError, ValueError, RecursionError):
        raise UnusableError("its schema is not JSON") from None
    if len(text) > _MAX_SCHEMA:
        raise UnusableError("its schema is too large")
    if unmarked(text) != text:
        raise UnusableError("its schema holds the special tokens of a chat template")


def lookup(reference: str, root: Mapping[str, Any]) -> Any:
    """What a local reference ("#/components/schemas/Pet", RFC 6901) points at. Raises UnusableError for nothing."""
    shown = repr(reference[:100])
    if reference != "#" and not reference.startswith("#/"):
        # Another file, another host: never fetched, or a document could make us read addresses of its choice.
        raise UnusableError(f"its reference {shown} leads outside the document")
    found: Any = root
    for part in unquote(reference)[2:].split("/") if reference != "#" else []:  # it is a URL's fragment: %20
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part in map(str, range(len(found))):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            raise UnusableError(f"its reference {shown} leads nowhere")
    return found


def _is_quick(pattern: Any) -> bool:
    """Whether a regular expression is one of those that `self_contained` keeps."""
    if not isinstance(pattern, str) or len(pattern) > _MAX_PATTERN:
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError):  # ECMA-262 syntax that Python lacks (\p{L}), a{99999999999}
        return False
    # Escapes and classes each stand for one character; "(?:" only groups, and other "(?" are left out.
    bare = re.sub(r"(?s)\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern).replace("(?:", "(")
    repetitions = re.findall(r"[*+?]|{\d*,\d*}", bare)
    refused = re.search(r"\(\?|\)[*+?{]|{\d{4}", bare) or re.search(r"\\[1-9]", pattern)
    return bare.count("(") <= 1 and len(repetitions) <= 1 and not refused


def _is_short(value: Any) -> bool:
    """Whether a value is JSON of at most 2,000 characters or so, found out in as many steps.

    YAML's aliases make a value that is small in memory and endless when written out, and YAML has values that JSON
    does not (dates, NaN, integers of any length).
    """
    size, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, float):
            size += 0 if math.isfinite(one) else _MAX_DATA
        elif isinstance(one, int):
            size += one.bit_length() // 3
        elif isinstance(one, str):
            size += len(one)
        elif one is not None:
            return False
        size += 2
        if size > _MAX_DATA:
            return False
    return True


def tool_name(text: str, taken: set[str]) -> str:
    """Make a legal tool name (tool.NAME) of any text, add it to `taken` and return it.

    Two texts may become the same name ("a.b" and "a/b"); the later one gets a number.
    """
    base = re.sub(r"[^a-zA-Z0-9_-]+", "_", text).strip("_")[:64] or "tool"
    name, number = base, 2
    while name in taken:
        suffix = f"_{number}"
        name, number = base[: 64 - len(suffix)] + suffix, number + 1
    taken.add(name)
    return name
