"""Small OpenAPI documents for the tests, and what step 2 makes of them."""

import asyncio
import json
from pathlib import Path
from typing import Any

from recording_server import Server

from step2_tool_calling.http_client import HttpClient
from step2_tool_calling.openapi import load_openapi
from step2_tool_calling.tool import Tool


def load(source: str | Path) -> dict[str, Tool]:
    async def read() -> list[Tool]:
        async with HttpClient(allow_private=True) as client:
            return await load_openapi(str(source), client)

    return {tool.name: tool for tool in asyncio.run(read())}


def call(source: str | Path, name: str, /, **arguments: Any) -> Any:
    """Load, validate and run as a session does: everything in one event loop."""

    async def ask() -> Any:
        async with HttpClient(allow_private=True, timeout=2, retries=0) as client:
            tool = next(tool for tool in await load_openapi(str(source), client) if tool.name == name)
            assert tool.problem(arguments) is None, tool.problem(arguments)
            return await tool.run(arguments)

    return asyncio.run(ask())


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def written(directory: Path, described: dict[str, Any]) -> Path:
    path = directory / "api.json"
    path.write_text(json.dumps(described))
    return path


def document(**fields: Any) -> dict[str, Any]:
    operation = {"operationId": "op", "responses": {}} | fields.pop("operation", {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "t", "version": "1"},
        "servers": [{"url": "http://127.0.0.1:9"}],
        "paths": {fields.pop("path", "/x"): {"get": operation}},
    } | fields


def with_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    return document(operation={"parameters": [{"name": "a", "in": "query", "schema": schema}]}, **fields)


def schema_of(directory: Path, schema: Any, **fields: Any) -> Any:
    """What becomes of the schema of an argument."""
    return load(written(directory, with_schema(schema, **fields)))["op"].parameters["properties"]["a"]
