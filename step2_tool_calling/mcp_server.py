"""Our tools for other MCP clients: editors, desktop assistants, agents.

    python -m step2_tool_calling serve-mcp                  # over stdin and stdout, as clients start servers
    python -m step2_tool_calling serve-mcp --http 8765      # http://127.0.0.1:8765/mcp, until Ctrl-C

The official package's low-level server is the right one here: its high-level sibling makes schemas from functions,
and ours are made already. The client asks its person before it calls what is not marked read-only.
"""

import logging
import signal
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import UserError
from shared.openai_server import is_loopback, listen
from shared.terminal import say
from step2_tool_calling.loop import as_data, run_tool
from step2_tool_calling.tool import Tool, by_name

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from mcp_types import ToolAnnotations


async def serve_mcp(
    tools: list[Tool], transport: Literal["stdio", "http"], host: str = "127.0.0.1", port: int = 8765
) -> None:
    """Offer tools to MCP clients until the client goes away (stdio) or Ctrl-C. To be run in the main thread.

    host, port: of http; 0 picks a free port. There is no authentication, so bind to loopback unless everybody on the
    network may call these tools. Raises UserError when two tools share a name, or the port is taken or none.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--http {port}: use a port from 1 to 65535")
    server = mcp_server(tools)
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    if transport == "stdio":
        from mcp.server.stdio import stdio_server

        # A thread of the package waits for stdin, and Python would wait for that thread: Ctrl-C would do nothing until
        # the client says something. So it ends the process, which has nothing to put in order.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        async with stdio_server() as (reader, writer):  # stray prints go to stderr: stdout is the protocol's
            await server.run(reader, writer, server.create_initialization_options())
        return

    import uvicorn

    try:
        listener = listen(host, port)
    except UserError as error:  # its advice is for a server whose option is called --port
        raise UserError(str(error).replace("--port", "--http PORT")) from None
    say(f"serving {len(tools)} tools on http://{host}:{listener.getsockname()[1]}/mcp")
    if not is_loopback(host):
        say(f"warning: whoever reaches {host} can call them; there is no password")
    app = server.streamable_http_app(host=host)  # on loopback it refuses other Host headers (DNS rebinding)
    await uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).serve([listener])


def mcp_server(tools: list[Tool]) -> "Server[Any]":
    """The server object, for a transport of your own. Raises UserError when two tools share a name."""
    from mcp import MCPError
    from mcp.server.lowlevel import Server
    from mcp_types import (
        INVALID_PARAMS,
        CallToolResult,
        ListToolsResult,
        TextContent,
    )
    from mcp_types import Tool as Offered

    index = by_name(tools)

    async def list_tools(context: Any, page: Any) -> ListToolsResult:
        return ListToolsResult(
            tools=[
                Offered(
                    name=tool.name,
                    description=tool.description,
                    input_schema={"type": "object", **tool.parameters},
                    annotations=_hints(tool),
                )
                for tool in tools
            ]
        )

    async def call_tool(context: Any, call: Any) -> CallToolResult:
        tool = index.get(call.name)
        if tool is None:  # the protocol's error, not the tool's: the client asked for what was never listed
            raise MCPError(INVALID_PARAMS, f"no tool called {call.name!r}; there are {', '.join(index)}")
        text, failed = await _run(tool, call.arguments or {})
        return CallToolResult(content=[TextContent(text=text)], is_error=failed)

    return Server("step2-tool-calling", on_list_tools=list_tools, on_call_tool=call_tool)


def _hints(tool: Tool) -> "ToolAnnotations":
    """What a client may rely on. Only of the built-in tools do we know that they just read.

    Of a user's function nobody does: that it is not marked unsafe may mean that nobody thought of it. Without a hint
    the protocol has clients expect the worst.
    """
    from mcp_types import ToolAnnotations

    if tool.unsafe:
        return ToolAnnotations(read_only_hint=False, destructive_hint=True)
    return ToolAnnotations(read_only_hint=True if tool.source == "built-in" else None)


async def _run(tool: Tool, arguments: dict[str, Any]) -> tuple[str, bool]:
    """(what the client's model reads, whether it is an error)."""
    if problem := tool.problem(arguments):
        return as_data(problem), True
    status, output = await run_tool(tool, arguments)
    return as_data(output), status != "ok"
