"""A collector of OpenTelemetry spans on the loopback, for as long as the tour's service runs.

    with collecting() as collector:            # gateway and engine, started inside, send their spans here
        ...
        spans = collector.trace("4bf92f3577b34da6a3ce929d0e0e4736")

A real one (Phoenix, Jaeger …) keeps them; step5_serving/trace_viewer.py starts one.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from scripts.tour.pictures import BLUE, GREY, ORANGE, Span

PATIENCE = 10.0  # seconds for the exporters' batches to arrive


class Collector:
    """Keeps what it is sent over OTLP/HTTP. url: where to send traces."""

    def __init__(self) -> None:
        self._received: list[bytes] = []
        received = self._received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing: the terminal is the narrator's."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def trace(self, identity: str, count: int) -> list[Span]:
        """The spans of a trace, times from its first one's beginning; waits until there are `count` of them, but not
        longer than PATIENCE."""
        end = time.monotonic() + PATIENCE
        while len(found := self._spans(identity)) < count and time.monotonic() < end:
            time.sleep(0.2)
        if not found:
            return []
        begun = min(span.start_time_unix_nano for span in found)
        parents = {span.span_id: span.parent_span_id for span in found}

        def depth(span: bytes) -> int:
            return 0 if parents.get(span) not in parents else 1 + depth(parents[span])

        return [
            Span(
                span.name, (span.start_time_unix_nano - begun) / 1e9, (span.end_time_unix_nano - begun) / 1e9,
                colour=(GREY, BLUE, ORANGE)[min(2, depth(span.span_id))], depth=depth(span.span_id),
            )
            for span in sorted(found, key=lambda s: s.start_time_unix_nano)
        ]  # fmt: skip

    def _spans(self, identity: str) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        requests = [ExportTraceServiceRequest.FromString(body) for body in list(self._received)]
        spans = [
            span for r in requests for resource in r.resource_spans for s in resource.scope_spans for span in s.spans
        ]
        return [span for span in spans if span.trace_id.hex() == identity]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that the processes started inside the block send their spans to."""
    collector = Collector()
    wanted = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "500",  # ms; the 5 s of the default would be waited for
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield collector
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        collector.close()
