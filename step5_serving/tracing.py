"""Traces: the W3C trace context of every request, and OpenTelemetry spans when somebody collects them.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 python -m step5_serving serve

The context (trace id, span id) is read from `traceparent`, or begun here, goes on to the engine, into the log, the
accounting, and back to the client as `traceresponse`; that costs microseconds and is always on. Spans need a collector:
without OTEL_EXPORTER_OTLP_ENDPOINT nothing of OpenTelemetry is imported. Two spans per request: the gateway's own
("POST /v1/chat/completions") and, below it, one per attempt at an engine ("chat smollm2-135m") with the attributes of
OpenTelemetry's GenAI semantic conventions; their times tell queueing from computing. A vLLM that is started here adds
its own below (launch.py): waiting, prefill, decode. No prompt text is recorded.
Sources: w3.org/TR/trace-context, opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans.
"""

import os
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.config import settings
from step5_serving.refusals import Headers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from step5_serving.exchange import Exchange

TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}


@dataclass(slots=True)
class Trace:
    """Where a request belongs. span: ours, in hex, and the parent of what the engine records."""

    trace: str
    span: str
    flags: str
    state: bytes | None = None
    server: "Span | None" = None
    client: "Span | None" = None

    def outgoing(self) -> list[tuple[str, str]]:
        """Headers for the engine."""
        headers = [("traceparent", f"00-{self.trace}-{self.span}-{self.flags}")]
        return headers if self.state is None else [*headers, ("tracestate", self.state.decode("latin-1"))]

    def response(self) -> Headers:
        """The header for the client."""
        return [(b"traceresponse", f"00-{self.trace}-{self.span}-{self.flags}".encode())]


class Tracing:
    """Begins and ends traces. provider: None when nobody collects spans."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("step5_serving") if provider else None

    def begin(self, headers: dict[bytes, bytes], path: str) -> Trace:
        """Continue the client's trace, or begin one."""
        found = TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
        if found is None:
            trace = Trace(secrets.token_hex(16), secrets.token_hex(8), "01")
        else:
            trace = Trace(
                found[1].decode(), secrets.token_hex(8), found[3].decode(), headers.get(b"tracestate")
            )  # fmt: skip
        if self._tracer is not None:
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            carrier = (
                {"traceparent": found[0].decode(), "tracestate": (trace.state or b"").decode("latin-1")}
                if found
                else {}
            )
            parent = TraceContextTextMapPropagator().extract(carrier)
            attributes = {"http.request.method": "POST", "http.route": path}
            trace.server = self._tracer.start_span(f"POST {path}", parent, SpanKind.SERVER, attributes)
            self._take_over(trace, trace.server)
        return trace

    def dispatch(self, exchange: "Exchange") -> None:
        """An attempt at an engine begins."""
        trace, call, engine = exchange.trace, exchange.call, exchange.engine
        if self._tracer is None or trace.server is None or call is None or engine is None:
            return
        from opentelemetry.trace import SpanKind, set_span_in_context

        operation = OPERATIONS[exchange.endpoint]
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": engine.name,
            "gen_ai.request.model": call.model,
            "gen_ai.request.stream": call.stream,
            "gen_ai.request.choice.count": call.answers,
            "server.address": engine.host,
            "server.port": engine.port,
        }
        if call.most is not None:
            attributes["gen_ai.request.max_tokens"] = call.most
        context = set_span_in_context(trace.server)
        self._end_client(exchange)
        trace.client = self._tracer.start_span(f"{operation} {call.model}", context, SpanKind.CLIENT, attributes)
        self._take_over(trace, trace.client)

    def end(self, exchange: "Exchange") -> None:
        """The request is over."""
        trace = exchange.trace
        if trace.server is None:
            return
        self._end_client(exchange)
        trace.server.set_attribute("http.response.status_code", exchange.status)
        trace.server.set_attribute("gateway.request_id", exchange.id)
        trace.server.set_attribute("gateway.queue_seconds", exchange.queued)
        if exchange.key is not None:
            trace.server.set_attribute("gateway.key", exchange.key.id)
        self._mark(trace.server, exchange)
        trace.server.end()

    def close(self) -> None:
        """Send what has not been sent yet."""
        if self._provider is not None:
            self._provider.shutdown()

    def _end_client(self, exchange: "Exchange") -> None:
        span = exchange.trace.client
        if span is None:
            return
        if exchange.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", exchange.usage.prompt)
            span.set_attribute("gen_ai.usage.output_tokens", exchange.usage.completion)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", exchange.usage.cached)
        if exchange.first_token is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", exchange.first_token)
        self._mark(span, exchange)
        span.end()
        exchange.trace.client = None

    def _mark(self, span: "Span", exchange: "Exchange") -> None:
        if exchange.outcome not in ("", "ok"):
            from opentelemetry.trace import StatusCode

            span.set_attribute("error.type", exchange.outcome)
            span.set_status(StatusCode.ERROR)

    def _take_over(self, trace: Trace, span: "Span") -> None:
        context = span.get_span_context()
        trace.trace, trace.span = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        trace.flags = f"{int(context.trace_flags):02x}"


def traces_endpoint() -> str | None:
    """Where spans go, over HTTP: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or below OTEL_EXPORTER_OTLP_ENDPOINT."""
    base = settings().otel_exporter_otlp_endpoint
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (base and f"{base.rstrip('/')}/v1/traces")


def open_tracing() -> Tracing:
    """Spans go to `traces_endpoint` (sampling and headers: OpenTelemetry's own variables)."""
    if not traces_endpoint():
        return Tracing()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "step5-gateway"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # a thread of its own, in batches
    return Tracing(provider)
