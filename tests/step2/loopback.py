"""A scriptable loopback server, and a pretended internet that leads to it, for the tests of HTTP requests."""

import asyncio
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore
import pytest

from step2_tool_calling.connection import is_public
from step2_tool_calling.http_client import HttpClient, Response

PUBLIC = "93.184.215.14"


class Server:
    """A loopback server: `answer` decides what each request gets, `requests` is what arrived."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: reply(handler, b"hello")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 5

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append((self.command, self.path, dict(self.headers), body))
                outer.answer(self)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None: ...  # clients that hang up early are the point of some tests

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def fetch(url: str, method: str = "GET", options: dict[str, Any] | None = None, **request: Any) -> Response:
    """One request with a fresh client; options are the client's."""

    async def run() -> Response:
        async with HttpClient(**(options or {})) as client:
            return await client.request(method, url, **request)

    return asyncio.run(run())


def local(url: str, method: str = "GET", options: dict[str, Any] | None = None, **request: Any) -> Response:
    return fetch(url, method, {"allow_private": True, **(options or {})}, **request)


class Internet:
    """Names and where connections went: public addresses lead to the loopback server, all others are refused here."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        # Each lookup takes the next answer; the last one stays.
        self.names: dict[str, list[list[str]]] = {"public.test": [[PUBLIC]]}
        self.lookups: list[str] = []
        self.connected: list[str] = []
        original = httpcore.AnyIOBackend.connect_tcp

        def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
            self.lookups.append(host)
            answers = self.names.get(host, [[host]] if ":" in host else [])
            if not answers:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [
                (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
                for one in addresses
            ]

        async def connect_tcp(backend: Any, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
            self.connected.append(host)
            assert is_public(host), f"connected to {host}"
            return await original(backend, "127.0.0.1", server.port)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
