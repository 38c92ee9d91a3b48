"""An OpenAI-compatible server on the loopback whose answers a test writes: a function of the request, not of its turn,
so that requests may come in any order and several at a time.

    with scripted_endpoint(lambda request: Said("Oslo")) as served:
        …  # served.client() is the official client; served.requests is what arrived
"""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai import AsyncOpenAI


@dataclass(frozen=True)
class Said:
    """One answer. first: probabilities of the first token, for requests with logprobs. cut: the stream breaks off."""

    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    first: dict[str, float] | None = None
    cut: bool = False
    status: int = 200
    message: str = ""
    code: str | None = None


@dataclass
class Served:
    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.base_url, api_key="unused", max_retries=0, timeout=10)


def question(request: dict[str, Any]) -> str:
    """The last user message of a request."""
    return str(request["messages"][-1]["content"])


@contextmanager
def scripted_endpoint(script: Callable[[dict[str, Any]], Said]) -> Iterator[Served]:
    lock, running = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.requests.append(request)
                running[0] += 1
                served.most_at_once = max(served.most_at_once, running[0])
            said = script(request)
            with lock:
                running[0] -= 1
            if said.status != 200:
                self.respond(said.status, {"error": {"message": said.message, "code": said.code}})
            elif request.get("stream"):
                self.stream(said)
            else:
                self.respond(200, completion(request, said))

        def respond(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def stream(self, said: Said) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for delta, finish in deltas(said):
                choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
                event = b"data: " + json.dumps(head("chat.completion.chunk") | {"choices": choices}).encode() + b"\n\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            if said.cut:
                self.close_connection = True
            else:
                self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

        def log_message(self, *_: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...  # a client that stops reading is what some tests are about

    server = Quiet(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.socket.close()


def head(kind: str) -> dict[str, Any]:
    return {"id": "c", "object": kind, "created": 1, "model": "m"}


def completion(request: dict[str, Any], said: Said) -> dict[str, Any]:
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": text(arguments)}}
        for i, (name, arguments) in enumerate(said.calls)
    ]
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": said.text} | ({"tool_calls": calls} if calls else {}),
        "finish_reason": "stop",
    }
    if request.get("logprobs") and said.first is not None:
        top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in said.first.items()]
        choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
    usage = {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51}
    return head("chat.completion") | {"choices": [choice], "usage": usage}


def deltas(said: Said) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The calls of a stream, each in two halves."""
    for index, (name, arguments) in enumerate(said.calls):
        whole = text(arguments)
        half = len(whole) // 2
        begin = {"index": index, "id": f"c{index}", "type": "function"}
        yield {"tool_calls": [begin | {"function": {"name": name, "arguments": whole[:half]}}]}, None
        yield {"tool_calls": [{"index": index, "function": {"arguments": whole[half:]}}]}, None
    if not said.cut:
        yield {}, "tool_calls"


def text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
