"""Make a JSON Schema from elsewhere fit for a tool: self-contained, short, and safe to validate with.

Function signatures, OpenAPI documents and MCP servers all describe arguments in JSON Schema, with references into a
larger document. A tool's schema is cut out and put into prompts and grammars, where those references lead nowhere, so
they are replaced by what they point at. Foreign schemas are input like any other: they may be endless, or point at a
web address that a validator would fetch.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]

# Keywords that hold schemas, by shape (JSON Schema 2020-12, core 10 and 11). All others hold data and stay as they are.
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
# Keywords that may stand beside $ref without narrowing it, so the two can be one object.
_REMARKS = {"description", "default", "examples", "deprecated", "readOnly", "writeOnly"}

# References to references can grow exponentially ("billion laughs"). 5,000 schemas are some 100 kB of JSON in the
# prompt, for one tool: more than any model should be given.
_MAX_NODES = 5_000
_MAX_DEPTH = 60


class UnusableError(Exception):
    """A schema, or what it belongs to, cannot become a tool; the message says why, to follow the thing's name."""


def self_contained(schema: Any, root: Mapping[str, Any], adapt: Callable[[Schema], Schema] = lambda node: node) -> Any:
    """Return a copy of `schema` with its references into `root` replaced by their targets and titles removed.

    adapt: changes a copy of each object before it is walked (openapi.py converts OpenAPI 3.0's dialect with it).
    A reference that leads back to itself becomes {}, which allows anything: a tree of any depth cannot be written
    out. Whoever runs the tool still checks what is below. Raises UnusableError for a reference that is not in `root`
    and for a schema that grows out of bounds.
    """
    nodes = 0

    def walk(node: Any, trail: tuple[str, ...], depth: int) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise UnusableError("its schema is too large to write out")
        if not isinstance(node, dict):  # true, false, or nonsense that check_schema will find
            return node
        if isinstance(node.get("$ref"), str):
            return follow(node, trail, depth)
        node = adapt(dict(node))
        result: Schema = {}
        for key, value in node.items():
            if key in _DROPPED or key.startswith("x-"):
                continue
            if key in _MAPS and isinstance(value, dict):
                kept = value if key != "patternProperties" else filter(_compiles, value)
                result[key] = {name: walk(value[name], trail, depth + 1) for name in kept}
            elif key in _LISTS and isinstance(value, list):
                result[key] = [walk(child, trail, depth + 1) for child in value]
            elif key in _SINGLE:
                result[key] = walk(value, trail, depth + 1)
            elif key == "pattern" and not _compiles(value):
                continue  # ECMA-262 syntax that Python lacks (\p{L}): the validator would die of it
            else:
                result[key] = value
        return result

    def follow(node: Schema, trail: tuple[str, ...], depth: int) -> Any:
        reference = node["$ref"]
        beside = {key: value for key, value in node.items() if key != "$ref" and key not in _DROPPED}
        if reference in trail:
            target: Any = {}
        else:
            target = walk(lookup(reference, root), (*trail, reference), depth + 1)
        if not beside:
            return target
        if set(beside) <= _REMARKS and isinstance(target, dict):
            return target | beside
        return {"allOf": [target, walk(beside, trail, depth + 1)]}

    return walk(schema, (), 0)


def lookup(reference: str, root: Mapping[str, Any]) -> Any:
    """What a local reference ("#/components/schemas/Pet", RFC 6901) points at. Raises UnusableError for nothing."""
    if reference != "#" and not reference.startswith("#/"):
        # Another file, another host: never fetched, or a document could make us read addresses of its choice.
        raise UnusableError(f"its reference {reference!r} leads outside the document")
    found: Any = root
    for part in reference[2:].split("/") if reference != "#" else []:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            raise UnusableError(f"its reference {reference!r} leads nowhere")
    return found


def _compiles(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError):
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
