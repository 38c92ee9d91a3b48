"""From samples to figures: percentiles, throughput, goodput, and the highest rate that meets the SLO."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from step5_serving.load import Sample


@dataclass(frozen=True)
class Slo:
    """What a request may make its client wait for, in seconds: to the first token, and between two."""

    ttft: float
    itl: float


@dataclass(frozen=True)
class Summary:
    """The figures of one run. Times in seconds, rates a second; None where nothing was measured."""

    requests: int
    ok: int
    refused: int
    errors: int
    tokens_per_second: float
    goodput: float  # requests a second that met the SLO
    ttft: tuple[float, float, float] | None  # p50, p90, p99
    itl: tuple[float, float, float] | None
    latency: tuple[float, float, float] | None
    refusal_p99: float | None  # from sending to the 429


def percentile(values: Sequence[float], q: float) -> float:
    """Return the nearest-rank percentile, a value that was measured. ValueError when empty or q is not in (0, 100]."""
    if not values or not 0 < q <= 100:
        raise ValueError(f"need values and 0 < q <= 100, got {len(values)} values and q = {q}")
    return sorted(values)[math.ceil(q / 100 * len(values)) - 1]


def _three(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (percentile(values, 50), percentile(values, 90), percentile(values, 99)) if values else None


def meets(sample: Sample, slo: Slo) -> bool:
    """Tell whether one request was answered within the SLO: first token, and every gap (no stall is averaged away)."""
    return (
        sample.outcome == "ok"
        and sample.ttft is not None
        and sample.ttft <= slo.ttft
        and max(sample.gaps, default=0.0) <= slo.itl
    )


def summarise(samples: Sequence[Sample], slo: Slo) -> Summary:
    """Return the figures of a run; its length is from the first due request to the last end. ValueError when empty."""
    if not samples:
        raise ValueError("no request was sent: the run is too short for its rate")
    seconds = max(s.end for s in samples) - min(s.due for s in samples)
    ok = [s for s in samples if s.outcome == "ok"]
    refused = [s for s in samples if s.outcome == "refused"]
    return Summary(
        requests=len(samples),
        ok=len(ok),
        refused=len(refused),
        errors=len(samples) - len(ok) - len(refused),
        tokens_per_second=sum(s.tokens for s in ok) / seconds,
        goodput=sum(meets(s, slo) for s in samples) / seconds,
        ttft=_three([s.ttft for s in ok if s.ttft is not None]),
        itl=_three([gap for s in ok for gap in s.gaps]),
        latency=_three([s.latency for s in ok]),
        refusal_p99=percentile([s.end - s.sent for s in refused], 99) if refused else None,
    )


def sustained(summary: Summary, slo: Slo) -> bool:
    """Tell whether a run met the SLO at p99 with every request answered: one refusal is a rate not sustained."""
    if summary.ok < summary.requests or summary.ttft is None:
        return False
    return summary.ttft[2] <= slo.ttft and (summary.itl is None or summary.itl[2] <= slo.itl)


def highest_rate(
    holds: Callable[[float], bool], *, start: float, tolerance: float = 0.1, limit: float = 1024.0
) -> float | None:
    """Return the highest rate found to hold, by doubling (or halving) from `start`, then bisection.

    tolerance: stop when the bracket is narrower than this part of its lower end. limit: never try a higher rate.
    None when not even start / 64 holds. Raises ValueError unless 0 < start <= limit and tolerance > 0.
    """
    if not 0 < start <= limit or tolerance <= 0:
        raise ValueError(f"need 0 < start <= limit and tolerance > 0, got {start}, {limit}, {tolerance}")
    if holds(start):
        low, high = start, None
        while high is None:
            if low >= limit:
                return low
            rate = min(2 * low, limit)
            if holds(rate):
                low = rate
            else:
                high = rate
    else:
        low, high = start / 2, start
        while not holds(low):
            if low <= start / 64:
                return None
            low, high = low / 2, low
    while high - low > tolerance * low:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
