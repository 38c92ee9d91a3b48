"""Tools of any MCP server: start it, or reach it by URL, and use its tools like our own.

    python -m step2_tool_calling ask "What is 2 + 3?" --mcp "python my_server.py"

The Model Context Protocol (modelcontextprotocol.io) gives tools a common wire format: JSON-RPC over a child process's
stdin and stdout, or over HTTP. The official package speaks it; this file turns what it lists into `Tool`s.

A server is a program somebody else wrote. It gets none of our environment but PATH, HOME, USER, LOGNAME, SHELL and
TERM (so no OPENAI_API_KEY); what it needs beyond that, give on its command line: --mcp "env KEY=... server".
Its stderr goes to a file that is read only to explain a failure. The URL is the person's own, so unlike a URL that a
model or a document chose it may be on this machine, where most MCP servers are.
"""

import asyncio
import logging
import os
import shlex
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.errors import UserError
from shared.foreign_text import one_line
from shared.terminal import say
from step2_tool_calling.json_schema import UnusableError, as_description, require_valid, self_contained, tool_name
from step2_tool_calling.tool import Tool, ToolError

if TYPE_CHECKING:
    import mcp_types
    from mcp import Client

CONNECT_TIMEOUT = 15.0  # seconds; a server that npx or uvx has to download first needs several
_MAX_PAGES = 100  # of a tool list: a server could go on for ever
_MAX_ERROR = 500  # characters of a server's error that the model or the person gets to read
_MAX_NAME = 100  # characters of its name and its tools' names


@asynccontextmanager
async def connect_mcp(target: str) -> AsyncIterator[list[Tool]]:
    """Yield the tools of an MCP server, connected for as long as the block lasts.

    target: an http(s) URL (streamable HTTP), or a command line, split like a shell would but run without one.
    Two servers may have tools of the same name; telling them apart is left to the caller.
    Raises UserError, with the server's last words, when it does not start or answer within 15 s.
    """
    with tempfile.TemporaryFile() as errors:
        label, transport = _transport(target, errors)
        ready: asyncio.Future[tuple[Client, list[mcp_types.Tool]]] = asyncio.get_running_loop().create_future()
        done = asyncio.Event()
        # The package ties a connection to the task that opened it: an exception in our caller's block would come out
        # wrapped in exception groups, and a dying server would cancel the caller. A task of its own keeps them apart.
        owner = asyncio.create_task(_hold(transport, ready, done))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                client, listed = await ready
        except TimeoutError:
            raise UserError(
                f"the MCP server {label} did not answer within {CONNECT_TIMEOUT:g} s", exit_code=1
            ) from None
        except Exception as error:  # what _hold met: spawning, HTTP, protocol and more, each library with its own types
            reason = one_line(_last_line(errors) or _reason(error), _MAX_ERROR)
            raise UserError(f"cannot connect to the MCP server {label}: {reason}", exit_code=1) from None
        else:
            yield _tools(client, listed, label)
        finally:
            done.set()
            if not ready.done() or ready.cancelled():
                owner.cancel()
            await asyncio.wait([owner])  # at most a few seconds: the package then kills the process


def _transport(target: str, errors: IO[bytes]) -> tuple[str, Any]:
    """A name for the server that is fit to be shown, and what the package's client connects to."""
    # Python prints a library's warnings, tracebacks included, to our terminal unless somebody handles them.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    if target.startswith(("http://", "https://")):
        try:
            return urlsplit(target).hostname or "without a name", target
        except ValueError as error:
            raise UserError(f"--mcp: this is not a URL ({error})") from None  # not quoted: it may hold a key
    from mcp import StdioServerParameters, stdio_client

    try:
        words = shlex.split(target)
    except ValueError as error:
        raise UserError(f"--mcp {target!r} is not a command line: {str(error).lower()}") from None
    if not words:
        raise UserError("--mcp needs a command line or a URL")
    # "python server.py", "uvx mcp-server-time"; never the whole line: it may hold a key, and the name is shown.
    named = [word for word in words if word != "env" and "=" not in word][:2]
    label = " ".join(word.rpartition("/")[2] for word in named if not word.startswith("-")) or words[0]
    parameters = StdioServerParameters(command=words[0], args=words[1:])
    return label, stdio_client(parameters, errlog=errors)  # type: ignore[arg-type]  # it needs no more than a fileno


async def _hold(
    transport: Any, ready: "asyncio.Future[tuple[Client, list[mcp_types.Tool]]]", done: asyncio.Event
) -> None:
    """Open the connection, hand over client and tool list, keep it open until `done`."""
    from mcp import Client

    try:
        async with Client(transport) as client:
            listed: list[mcp_types.Tool] = []
            cursor = None
            for _ in range(_MAX_PAGES):
                page = await client.list_tools(cursor=cursor)
                listed += page.tools
                if (cursor := page.next_cursor) is None:
                    break
            ready.set_result((client, listed))
            await done.wait()
    except Exception as error:  # after `ready`: the server died, and the next call will say so
        if not ready.done():
            ready.set_exception(error)


def _tools(client: "Client", listed: "list[mcp_types.Tool]", label: str) -> list[Tool]:
    name = one_line(client.server_info.name, _MAX_NAME) if client.server_info else label
    tools: list[Tool] = []
    taken: set[str] = set()
    for offered in listed:
        try:
            parameters = self_contained(offered.input_schema, offered.input_schema)
            require_valid(parameters)
        except UnusableError as error:
            say(f"  MCP server {name}: skipped {one_line(offered.name, _MAX_NAME)}: {one_line(str(error), _MAX_ERROR)}")
            continue
        annotations = offered.annotations
        tools.append(
            Tool(
                name=tool_name(offered.name, taken),
                description=as_description(offered.description or offered.title),
                parameters={"properties": {}, **parameters},
                run=partial(_call, client, name, offered.name),
                # Safe means that the server says the tool only reads. Most servers say nothing, and by the
                # specification nothing means "may be destructive". It is a hint: a server can lie, so approval is
                # protection from accidents, not from malice; for that, do not start the server.
                unsafe=not (annotations and annotations.read_only_hint is True),
                source=f"MCP server {name}",
            )
        )
    return tools


async def _call(client: "Client", server: str, name: str, arguments: dict[str, Any]) -> Any:
    """Call a tool; return its structured content where it has one, else its text. Raises ToolError."""
    from mcp_types import CONNECTION_CLOSED

    try:
        # The limit holds when nobody else sets one; the loop's own (Tool.timeout) is shorter, and cancels the call.
        result = await client.call_tool(name, arguments, read_timeout_seconds=60)
    except Exception as error:  # protocol errors, a lost connection, a result that breaks its own schema
        if getattr(error, "code", None) == CONNECTION_CLOSED:
            raise ToolError(f"the MCP server {server} has stopped; none of its tools can be used any more") from None
        raise ToolError(f"{name} of the MCP server {server} failed: {_reason(error)[:_MAX_ERROR]}") from None
    text = "\n".join(_text_of(block) for block in result.content)
    if result.is_error:
        raise ToolError(text[:_MAX_ERROR] or f"{name} of the MCP server {server} failed and does not say why")
    return text if result.structured_content is None else result.structured_content


def _text_of(block: Any) -> str:
    """A content block as text; what a text model cannot read is named, so that it knows there was something."""
    if block.type == "text":
        return str(block.text)
    if block.type == "resource_link":
        return f"[{block.name}: {block.uri}]"
    if block.type == "resource" and hasattr(block.resource, "text"):
        return str(block.resource.text)
    return f"[{getattr(block, 'mime_type', None) or block.type}, not shown]"


def _reason(error: BaseException) -> str:
    """The innermost of a task group's errors, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def _last_line(errors: IO[bytes]) -> str:
    """The last line a server wrote to stderr; of a Python traceback, that is the error."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - 4000))
    lines = errors.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip()[:_MAX_ERROR] for line in reversed(lines) if line.strip()), "")
