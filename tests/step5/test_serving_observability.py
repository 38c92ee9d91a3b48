"""What an operator sees: metrics, log, traces. And what nobody sees there: what people wrote, and keys."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Gateway, Start, chat_body, eventually
from fake_engine import ADAPTER, MODEL, Fake
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from otlp_collector import Collector, attributes
from prometheus_client.parser import text_string_to_metric_families

from step5_serving import logs
from step5_serving.logs import STDERR, Log

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# Dashboards and alerts are written against these names.
NAMES = {
    "gateway_requests", "gateway_errors", "gateway_time_to_first_token_seconds", "gateway_inter_token_latency_seconds",
    "gateway_request_seconds", "gateway_queue_seconds", "gateway_tokens", "gateway_cost_dollars", "gateway_retries",
    "gateway_in_flight", "gateway_running", "gateway_slots", "gateway_queued", "gateway_queued_tokens",
    "gateway_queue_bound_tokens", "gateway_drain_tokens_per_second", "gateway_engine_up", "gateway_engine_in_flight",
    "gateway_engine_restarts",
}  # fmt: skip


def test_metrics_count_what_happened(gateway: Gateway, engine: Fake) -> None:
    gateway.chat()
    gateway.stream(model=ADAPTER)
    gateway.chat(model="made up by a client")
    engine.failures.append(400)
    gateway.chat()
    text = gateway.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) >= NAMES
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    chat = "/v1/chat/completions"
    assert samples["gateway_requests_total", chat, MODEL, "200"] == 1
    assert samples["gateway_requests_total", chat, ADAPTER, "200"] == 1
    assert samples["gateway_requests_total", chat, MODEL, "400"] == 1
    # A label value that clients can choose would be a series for each thing they think of.
    assert samples["gateway_requests_total", chat, "unknown", "404"] == 1
    assert "made up" not in text
    assert samples["gateway_errors_total", "model_not_found"] == 1
    assert samples["gateway_errors_total", "invalid_request"] == 1
    assert samples["gateway_tokens_total", "prompt", MODEL] == 3
    assert samples["gateway_tokens_total", "cached", MODEL] == 1
    assert samples["gateway_tokens_total", "completion", ADAPTER] == 4
    assert samples["gateway_time_to_first_token_seconds_count", ADAPTER] == 1
    assert ("gateway_time_to_first_token_seconds_count", MODEL) not in samples  # it did not stream
    assert samples["gateway_queue_seconds_count",] == 3
    assert samples["gateway_request_seconds_count", chat, MODEL] == 2
    assert samples["gateway_cost_dollars_total", MODEL] == pytest.approx(gateway.rows()[0]["cost"])
    assert samples["gateway_engine_up", engine.url] == 1
    assert samples["gateway_in_flight",] == 0
    assert samples["gateway_slots",] == 32


def test_in_flight_counts_the_waiting_too(start: Start, engine: Fake) -> None:
    engine.seconds_per_token = 0.1
    gateway = start(engine, slots=1, max_wait=4)

    def look() -> None:
        eventually(lambda: gateway.metric("gateway_queued") == 2)
        assert gateway.metric("gateway_running") == 1
        assert gateway.metric("gateway_in_flight") == 3
        assert gateway.metric("gateway_engine_in_flight", engine=engine.url) == 1

    gateway.at_once([gateway.chat, gateway.chat, gateway.chat, look])
    assert gateway.metric("gateway_queued_tokens") == 0


def test_one_json_line_a_request(gateway: Gateway) -> None:
    gateway.stream("one two")
    gateway.chat(model="nothing")
    first, second = gateway.log("request")
    assert (first["status"], first["outcome"], first["stream"], first["model"]) == (200, "ok", True, MODEL)
    assert (first["prompt_tokens"], first["completion_tokens"], first["estimated"]) == (2, 4, False)
    assert 0 < first["first_token"] <= first["seconds"]
    assert first["key"] == gateway.key.split("-")[1]
    assert first["trace"] == gateway.rows()[0]["trace"]
    assert first["cost"] == gateway.rows()[0]["cost"]
    assert (second["status"], second["outcome"], second["model"]) == (404, "model_not_found", "nothing")
    assert (gateway.home / "log" / "gateway.jsonl").stat().st_mode & 0o077 == 0


def test_what_people_write_and_keys_are_nowhere(gateway: Gateway, engine: Fake) -> None:
    engine.failures += [400, "drop", "cut"]
    private = "my-private-words"
    for _ in range(2):
        gateway.chat(private, user="somebody")
    gateway.stream(private)
    gateway.stream(private)
    gateway.post("/v1/chat/completions", content=b'{"model": "fake-model", "secret-thought')
    gateway.chat(private, key=f"{gateway.key}x")
    gateway.parts.ledger.flush()
    kept = b"".join(path.read_bytes() for path in gateway.home.rglob("*") if path.is_file())
    kept += gateway.http.get("/metrics").content
    assert len(gateway.log("request")) == 6
    for word in (private, "somebody", "secret-thought", gateway.key, gateway.key.split("-", 2)[2], "w0 w1"):
        assert word.encode() not in kept


def test_a_bug_is_in_the_log_and_not_in_the_answer(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.parts.estimates, "tokens", lambda *_: 1 / 0)
    answer = gateway.chat()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "ZeroDivision" not in answer.text
    assert "ZeroDivisionError" in gateway.log("bug")[0]["traceback"]
    assert gateway.parts.admission.running == 0


def test_a_full_log_is_rotated(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LARGEST", 1000)
    log = Log(home / "log" / "gateway.jsonl")
    for number in range(40):
        log.write("event", number=number)
    log.close()
    files = sorted((home / "log").iterdir())
    assert [file.name for file in files] == ["gateway.jsonl", "gateway.jsonl.1"]
    numbers = [json.loads(line)["number"] for file in reversed(files) for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 40))
    assert all(file.stat().st_size < 1100 for file in files)


def test_the_log_can_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(STDERR)
    log.write("hello", number=1)
    log.close()
    assert json.loads(capfd.readouterr().err)["event"] == "hello"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds between batches
    yield made
    made.close()


def test_spans_reach_a_collector(collector: Collector, start: Start, engine: Fake) -> None:
    gateway = start(engine)
    engine.failures.append("drop")
    sent = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    answer = gateway.post("/v1/chat/completions", more=sent, json=chat_body("private words", max_tokens=6, stream=True))
    spans = eventually(lambda: len(collector.spans) == 3 and collector.spans, 10)
    server = next(span for span in spans if span.kind == Span.SPAN_KIND_SERVER)
    first, second = sorted((s for s in spans if s.kind == Span.SPAN_KIND_CLIENT), key=lambda s: s.start_time_unix_nano)

    assert {span.trace_id.hex() for span in spans} == {TRACE}  # the client's trace goes on
    assert server.parent_span_id.hex() == SPAN
    assert first.parent_span_id == second.parent_span_id == server.span_id
    assert engine.seen[-1][0]["traceparent"] == f"00-{TRACE}-{second.span_id.hex()}-01"  # and in the engine, too
    assert answer.headers["traceresponse"].split("-")[1] == TRACE

    assert (server.name, second.name) == ("POST /v1/chat/completions", f"chat {MODEL}")
    found = attributes(second)
    assert {name: found[name] for name in found if name.startswith(("gen_ai", "server"))} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": True,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "gen_ai.response.time_to_first_chunk": pytest.approx(gateway.rows()[0]["first_token"]),
        "server.address": "127.0.0.1",
        "server.port": int(engine.url.rpartition(":")[2]),
    }
    assert attributes(server)["http.response.status_code"] == 200
    assert attributes(server)["gateway.request_id"] == answer.headers["x-request-id"]
    assert b"private" not in b"".join(collector.received)
    assert gateway.key.encode() not in b"".join(collector.received)


def test_a_failed_request_is_a_failed_span(collector: Collector, start: Start, engine: Fake) -> None:
    gateway = start(engine)
    gateway.chat(model="nothing")
    (span,) = eventually(lambda: collector.spans, 10)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "model_not_found"
    assert attributes(span)["http.response.status_code"] == 404


def test_without_a_collector_no_telemetry_is_loaded(gateway: Gateway, engine: Fake) -> None:
    """The trace id is there all the same: in the engine's headers, the log and the accounts."""
    assert gateway.parts.tracing._provider is None
    gateway.chat()
    assert engine.seen[-1][0]["traceparent"].split("-")[1] == gateway.rows()[0]["trace"]


def test_a_collector_that_is_gone_delays_nobody(start: Start, engine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    assert start(engine).chat().status_code == 200
