"""Tools from an OpenAPI 3 document: every operation of a described HTTP API becomes something the model may call.

    python -m step2_tool_calling tools --openapi https://example.com/openapi.json

An operation scatters its arguments over path, query, headers and body; a model gets one flat object. Reading the
document is in openapi_document.py, putting each value where it belongs in openapi_request.py. Specifications: OpenAPI
3.0.4 and 3.1.1 (spec.openapis.org).

Keys are read from the environment when a call is made, and never enter a schema, a prompt or an error message. The
variable is OPENAPI_<HOST>___<SCHEME>_TOKEN: scheme `api_key` of petstore.swagger.io reads
OPENAPI_PETSTORE_SWAGGER_IO___API_KEY_TOKEN, and on port 8443 OPENAPI_PETSTORE_SWAGGER_IO___8443___API_KEY_TOKEN. Host
and port are part of the name because the document chooses scheme and server both: one that could name any variable
could have your other keys sent to its own server. Over plain http, which anybody on the way can read, keys go to this
machine only.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from shared.errors import UserError
from shared.foreign_text import one_line
from shared.openai_server import is_loopback
from shared.terminal import say
from step2_tool_calling.json_schema import (
    Schema,
    UnusableError,
    as_description,
    require_valid,
    self_contained,
    tool_name,
)
from step2_tool_calling.openapi_document import (
    Document,
    dialect_30,
    dialect_31,
    is_url,
    load_document,
    merge_all_of,
    resolve,
    text_of,
)
from step2_tool_calling.openapi_request import (
    Client,
    Operation,
    Parameter,
    Secret,
    choose_keys,
    send,
    variable_of,
    wanted_keys,
)
from step2_tool_calling.tool import Tool

_METHODS = ("get", "head", "post", "put", "patch", "delete")
_SAFE = ("get", "head")  # by definition of the methods (RFC 9110, 9.2.1); all others ask a person first
_JSON = re.compile(r"(application/([\w.-]+\+)?json|application/\*|\*/\*)(\s*;.*)?", re.IGNORECASE)
# A server's address, strictly: what urllib and httpx could read differently (@, backslashes, other alphabets) decides
# which host gets the key that is named after it.
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"https?://(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/[^\s\\?#]*)?")
_MAX_REMARKS, _MAX_REMARK = 5, 400  # how many, and characters of each


async def load_openapi(source: str, client: Client) -> list[Tool]:
    """Make a tool of every operation of an OpenAPI 3.0 or 3.1 document, JSON or YAML.

    source: a file's path or an http(s) URL. client: sends the requests, the one for the document included.
    Operations that cannot be called with JSON (uploads, cookies) are skipped with a remark on stderr.
    Raises UserError when the document cannot be read, is not OpenAPI 3, or has nothing to call.
    """
    document, label = await load_document(source, client)
    tools: list[Tool] = []
    skipped: list[str] = []
    needed: Counter[str] = Counter()
    taken: set[str] = set()
    for method, path, item, details in _operations(document):
        try:
            operation = _operation(document, source if is_url(source) else None, method, path, item, details)
            parameters = _object_schema(operation)
        except UnusableError as error:
            skipped.append(f"{method.upper()} {path}: {error}")
            continue
        except (AttributeError, LookupError, TypeError, ValueError):
            # A list where the specification has an object, and so on: not worth a check at every step.
            skipped.append(f"{method.upper()} {path}: its description is malformed")
            continue
        operation = replace(operation, name=tool_name(operation.name, taken))
        if choose_keys(operation) is None:
            needed[wanted_keys(operation)] += 1
        tools.append(
            Tool(
                name=operation.name,
                description=_description(details),
                parameters=parameters,
                run=partial(send, operation, client),
                unsafe=method not in _SAFE,
                source=label,
            )
        )
    _remark(label, skipped, needed)
    if not tools:
        raise UserError(f"{label} describes no operation that can be called with JSON")
    return tools


def _operations(document: Document) -> Iterator[tuple[str, str, Document, Document]]:
    """(method, path, path item, operation) of everything the document describes."""
    for path, item in document["paths"].items():
        if not isinstance(item, dict):
            continue
        if "$ref" in item:
            try:
                item = resolve(item, document)
            except UnusableError as error:
                say("  " + one_line(f"{path} skipped: {error}", _MAX_REMARK))
                continue
        for method in _METHODS:
            if isinstance(item.get(method), dict):
                yield method, str(path), item, item[method]


def _operation(
    document: Document, base: str | None, method: str, path: str, item: Document, details: Document
) -> Operation:
    """Raises UnusableError when this operation cannot be called by us."""
    server = _server(document, base, item, details)
    if not path.startswith("/"):  # appended to the server, ".evil.org/" would make another host of it
        raise UnusableError("its path does not begin with /")
    adapt = dialect_30 if document["openapi"].startswith("3.0") else dialect_31
    parameters = _parameters(document, adapt, [*item.get("parameters", []), *details.get("parameters", [])])
    media_type, body_required, body = _body(document, adapt, details)
    declared = {one.name for one in parameters if one.location == "path"}
    for name in re.findall(r"{([^{}]+)}", path):
        if name not in declared:
            raise UnusableError(f"its path parameter {name} is not described")
    return Operation(
        name=text_of(details.get("operationId") or f"{method} {path}"),
        method=method.upper(),
        url=server + path.partition("#")[0],  # AWS tells operations of one path apart by a fragment
        parameters=tuple(_without_clashes(parameters + body)),
        keys=_keys(document, details, server),
        media_type=media_type,
        body_required=body_required,
    )


def _server(document: Document, base: str | None, item: Document, details: Document) -> str:
    """The address operations start from: the first server, its variables at their defaults, made absolute."""
    servers = details.get("servers") or item.get("servers") or document.get("servers") or [{"url": "/"}]
    variables = servers[0].get("variables", {})
    # All at once, because a default that is made of other variables could grow without end.
    url = re.sub(r"{([^{}]+)}", lambda match: text_of(variables[match[1]]["default"]), text_of(servers[0]["url"]))
    url = urljoin(base, url) if base else url
    if not _ADDRESS.fullmatch(url):
        raise UnusableError(f"its server {url!r} is not a plain http address (a relative one needs the document's URL)")
    return url.rstrip("/")


def _parameters(document: Document, adapt: Any, described: list[Any]) -> list[Parameter]:
    """Path, query and header parameters; an operation's own replace its path's of the same name and place."""
    found: dict[tuple[str, str], Parameter] = {}
    for node in described:
        node = resolve(node, document)
        name, location = text_of(node["name"]), node["in"]
        required = bool(node.get("required")) or location == "path"
        if location == "cookie":
            if required:
                raise UnusableError(f"it needs the cookie {name}")
            continue
        if location == "header" and name.lower() in ("accept", "content-type", "authorization"):
            continue  # the specification says to ignore these: other parts of the document govern them
        style = text_of(node.get("style") or ("form" if location == "query" else "simple"))
        if location != "query" and style != "simple":
            raise UnusableError(f"style {style} of its parameter {name} is not supported")
        content = node.get("content")
        schema = next(iter(content.values())).get("schema") if content else node.get("schema")
        schema = self_contained(schema or {}, document, adapt)
        if "description" in node and isinstance(schema, dict):
            schema = {**schema, "description": _one_line(node["description"])}
        found[location, name] = Parameter(
            argument=name,
            name=name,
            location=location,
            schema=schema if isinstance(schema, dict) else {},
            required=required,
            style=style,
            explode=bool(node.get("explode", style == "form")),
            as_json=bool(content),
        )
    return list(found.values())


def _body(document: Document, adapt: Any, details: Document) -> tuple[str | None, bool, list[Parameter]]:
    """(media type, whether it must be sent, its properties as parameters); a body that is no object stays whole."""
    if "requestBody" not in details:
        return None, False, []
    body = resolve(details["requestBody"], document)
    # Left out means "not required", but authors who leave it out nearly always need the body. Only an explicit
    # false is believed; a call without a needed body would fail every time.
    required = body.get("required") is not False
    content = body.get("content", {})
    media_type = next((name for name in content if _JSON.fullmatch(name)), None)
    if media_type is None:
        if required:
            raise UnusableError(f"its body is {' or '.join(content) or 'not described'}, not JSON")
        return None, False, []
    schema = self_contained(content[media_type].get("schema") or {}, document, adapt)
    schema = merge_all_of(schema) if isinstance(schema, dict) else {}
    sent_as = "application/json" if "*" in media_type else media_type
    flat = isinstance(schema.get("properties"), dict) and schema["properties"]
    if not flat or schema.get("additionalProperties") or schema.keys() & {"oneOf", "anyOf", "allOf", "not", "if"}:
        described = {"description": as_description(body["description"])} if "description" in body else {}
        return sent_as, required, [Parameter("body", "", "body", {**described, **schema}, required)]
    needed = schema.get("required", []) if required else []
    parameters = [
        Parameter(name, name, "body", one if isinstance(one, dict) else {}, name in needed)
        for name, one in schema["properties"].items()
    ]
    return sent_as, required, parameters


def _without_clashes(parameters: list[Parameter]) -> list[Parameter]:
    """Give arguments that share a name in different places the place as prefix: path_id, body_id."""
    count = Counter(one.argument for one in parameters)
    taken = set(count)
    result = []
    for one in parameters:
        argument = one.argument
        while count[one.argument] > 1 and argument in taken:
            argument = f"{one.location}_{argument}"
        taken.add(argument)
        result.append(replace(one, argument=argument))
    return result


def _object_schema(operation: Operation) -> Schema:
    """One schema for all arguments. Raises UnusableError when the document's own schemas are not JSON Schema."""
    schema: Schema = {
        "type": "object",
        "properties": {one.argument: one.schema for one in operation.parameters},
        "required": [one.argument for one in operation.parameters if one.required],
        "additionalProperties": False,
    }
    require_valid(schema)
    return schema


def _keys(document: Document, details: Document, server: str) -> tuple[tuple[Secret, ...], ...]:
    """The alternatives to authenticate, those we support. Raises UnusableError when none is."""
    address = urlsplit(server)
    host = address.hostname or ""
    port = address.port if address.port != (443 if address.scheme == "https" else 80) else None
    schemes = document.get("components", {}).get("securitySchemes", {})
    alternatives, refused = [], ""
    requirements = details.get("security", document.get("security")) or []
    if isinstance(requirements, dict):  # should be a list; the OpenAPI Initiative's own tic-tac-toe example has this
        requirements = [{name: scopes} for name, scopes in requirements.items()]
    for requirement in requirements:
        found = {name: resolve(schemes[name], document) if name in schemes else {} for name in requirement}
        secrets = [_secret(scheme, variable_of(host, name, port)) for name, scheme in found.items()]
        if None in secrets:
            refused = refused or f"its authentication {next(iter(requirement))!r} is not supported or not described"
        elif secrets and address.scheme == "http" and not is_loopback(host):
            refused = refused or f"it would send a key to {host} over plain http, where others can read it"
        else:
            alternatives.append(tuple(secret for secret in secrets if secret))
    if refused and not alternatives:
        raise UnusableError(refused)
    return tuple(alternatives)


def _secret(scheme: Mapping[str, Any], variable: str) -> Secret | None:
    kind, place = scheme.get("type"), scheme.get("in")
    if kind == "apiKey" and place == "header":
        return Secret(variable, "header", text_of(scheme["name"]))
    if kind == "apiKey" and place == "query":
        return Secret(variable, "query", text_of(scheme["name"]))
    # OAuth and OpenID Connect end in a bearer token too; getting one is the user's business.
    if kind in ("oauth2", "openIdConnect") or (
        kind == "http" and text_of(scheme.get("scheme", "")).lower() == "bearer"
    ):
        return Secret(variable, "header", "Authorization", "Bearer ")
    return None


def _description(details: Document) -> str:
    """Summary and description; the text is the document's author's, not ours, and goes into the prompt."""
    summary, description = (_one_line(details.get(key)) for key in ("summary", "description"))
    joined = description if description.startswith(summary) else f"{summary.rstrip('.')}. {description}"
    return as_description(joined.removesuffix(". ").strip())


def _one_line(text: Any) -> str:
    return " ".join(as_description(text).split())


def _remark(label: str, skipped: list[str], needed: Counter[str]) -> None:
    for text in skipped[:_MAX_REMARKS]:
        say("  " + one_line(f"{label}: skipped {text}", _MAX_REMARK))
    if len(skipped) > _MAX_REMARKS:
        say(f"  {label}: skipped {len(skipped) - _MAX_REMARKS} more operations")
    for variables, count in needed.items():
        remark = f"{label}: {count} operation{'s' if count > 1 else ''} will fail without a key; set {variables}"
        say("  " + one_line(remark, _MAX_REMARK))
