"""A fake OpenAI-compatible endpoint: a real HTTP server on the loopback that says what a script tells it to.

    with fake_endpoint([call(("get_weather", {"city": "Oslo"})), say("4 °C.")]) as fake:
        …  # fake.base_url goes into OPENAI_BASE_URL; fake.requests is what arrived

No model is behind it. Each chat request takes the next reply of the script, retries included; a request after the last
one is refused with a 400 that says so. Streams are chunked, so that a client can tell a cut one from a finished one.
"""

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fake-model"


@dataclass(frozen=True)
class Reply:
    """What one request gets. raw: the payloads of the stream's events, as they are. body: of any other response."""

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: str | None = "stop"
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})
    raw: tuple[str, ...] | None = None
    cut: bool = False  # the connection breaks off before the stream is over
    hang: float = 0.0  # seconds of silence, after which the connection closes
    status: int = 200
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    probability: float | None = None  # of beginning a tool call, for a request with logprobs


def say(text: str, **more: Any) -> Reply:
    """An answer, streamed word by word."""
    return Reply(text, **more)


def call(*calls: tuple[str, Any], text: str = "", **more: Any) -> Reply:
    """Tool calls; arguments that are a text are sent as they are, well-formed or not."""
    written = tuple((name, args if isinstance(args, str) else json.dumps(args)) for name, args in calls)
    return Reply(text, written, "tool_calls", **more)


def raw(*payloads: str) -> Reply:
    """A stream of events with these payloads."""
    return Reply(raw=payloads)


def cut(text: str = "The answer is") -> Reply:
    """A stream that breaks off after this text."""
    return Reply(text, cut=True)


def hang(seconds: float = 0.8) -> Reply:
    """Nothing at all, for longer than the client waits."""
    return Reply(hang=seconds)


def refuse(status: int, message: str = "refused by the script", **headers: str) -> Reply:
    """An HTTP error with OpenAI's body."""
    body = json.dumps({"error": {"message": message, "type": "fake", "code": None, "param": None}})
    return Reply(status=status, body=body, headers=tuple(headers.items()))


def page(text: str = "<html>It works!</html>") -> Reply:
    """A 200 that is no API answer: OPENAI_BASE_URL leads to some other server."""
    return Reply(body=text, headers=(("Content-Type", "text/html"),))


def decide(probability: float) -> Reply:
    """The answer to a request with logprobs: how likely a call is."""
    return Reply(probability=probability)


@dataclass
class FakeEndpoint:
    """A running fake. requests: the bodies of the chat requests; keys: their Authorization headers."""

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def messages(self) -> list[list[dict[str, Any]]]:
        """The messages of each request."""
        return [request["messages"] for request in self.requests]

    def results(self, request: int = -1) -> list[str]:
        """The tool results that a request carries after the question."""
        after = self.messages[request]
        last = max(index for index, message in enumerate(after) if message["role"] == "user")
        return [message["content"] for message in after[last:] if message["role"] == "tool"]


@contextmanager
def fake_endpoint(script: Iterable[Reply]) -> Iterator[FakeEndpoint]:
    """Serve the script until the block ends."""
    replies, lock = iter(script), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.respond(200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
            else:
                self.respond(404, "{}")

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                fake.requests.append(request)
                fake.keys.append(self.headers["Authorization"])
                reply = next(replies, refuse(400, "the fake's script is over"))
            if reply.hang:
                time.sleep(reply.hang)
                self.close_connection = True
            elif reply.status != 200 or reply.body:
                self.respond(reply.status, reply.body, *reply.headers)
            elif reply.probability is not None:
                assert request["logprobs"]
                self.respond(200, json.dumps(decision(reply)))
            elif request.get("stream"):
                self.stream(reply)
            else:
                self.respond(200, json.dumps(completion(reply)))

        def respond(self, status: int, body: str, *headers: tuple[str, str]) -> None:
            content = body.encode()
            self.send_response(status)
            for name, value in dict([("Content-Type", "application/json"), *headers]).items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def stream(self, reply: Reply) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for payload in payloads(reply):
                event = f"data: {payload}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            if reply.cut:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...  # clients that hang up early are the point of some tests

    server = Quiet(("127.0.0.1", 0), Handler)
    fake = FakeEndpoint(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.socket.close()  # not server_close, which would wait for replies that hang


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    """One event of a stream, as OpenAI writes it."""
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices})


def payloads(reply: Reply) -> list[str]:
    """The events of a reply's stream: text by words, call arguments in two halves, usage last."""
    if reply.raw is not None:
        return list(reply.raw)
    events = [chunk({"role": "assistant", "content": ""})]
    events += [chunk({"content": word}) for word in reply.text.replace(" ", "\0 ").split("\0") if word]
    if reply.cut:
        return events
    for index, (name, text) in enumerate(reply.calls):
        half = len(text) // 2
        begin = {"index": index, "id": f"id_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        events.append(chunk({"tool_calls": [begin]}))
        for part in (text[:half], text[half:]):
            events.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}))
    events.append(chunk({}, reply.finish))
    if reply.usage is not None:
        events.append(json.dumps(json.loads(chunk({})) | {"choices": [], "usage": reply.usage}))
    return [*events, "[DONE]"]


def completion(reply: Reply) -> dict[str, Any]:
    """A response that is not streamed."""
    calls = [
        {"id": f"id_{index}", "type": "function", "function": {"name": name, "arguments": text}}
        for index, (name, text) in enumerate(reply.calls)
    ]
    message = {"role": "assistant", "content": reply.text} | ({"tool_calls": calls} if calls else {})
    choices = [{"index": 0, "message": message, "finish_reason": reply.finish}]
    return {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices} | (
        {"usage": reply.usage} if reply.usage is not None else {}
    )


def decision(reply: Reply) -> dict[str, Any]:
    """A response of one token and its alternatives, among them those that can begin <tool_call>."""
    chosen = reply.probability or 0.0
    # Two ways to begin a call, as real vocabularies have: their masses add up.
    masses = {"<tool": 0.75 * chosen, "<": 0.25 * chosen, "The": 1 - chosen}
    tokens = [{"token": token, "logprob": math.log(max(mass, 1e-9)), "bytes": None} for token, mass in masses.items()]
    first = max(tokens, key=lambda token: token["logprob"]) | {"top_logprobs": tokens}
    answer = completion(Reply(first["token"], finish="length", usage={"prompt_tokens": 100, "completion_tokens": 1}))
    answer["choices"][0]["logprobs"] = {"content": [first]}
    return answer
