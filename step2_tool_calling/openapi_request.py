"""From arguments to an HTTP request: the half of openapi.py that runs when a model calls an operation.

Styles are those of OpenAPI 3.1.1, "Style Examples"; their encoding is RFC 6570's. Values come from a model and the
address from a stranger's document, so a value may never change which operation is called: path values are
percent-encoded whole, and one that would climb the path (..) or empty a segment is refused.
"""

import json as json_format
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlencode

from step2_tool_calling.json_schema import Schema
from step2_tool_calling.tool import ToolError

Location = Literal["path", "query", "header", "body"]

_MAX_EXCERPT = 300  # characters of an error page that the model gets to read


class Response(Protocol):
    """What comes back from an HTTP client."""

    @property
    def status(self) -> int: ...

    @property
    def text(self) -> str: ...


class Client(Protocol):
    """What sends the requests: http_client.HttpClient, with its timeouts, retries and address rules."""

    async def request(
        self, method: str, url: str, *, params: Any = None, headers: Any = None, json: Any = None
    ) -> Response:
        """Send one request. Raises ToolError when there is no response to return."""


@dataclass(frozen=True)
class Parameter:
    """One argument. argument: its name for the model; name, location: where the value goes.

    name is empty when the value is the whole body. as_json: the value is sent as JSON text (`content` in OpenAPI).
    """

    argument: str
    name: str
    location: Location
    schema: Schema
    required: bool = False
    style: str = "form"
    explode: bool = True
    as_json: bool = False


@dataclass(frozen=True)
class Secret:
    """A key that is read from the environment and sent in a header or in the query."""

    variable: str
    location: Literal["header", "query"]
    name: str
    prefix: str = ""


@dataclass(frozen=True)
class Operation:
    """One operation, ready to be called. url: the server's and the path's, with {placeholders}.

    keys: alternatives, each a list of secrets that are sent together; an empty list means no key is needed.
    media_type: of the body; None without one. body_required: an empty object is sent rather than none.
    """

    name: str
    method: str
    url: str
    parameters: tuple[Parameter, ...]
    keys: tuple[tuple[Secret, ...], ...] = ()
    media_type: str | None = None
    body_required: bool = False


async def send(operation: Operation, client: Client, arguments: dict[str, Any]) -> Any:
    """Call an operation; return the response's JSON, or its text when it is not JSON.

    Raises ToolError for a refused value, a missing key, and any status but 2xx, with the start of the body.
    """
    keys = choose_keys(operation)
    if keys is None:
        wanted = wanted_keys(operation)
        raise ToolError(f"{operation.name} needs a key that only the user can give: set {wanted} in the environment")
    secrets = [secret for _, secret in keys]
    url = build_url(operation, arguments)
    query = [(key.name, secret) for key, secret in keys if key.location == "query"]
    if query:
        url += ("&" if "?" in url else "?") + urlencode(query)
    headers = _headers(operation, arguments)
    headers |= {key.name: key.prefix + secret for key, secret in keys if key.location == "header"}
    try:
        response = await client.request(
            operation.method, url, headers=headers or None, json=_body(operation, arguments)
        )
    except ToolError as error:
        raise ToolError(_hide(str(error), secrets)) from None  # its message, and its cause, may quote the URL
    text = _hide(response.text, secrets)  # some services answer with the request they got
    if not 200 <= response.status < 300:
        excerpt = " ".join(text.split())[:_MAX_EXCERPT]
        raise ToolError(f"{operation.name}: HTTP status {response.status}: {excerpt or 'no explanation'}")
    if not text.strip():
        return {"status": response.status}
    try:
        return json_format.loads(text)
    except json_format.JSONDecodeError:
        return text


def build_url(operation: Operation, arguments: dict[str, Any]) -> str:
    """The address with path and query filled in. Raises ToolError for a path value that would change the path."""
    url, query = operation.url, []
    for parameter in operation.parameters:
        value = arguments.get(parameter.argument)
        if parameter.location == "path":
            text = _simple(parameter, value, encode=True)
            if text in ("", ".", ".."):
                raise ToolError(f"{parameter.argument}: {value!r} cannot be part of an address; give another value")
            url = url.replace("{" + parameter.name + "}", text)
        elif parameter.location == "query" and value is not None:
            query += _query(parameter, value)
    if any(part in (".", "..") for part in url.split("/")[3:]):  # "{a}{b}" with two dots
        raise ToolError(f"{operation.name}: these values cannot be part of an address; give others")
    if not query:
        return url
    return url + ("&" if "?" in url else "?") + "&".join(query)  # a path of the document may have a query of its own


def _query(parameter: Parameter, value: Any) -> list[str]:
    """The name=value pairs of one query parameter, encoded."""
    name = _encode(parameter.name)
    if parameter.as_json:
        return [f"{name}={_encode(json_format.dumps(value, ensure_ascii=False))}"]
    if isinstance(value, dict):
        if parameter.style == "deepObject":
            pairs = [(f"{name}[{_encode(key)}]", item) for key, item in value.items()]
        elif parameter.explode:
            pairs = [(_encode(key), item) for key, item in value.items()]
        else:
            return [f"{name}={','.join(_encode(_text(part)) for pair in value.items() for part in pair)}"]
        return [
            f"{key}={_encode(_text(one))}"
            for key, item in pairs
            for one in (item if isinstance(item, list) else [item])
        ]
    if isinstance(value, list):
        if not value:
            return []
        items = [_encode(_text(item)) for item in value]
        if parameter.explode:
            return [f"{name}={item}" for item in items]
        separator = {"spaceDelimited": "%20", "pipeDelimited": "%7C"}.get(parameter.style, ",")
        return [f"{name}={separator.join(items)}"]
    return [f"{name}={_encode(_text(value))}"]


def _simple(parameter: Parameter, value: Any, *, encode: bool) -> str:
    """Style "simple", of path and header values: commas between items. encode: percent-encode each of them."""
    write = (lambda item: _encode(_text(item))) if encode else _text
    if parameter.as_json:
        return write(json_format.dumps(value, ensure_ascii=False))
    if isinstance(value, dict):
        joint = "=" if parameter.explode else ","
        return ",".join(f"{write(key)}{joint}{write(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(write(item) for item in value)
    return write(value)


def _headers(operation: Operation, arguments: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for parameter in operation.parameters:
        value = arguments.get(parameter.argument)
        if parameter.location != "header" or value is None:
            continue
        text = _simple(parameter, value, encode=False)
        if not (text.isascii() and text.isprintable()):  # a line break would begin another header
            raise ToolError(f"{parameter.argument}: only printable ASCII characters can be sent in a header")
        headers[parameter.name] = text
    if operation.media_type not in (None, "application/json"):
        headers["Content-Type"] = str(operation.media_type)
    return headers


def _body(operation: Operation, arguments: dict[str, Any]) -> Any:
    given = [one for one in operation.parameters if one.location == "body" and one.argument in arguments]
    if given and not given[0].name:
        return arguments[given[0].argument]
    body = {one.name: arguments[one.argument] for one in given}
    return body if body or operation.body_required else None


def choose_keys(operation: Operation) -> list[tuple[Secret, str]] | None:
    """The keys to send, with their values; [] when none is needed, None when one is and no alternative is complete."""
    for alternative in sorted(operation.keys, key=len, reverse=True):  # a key, where there is one, before anonymity
        values = [(key, os.environ.get(key.variable, "").strip()) for key in alternative]
        if all(value for _, value in values):
            return values
    return None if operation.keys else []


def wanted_keys(operation: Operation) -> str:
    """The variables to set so that an operation can be called."""
    return " and ".join(key.variable for key in operation.keys[0])


def variable_of(host: str, scheme: str, port: int | None = None) -> str:
    """The environment variable that holds the key for one server's security scheme. port: unless it is the default.

    No two servers share a name, or one could ask for another's key (api-x.com for api.x.com's, x.com.app for that of a
    scheme app_… of x.com, another user's server on a port of this machine): . is _, - is __, and three _ end the host
    and the port, which these cannot make (no label ends in -).
    """
    name = host.upper().replace("-", "__").replace(".", "_").replace(":", "_")
    where = name if port is None else f"{name}___{port}"
    return f"OPENAPI_{where}___{re.sub('[^A-Z0-9]+', '_', scheme.upper()).strip('_')}_TOKEN"


def _hide(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        for written in (secret, quote(secret, safe=""), urlencode({"": secret})[1:]):
            text = text.replace(written, "[secret]")
    return text


def _encode(text: str) -> str:
    return quote(text, safe="")


def _text(value: Any) -> str:
    """A value as it is written in an address: JSON's true and false, whole numbers without a point."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json_format.dumps(value, ensure_ascii=False)
