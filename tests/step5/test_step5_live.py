"""The figures of the page, and the headers it comes with; no browser.

python -m pytest tests/step5/test_step5_live.py
"""

import base64
import re
import time
from dataclasses import dataclass, field
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fake_engine import Fake

from step5_serving.metrics import LATENCY, Metrics
from step5_serving.web import live
from step5_serving.web.live import BOUNDS, POINTS, WINDOW, Live, bucket_counts, quantile
from step5_serving.web.page import render


@dataclass
class World:
    """Live over real series; time passes when a test says so."""

    now: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)
    ledger: Any = field(default_factory=lambda: SimpleNamespace(streamed=0))
    admission: Any = field(default_factory=lambda: SimpleNamespace(queued=0, slots=4))
    engines: Any = field(default_factory=lambda: SimpleNamespace(all=[]))

    def __post_init__(self) -> None:
        self.live = Live(self.metrics, self.admission, self.engines, self.ledger, lambda: self.now)

    def point(self, seconds: float = 2.0) -> dict[str, Any]:
        """Let time pass and return the new point."""
        self.now += seconds
        self.live.sample()
        found: dict[str, Any] = self.live.document(0)["points"][-1]
        return found

    def finish(self, tokens: int, model: str = "m") -> None:
        """A request ends with so many tokens."""
        self.metrics.tokens.labels(model, "completion").inc(tokens)
        self.metrics.tokens.labels(model, "prompt").inc(1000)


@pytest.fixture
def world() -> World:
    return World()


def test_a_rate_is_the_difference_over_the_time_that_really_passed(world: World) -> None:
    world.finish(30, "a")
    world.finish(10, "b")
    assert world.point(4.0)["tokens"] == 10
    assert world.point()["tokens"] == 0
    world.finish(1)
    assert world.point()["tokens"] == 0.5


def test_what_was_counted_before_the_first_reading_is_not_new() -> None:
    metrics = Metrics()
    metrics.tokens.labels("m", "completion").inc(500)
    metrics.cost.labels("m").inc(3)
    metrics.errors.labels("queue_full").inc()
    point = World(metrics=metrics).point()
    assert (point["tokens"], point["cost"], point["errors"]) == (0, 0, {})


def test_a_stream_counts_while_it_runs_and_not_again_when_it_ends(world: World) -> None:
    world.ledger.streamed = 20
    assert world.point()["tokens"] == 10
    world.ledger.streamed = 42  # two of the events were no tokens
    assert world.point()["tokens"] == 11
    world.ledger.streamed = 0
    world.finish(40)
    assert world.point()["tokens"] == 0
    world.finish(6)
    assert world.point()["tokens"] == 2  # of six tokens two had been shown before
    assert sum(point["tokens"] * 2 for point in world.live.document(0)["points"]) == 46


def test_percentiles_are_of_the_last_thirty_seconds(world: World) -> None:
    assert world.point()["p50"] is None
    for seconds in (0.3, 0.3, 0.3, 0.3):
        world.metrics.first_token.labels("a").observe(seconds)
    for seconds in (0.3, 0.3, 0.3, 3.0):
        world.metrics.first_token.labels("b").observe(seconds)
    point = world.point()
    assert point["p50"] == pytest.approx(0.25 + 0.25 * 4 / 7)  # the fourth of seven in (0.25, 0.5]
    assert point["p95"] == pytest.approx(2 + 2 * 0.6)
    points = [world.point() for _ in range(WINDOW)]
    assert [point["p50"] is None for point in points] == [False] * (WINDOW - 1) + [True]


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        (0.5, [0, 0, 0], None),
        (0.5, [10, 10, 10], 0.5),
        (0.5, [0, 10, 10], 1.5),
        (0.95, [0, 0, 10], 2.0),  # beyond the last bound: that is all that is known
        (1.0, [1, 4, 4], 2.0),
    ],
)
def test_quantile_by_hand(q: float, counts: list[float], expected: float | None) -> None:
    assert quantile(q, [1.0, 2.0, float("inf")], counts) == expected


def test_a_quantile_lies_in_the_bucket_of_the_true_one(world: World) -> None:
    values = sorted(0.001 * 1.09**i for i in range(120))
    for value in values:
        world.metrics.first_token.labels("m").observe(value)
    counts = bucket_counts(world.metrics.first_token)
    for q in (0.05, 0.5, 0.9, 0.95):
        true = values[int(q * len(values)) - 1]
        bucket = next(i for i, bound in enumerate(BOUNDS) if true <= bound)
        estimate = quantile(q, BOUNDS, counts)
        assert estimate is not None
        assert (LATENCY[bucket - 1] if bucket else 0) <= estimate <= BOUNDS[bucket]


def test_errors_are_by_kind_and_only_those_that_happened(world: World) -> None:
    world.metrics.errors.labels("queue_full").inc(3)
    world.metrics.errors.labels("client_left").inc()
    assert world.point()["errors"] == {"queue_full": 3, "client_left": 1}
    world.metrics.errors.labels("client_left").inc()
    assert world.point()["errors"] == {"client_left": 1}


def test_gauges_and_money(world: World) -> None:
    world.metrics.in_flight.inc(7)
    world.admission.queued = 3
    world.metrics.cost.labels("a").inc(0.25)
    world.metrics.cost.labels("b").inc(0.5)
    point = world.point()
    assert (point["in_flight"], point["queued"], point["slots"], point["cost"]) == (7, 3, 4, 0.75)
    assert world.point()["cost"] == 0


def test_memory_is_bounded_and_only_news_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1, 1_000_000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    for _ in range(POINTS + 50):
        world.point()
    points = world.live.document(0)["points"]
    assert len(points) == POINTS
    assert [point["t"] for point in world.live.document(points[-3]["t"])["points"]] == [
        points[-2]["t"], points[-1]["t"]
    ]  # fmt: skip


def test_a_point_is_cheap(world: World) -> None:
    """It is made on the event loop, between requests: a tenth of the 50 ms that a refusal may take, every 2 s."""
    for model in ("base", "tools", "grader"):
        for seconds in (0.01, 1.0):
            world.metrics.first_token.labels(model).observe(seconds)
        world.finish(1, model)
    best = min(_seconds(world) for _ in range(20))
    assert best < 0.005


def _seconds(world: World) -> float:
    began = time.thread_time()  # of this thread alone: other programs may be busy
    world.point()
    return time.thread_time() - began


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_no_key_and_forbids_itself_everything_else(gateway: Any) -> None:
    answer = httpx.get(gateway.url + "/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in str(policy)
    for tag in ("style", "script"):
        [inside] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_page_names_nothing_outside_and_leaves_nothing_unfilled() -> None:
    page, _ = render()
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+", page) == []
    assert "{{" not in page
    assert re.search(r'\s(on\w+|style)="', page) is None  # the policy would not let them work
    assert len(page) < 60_000


def test_live_tells_what_happens(start: Any, engine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 600)  # here the test samples
    gateway = start(engine)
    gateway.chat(max_tokens=50)
    gateway.chat(model="unknown")
    gateway.parts.live.sample()
    figures = httpx.get(gateway.url + "/live").json()
    [point] = figures["points"]
    assert point["tokens"] > 0
    assert point["errors"] == {"model_not_found": 1}
    assert figures["engines"] == [
        {"url": engine.url, "name": "openai", "ready": True, "in_flight": 0, "slots": 32}
    ]  # fmt: skip
    assert httpx.get(gateway.url + "/live", params={"after": point["t"]}).json()["points"] == []
    assert httpx.get(gateway.url + "/live", params={"after": "nan"}).status_code in (400, 422)


def test_points_come_by_themselves(start: Any, engine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.01)
    gateway = start(engine)
    end = time.monotonic() + 10
    while len(httpx.get(gateway.url + "/live").json()["points"]) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["/live", "/metrics"])
def test_figures_are_the_operators_elsewhere_they_take_a_key(
    gateway: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    assert httpx.get(gateway.url + path).status_code == 200
    monkeypatch.setattr("step5_serving.app.is_loopback", lambda host: False)
    assert httpx.get(gateway.url + path).status_code == 401
    assert httpx.get(gateway.url + path, headers=gateway.headers()).status_code == 200
