"""Reading an OpenAPI document: fetch, parse, follow references, and translate its dialect into plain JSON Schema.

openapi.py makes tools of what is read here. OpenAPI 3.1 uses JSON Schema 2020-12; 3.0 has a dialect of its own
(spec.openapis.org/oas/v3.0.4, "Schema Object").
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.errors import UserError
from shared.foreign_text import one_line
from step2_tool_calling.json_schema import Schema, UnusableError, lookup
from step2_tool_calling.openapi_request import Client
from step2_tool_calling.tool import ToolError

Document = dict[str, Any]

MAX_ERROR = 400  # characters


async def load_document(source: str, client: Client) -> tuple[Document, str]:
    """Read a document from a file or an http(s) URL; return it and a name for it that is fit to be shown.

    Raises UserError when it cannot be read, is neither JSON nor YAML, or is not OpenAPI 3.
    """
    if is_url(source):
        try:
            parts = urlsplit(source)
        except ValueError as error:
            raise UserError(f"--openapi: this is not a URL ({error})") from None  # not quoted: it may hold a key
        label = f"{parts.hostname or ''}{parts.path}"  # without userinfo and query: the name is shown and logged
        return _parse(await _fetch(source, label, client), label), label
    return _parse(_read(source), source), source


def is_url(source: str) -> bool:
    """Whether a document is to be fetched rather than opened."""
    return source.startswith(("http://", "https://"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give an OpenAPI file or a URL") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


async def _fetch(url: str, label: str, client: Client) -> str:
    try:
        response = await client.request("GET", url)
    except ToolError as error:
        raise UserError(
            f"cannot fetch {label}: {one_line(str(error), MAX_ERROR)}; or save it and give the file", exit_code=1
        ) from None
    if response.status != 200:
        raise UserError(f"cannot fetch {label}: HTTP status {response.status}", exit_code=1)
    return response.text


def _parse(text: str, label: str) -> Document:
    document: Any
    try:
        document = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{label} is neither JSON nor YAML: {one_line(str(error), MAX_ERROR)}") from None
    version = document.get("openapi") if isinstance(document, dict) else None
    if isinstance(document, dict) and "swagger" in document:
        raise UserError(f"{label} is Swagger 2.0; convert it to OpenAPI 3 first (converter.swagger.io)")
    if not isinstance(version, str) or not version.startswith("3."):
        raise UserError(f"{label} is not an OpenAPI 3 document: it has no `openapi: 3.x`")
    if not isinstance(document.get("paths"), dict):
        raise UserError(f"{label} describes no paths")
    return dict(document)


def _yaml(text: str) -> Any:
    """Read YAML as the specification means it: version 1.2's JSON values, so no dates, and `on` is a word."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one is 10 times faster
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in ("timestamp", "bool")]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false|True|False)$"), list("tfTF"))
    try:
        return yaml.load(text, Loader)  # a SafeLoader: builds no Python objects
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def resolve(node: Any, document: Document) -> Document:
    """Follow a reference to a parameter, body, path item or security scheme; UnusableError when there is none."""
    for _ in range(10):
        if not isinstance(node, dict):
            raise UnusableError("its description is malformed: no object where one belongs")
        if "$ref" not in node:
            return dict(node)
        node = lookup(text_of(node["$ref"]), document)
    raise UnusableError("its references lead in a circle")


def text_of(value: Any) -> str:
    """A name or an address of the document; YAML may have read it as a number.

    Raises UnusableError for a list or an object: written out as text, YAML's aliases can make it endless.
    """
    if not isinstance(value, str | int | float):
        raise UnusableError("its description is malformed: no text where one belongs")
    return str(value)


def merge_all_of(schema: Schema) -> Schema:
    """Write an allOf of objects, the specification's way to inherit, as one object; leave any other as it is."""
    parts = [merge_all_of(part) if isinstance(part, dict) else {} for part in schema.get("allOf", [])]
    if not parts or not all(part.keys() <= {"type", "properties", "required", "description"} for part in parts):
        return schema
    merged: Schema = {"type": "object", "properties": {}, "required": []}
    for part in [*parts, {key: value for key, value in schema.items() if key != "allOf"}]:
        merged["properties"] |= part.get("properties", {})
        merged["required"] += part.get("required", [])
        merged |= {key: value for key, value in part.items() if key not in ("type", "properties", "required")}
    return merged


def dialect_31(node: Schema) -> Schema:
    """What is true of every OpenAPI 3: properties that only responses have are not asked for."""
    properties = node.get("properties")
    if isinstance(properties, dict):
        hidden = [name for name, one in properties.items() if isinstance(one, dict) and one.get("readOnly")]
        node["properties"] = {name: one for name, one in properties.items() if name not in hidden}
        if isinstance(node.get("required"), list):
            node["required"] = [name for name in node["required"] if name not in hidden]
    node.pop("discriminator", None)
    return node


def dialect_30(node: Schema) -> Schema:
    """OpenAPI 3.0's own keywords in JSON Schema: `nullable`, and exclusive limits that are flags."""
    node = dialect_31(node)
    for flag, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(flag), bool) and node.pop(flag) and limit in node:
            node[flag] = node.pop(limit)
    if not node.pop("nullable", False):
        return node
    if isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
        if "enum" in node and None not in node["enum"]:
            node["enum"] = [*node["enum"], None]
        return node
    return {"anyOf": [node, {"type": "null"}]} if node.keys() & {"allOf", "anyOf", "oneOf"} else node
