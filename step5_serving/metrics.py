"""Every Prometheus series of the gateway.

    curl -s localhost:8080/metrics | grep ^gateway_

Histograms are in seconds, counters end in _total, labels have few values: model names are checked against what the
engines serve before they become a label, and keys are none (usage by key is in the database).
"""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from step5_serving.admission import Admission
    from step5_serving.engines import Engines
    from step5_serving.exchange import Exchange

# Around the targets: 5 ms is what the gateway may add, 50 ms how fast a refusal must be, seconds are a CPU's prefill.
LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0)
UNKNOWN = "unknown"


class Metrics:
    """The series, in a registry of their own, so that two gateways fit into one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gateway_requests", "Requests answered or refused, by status.", ["endpoint", "model", "status"],
            registry=registry,
        )  # fmt: skip
        self.errors = Counter(
            "gateway_errors", "Requests that did not end with a complete answer, by what went wrong.", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "gateway_time_to_first_token_seconds", "From arrival to the first streamed block, queueing included.",
            ["model"], buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.between = Histogram(
            "gateway_inter_token_latency_seconds", "Between two blocks of a stream; a block is a token, or a few.",
            ["model"], buckets=BETWEEN, registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "gateway_request_seconds", "From arrival to the last byte, of requests that reached an engine.",
            ["endpoint", "model"], buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.queue = Histogram(
            "gateway_queue_seconds", "Waiting for a free slot, of admitted requests.", buckets=LATENCY,
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "gateway_tokens", "Tokens by kind; prompt includes cached.", ["model", "kind"], registry=registry
        )
        self.cost = Counter("gateway_cost_dollars", "Money by prices.toml.", ["model"], registry=registry)
        self.retries = Counter("gateway_retries", "Attempts repeated on the same or another engine.", registry=registry)
        self.in_flight = Gauge("gateway_in_flight", "Requests in the gateway, queued ones included.", registry=registry)
        self.restarts = Counter(
            "gateway_engine_restarts", "Engine processes started again.", ["engine"], registry=registry
        )

    def watch(self, admission: "Admission", engines: "Engines") -> None:
        """Also export what the queue and the engines look like at the moment of scraping."""
        self.registry.register(_Now(admission, engines))

    def settled(self, exchange: "Exchange", cost: float | None) -> None:
        """Count a request that is over."""
        model = exchange.call.model if exchange.call and exchange.known else UNKNOWN
        self.requests.labels(exchange.endpoint, model, str(exchange.status)).inc()
        if exchange.outcome != "ok":
            self.errors.labels(exchange.outcome).inc()
        if exchange.engine is not None:
            self.seconds.labels(exchange.endpoint, model).observe(exchange.elapsed())
        if (usage := exchange.usage) is not None:
            self.tokens.labels(model, "prompt").inc(usage.prompt)
            self.tokens.labels(model, "cached").inc(usage.cached)
            self.tokens.labels(model, "completion").inc(usage.completion)
        if cost:
            self.cost.labels(model).inc(cost)

    def text(self) -> bytes:
        """What /metrics answers."""
        return generate_latest(self.registry)


class _Now(Collector):
    """Values that exist anyway and need no bookkeeping in the hot path."""

    def __init__(self, admission: "Admission", engines: "Engines") -> None:
        self._admission, self._engines = admission, engines

    def collect(self) -> "Iterator[Metric]":
        admission = self._admission
        for name, what, value in (
            ("gateway_running", "Requests that hold a slot.", admission.running),
            ("gateway_slots", "Requests that the ready engines run at once.", admission.slots),
            ("gateway_queued", "Requests waiting for a slot.", admission.queued),
            ("gateway_queued_tokens", "Their estimated tokens.", admission.queued_tokens),
            ("gateway_queue_bound_tokens", "How many may wait.", admission.bound),
            ("gateway_drain_tokens_per_second", "Measured while every slot is taken.", admission.rate),
        ):
            yield GaugeMetricFamily(name, what, value)
        up = GaugeMetricFamily("gateway_engine_up", "1 while the engine is ready.", labels=["engine"])
        busy = GaugeMetricFamily("gateway_engine_in_flight", "Our requests at the engine.", labels=["engine"])
        for engine in self._engines.all:
            up.add_metric([engine.url], engine.ready)
            busy.add_metric([engine.url], engine.in_flight)
        yield up
        yield busy
