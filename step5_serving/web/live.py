"""The last ten minutes of operation, for the page's charts: one point every 2 s, in memory.

Points are differences between two readings of the series in metrics.py, so the charts show what Prometheus would. It
needs no Prometheus, and remembers no longer than the process lives; for more than ten minutes there is
deploy/grafana/. Memory is bounded: 300 points, and per point only the kinds of error that happened.

    curl -s 'localhost:8080/live?after=0'
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from step5_serving.metrics import LATENCY

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram
    from prometheus_client.samples import Sample

    from step5_serving.admission import Admission
    from step5_serving.engines import Engines
    from step5_serving.ledger import Ledger
    from step5_serving.metrics import Metrics

INTERVAL = 2.0  # seconds between points
POINTS = 300  # ten minutes
WINDOW = 15  # points that a percentile looks back over, 30 s: two seconds hold too few requests for one
BOUNDS = (*LATENCY, math.inf)  # of the buckets of the time to the first token

Point = dict[str, Any]


class Live:
    """The points. Belongs to one event loop."""

    def __init__(
        self,
        metrics: "Metrics",
        admission: "Admission",
        engines: "Engines",
        ledger: "Ledger",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._admission, self._engines, self._ledger = metrics, admission, engines, ledger
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._at = clock()
        self._tokens = self._produced()
        self._cost = total(metrics.cost)
        self._errors = by_label(metrics.errors, "kind")
        self._first_token: deque[list[float]] = deque([bucket_counts(metrics.first_token)], maxlen=WINDOW + 1)

    def sample(self) -> None:
        """Add a point about the time since the last one.

        t: Unix time. tokens: generated per second. p50, p95: seconds to the first token, over the last 30 s, None
        when no stream began in them. in_flight, queued, slots: at this moment. errors: how many per kind. cost: US
        dollars.
        """
        metrics, now = self._metrics, self._clock()
        seconds, self._at = max(now - self._at, 1e-9), now
        produced = self._produced()
        tokens = max(0.0, produced - self._tokens)
        # Events of an open stream are one or two more than its tokens, so the sum may step back when it ends; the next
        # points make up for it.
        self._tokens = max(self._tokens, produced)
        cost, errors = total(metrics.cost), by_label(metrics.errors, "kind")
        counts = bucket_counts(metrics.first_token)
        self._first_token.append(counts)
        recent = [new - old for new, old in zip(counts, self._first_token[0], strict=True)]
        new_errors = {kind: count - self._errors.get(kind, 0.0) for kind, count in errors.items()}
        self._points.append(
            {
                "t": time.time(),
                "tokens": tokens / seconds,
                "p50": quantile(0.5, BOUNDS, recent),
                "p95": quantile(0.95, BOUNDS, recent),
                "in_flight": value(metrics.in_flight),
                "queued": self._admission.queued,
                "slots": self._admission.slots,
                "errors": {kind: count for kind, count in new_errors.items() if count},
                "cost": cost - self._cost,
            }
        )
        self._cost, self._errors = cost, errors

    def document(self, after: float) -> dict[str, Any]:
        """What /live answers: the points later than `after` (Unix time), and the engines as they are now."""
        return {
            "interval": INTERVAL,
            "span": INTERVAL * POINTS,
            "points": [point for point in self._points if point["t"] > after],
            "engines": [
                {"url": e.url, "name": e.name, "ready": e.ready, "in_flight": e.in_flight, "slots": e.slots}
                for e in self._engines.all
            ],
        }

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.sample()

    def _produced(self) -> float:
        """Tokens generated so far. Counted when a request is over; until then a stream's events stand for them."""
        return total(self._metrics.tokens, kind="completion") + self._ledger.streamed


def _samples(metric: "Counter | Gauge | Histogram", suffix: str) -> "Iterator[Sample]":
    return (sample for family in metric.collect() for sample in family.samples if sample.name.endswith(suffix))


def total(counter: "Counter", **labels: str) -> float:
    """The sum of a counter's series with these labels."""
    return sum(s.value for s in _samples(counter, "_total") if labels.items() <= s.labels.items())


def by_label(counter: "Counter", label: str) -> dict[str, float]:
    """A counter's value for each value of its label."""
    return {sample.labels[label]: sample.value for sample in _samples(counter, "_total")}


def value(gauge: "Gauge") -> float:
    """The value of a gauge without labels."""
    return next(_samples(gauge, "")).value


def bucket_counts(histogram: "Histogram") -> list[float]:
    """How many observations are at most each of BOUNDS (cumulative, as Prometheus has it), over all labels."""
    counts = dict.fromkeys(BOUNDS, 0.0)
    for sample in _samples(histogram, "_bucket"):
        counts[float(sample.labels["le"])] += sample.value
    return list(counts.values())


def quantile(q: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """Estimate a quantile (0 < q ≤ 1) from cumulative bucket counts; None without observations.

    Linear inside a bucket, and the last finite bound for what lies beyond it, like Prometheus' histogram_quantile, so
    that this page, the alerts and the dashboard agree.
    """
    if not counts or not counts[-1]:
        return None
    rank = q * counts[-1]
    index = next(i for i, count in enumerate(counts) if count >= rank)
    below = counts[index - 1] if index else 0.0
    lower = bounds[index - 1] if index else 0.0
    if math.isinf(bounds[index]):
        return lower
    return lower + (bounds[index] - lower) * (rank - below) / (counts[index] - below)
