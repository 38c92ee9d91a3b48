"""A real HTTP server on the loopback that notes what it is sent, for the tests of openapi.py."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """A loopback server that notes each request and answers with `status` and `body`, or a served document."""

    url: str = ""
    documents: dict[str, str] = field(default_factory=dict)
    status: int = 200
    body: str = '{"ok": true}'
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def loopback() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            document = server.documents.get(self.path)
            if document is None:
                server.requests.append(
                    {
                        "method": self.command,
                        "path": self.path,
                        "headers": {name.lower(): value for name, value in self.headers.items()},
                        "json": json.loads(content) if content else None,
                    }
                )
            text = (server.body if document is None else document).encode()
            self.send_response(server.status if document is None else 200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
