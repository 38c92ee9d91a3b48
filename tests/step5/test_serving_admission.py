"""Admission control: bounded waiting, refusals at once, fairness among keys."""

import asyncio
import time

import pytest
from conftest import Gateway, Start, eventually, new_key
from fake_engine import Fake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step5_serving.admission import Admission, Ticket
from step5_serving.refusals import Refusal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def gate(slots: int = 1, max_wait: float = 1.0, rate: float = 100.0) -> tuple[Admission, Clock]:
    """A gate with `max_wait × rate` tokens of queue, on a clock that stands still."""
    clock = Clock()
    return Admission(slots, max_wait, rate, clock), clock


def test_the_queue_is_bounded_in_tokens() -> None:
    async def scenario() -> None:
        admission, _ = gate(slots=2)  # 100 tokens may wait
        running = [admission.enter("a", 30) for _ in range(2)]
        assert [await admission.wait(ticket) for ticket in running] == [0, 0]
        waiting = [admission.enter("a", 30), admission.enter("a", 30)]
        with pytest.raises(Refusal) as refused:
            admission.enter("a", 30)
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert refused.value.retry_after == 1
        assert (admission.running, admission.queued, admission.queued_tokens) == (2, 2, 60)
        admission.leave(running[0], 30)
        assert waiting[0].running
        assert not waiting[1].running

    asyncio.run(scenario())


def test_an_empty_queue_takes_any_one_request() -> None:
    async def scenario() -> None:
        admission, _ = gate()
        first = admission.enter("a", 10)
        long = admission.enter("a", 5000)
        admission.leave(first, 10)
        assert long.running

    asyncio.run(scenario())


def test_a_flood_from_one_key_leaves_room_for_another_and_does_not_go_first() -> None:
    async def scenario() -> list[str]:
        admission, _ = gate()
        tickets = [admission.enter("flood", 10)]
        tickets += [admission.enter("flood", 10) for _ in range(5)]  # alone, a key gets half of the queue
        with pytest.raises(Refusal):
            admission.enter("flood", 10)
        tickets += [admission.enter("other", 10) for _ in range(2)]
        order: list[str] = []
        while running := [ticket for ticket in tickets if ticket.running]:
            order.append(running[0].key)
            admission.leave(running[0], 10)
        return order

    order = asyncio.run(scenario())
    assert order[:5] == ["flood", "flood", "other", "flood", "other"]
    assert order.count("flood") == 6


def test_fair_means_tokens_not_requests() -> None:
    async def scenario() -> list[str]:
        admission, _ = gate(rate=1000)
        tickets = [admission.enter("x", 1)]
        tickets += [admission.enter("long", 100) for _ in range(3)]
        tickets += [admission.enter("short", 20) for _ in range(10)]
        order: list[str] = []
        while running := [ticket for ticket in tickets if ticket.running]:
            order.append(running[0].key)
            admission.leave(running[0], 10)
        return order[1:]

    assert asyncio.run(scenario())[:8] == ["long", "short", "short", "short", "short", "short", "long", "short"]


def test_waiting_ends_when_the_estimate_was_wrong() -> None:
    async def scenario() -> None:
        admission = Admission(1, 0.02, 100.0)
        admission.enter("a", 1)
        waiting = admission.enter("b", 1)
        with pytest.raises(Refusal) as refused:
            await admission.wait(waiting)
        assert (refused.value.status, refused.value.code) == (429, "queue_timeout")
        admission.leave(waiting)
        assert (admission.running, admission.queued, admission.queued_tokens) == (1, 0, 0)

    asyncio.run(scenario())


def test_without_an_engine_nobody_keeps_waiting() -> None:
    async def scenario() -> None:
        admission, _ = gate()
        admission.enter("a", 1)
        waits = [asyncio.ensure_future(admission.wait(admission.enter(key, 1))) for key in "bcb"]
        await asyncio.sleep(0)
        admission.fail(Refusal(503, "engine_unavailable", "gone", retry_after=3))
        for wait in waits:
            with pytest.raises(Refusal, match="gone"):
                await wait
        assert (admission.queued, admission.queued_tokens) == (0, 0)

    asyncio.run(scenario())


def test_the_drain_rate_is_measured_while_all_slots_are_taken() -> None:
    async def scenario() -> None:
        admission, clock = gate(rate=300)
        tickets = [admission.enter("a", 50), admission.enter("a", 50)]
        for _ in range(120):  # one request of 50 tokens a second
            clock.now += 1
            admission.leave(tickets.pop(0), 50)
            tickets.append(admission.enter("a", 50))
        assert admission.rate == pytest.approx(50, rel=0.1)
        measured = admission.rate
        while tickets:
            admission.leave(tickets.pop(0), 50)
        clock.now += 3600  # an idle hour says nothing about the machine
        assert admission.rate == pytest.approx(measured, rel=0.1)

    asyncio.run(scenario())


def test_nobody_waits_who_would_get_no_slot_in_time() -> None:
    """By tokens there would be room; but the running answers began together, and have as far to go."""

    async def scenario() -> None:
        admission, clock = gate(slots=2, max_wait=1, rate=1000)
        running = [admission.enter("a", 50, 20) for _ in range(2)]
        for token in range(1, 11):  # ten of twenty tokens, one each half second
            clock.now += 0.5
            for ticket in running:
                admission.progress(ticket, token)
        with pytest.raises(Refusal) as refused:
            admission.enter("b", 10, 20)
        assert (refused.value.code, refused.value.retry_after) == ("queue_full", 4)  # 10 × 0.5 s, less max_wait
        clock.now += 4.1  # they will be through in 0.9 s, if nothing holds them up
        first, second = admission.enter("b", 10, 20), admission.enter("b", 10, 20)
        with pytest.raises(Refusal):  # two slots come free in time, for those two
            admission.enter("b", 10, 20)
        for ticket in running:
            admission.leave(ticket, 50)
        assert first.running
        assert second.running

    asyncio.run(scenario())


def test_answers_that_show_no_progress_are_not_reckoned_with() -> None:
    """Not streamed, or the engine hangs: the bound in tokens is left."""

    async def scenario() -> None:
        admission, clock = gate(max_wait=1, rate=1000)
        silent = admission.enter("a", 50, 20)
        clock.now += 100
        waiting = admission.enter("b", 50, 20)
        admission.leave(silent, 50)
        assert waiting.running

    asyncio.run(scenario())


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.integers(0, 3)), max_size=80))
def test_slots_and_queue_always_add_up(steps: list[tuple[str, int, int]]) -> None:
    async def scenario() -> None:
        admission, clock = gate(slots=2)
        open_tickets: list[Ticket] = []
        for key, tokens, leave in steps:
            clock.now += 0.1
            try:
                open_tickets.append(admission.enter(key, tokens))
            except Refusal:
                assert admission.queued
            for _ in range(min(leave, len(open_tickets))):
                admission.leave(open_tickets.pop(tokens % len(open_tickets)), tokens)
            waiting = [ticket for ticket in open_tickets if not ticket.running]
            assert admission.running == len(open_tickets) - len(waiting) <= 2
            assert admission.queued == len(waiting)
            assert admission.queued_tokens == sum(ticket.tokens for ticket in waiting)
            assert not waiting or admission.running == 2  # no free slot while somebody waits
        for ticket in open_tickets:
            admission.leave(ticket, 1)
            admission.leave(ticket, 1)  # twice is fine
        assert (admission.running, admission.queued, admission.queued_tokens) == (0, 0, 0)

    asyncio.run(scenario())


def test_a_full_service_says_so_within_50_ms(start: Start, engine: Fake) -> None:
    engine.seconds_per_token, engine.tokens = 0.5, 4
    gateway = start(engine, slots=1, max_wait=0.5)
    took: list[float] = []

    def refused() -> None:
        eventually(lambda: gateway.parts.admission.queued >= 1)
        for _ in range(5):
            before = time.perf_counter()
            answer = gateway.chat("one two three " * 50, max_tokens=4)
            took.append(time.perf_counter() - before)
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1

    long = "one two three " * 50
    gateway.at_once([lambda: gateway.chat(long, max_tokens=4), lambda: gateway.chat(long, max_tokens=1), refused])
    assert min(took) < 0.05
    assert engine.most_running == 1
    assert gateway.metric("gateway_errors_total", kind="queue_full") == 5
    assert gateway.parts.admission.running == 0


def test_under_overload_the_admitted_are_answered_in_time(start: Start, engine: Fake) -> None:
    """60 requests at once for an engine that needs 3 s for all of them: who gets in has waited a bounded time."""
    engine.seconds_per_token, engine.tokens = 0.02, 5
    gateway = start(engine, slots=2, max_wait=0.5)
    gateway.parts.admission._drained = 400.0 * 30  # 200 tokens may wait: a few requests of about 30

    def timed() -> tuple[int, float]:
        before = time.perf_counter()
        return gateway.chat("one two", max_tokens=5).status_code, time.perf_counter() - before

    answers = gateway.at_once([timed] * 60)
    assert {status for status, _ in answers} == {200, 429}
    admitted = [row for row in gateway.rows() if row["outcome"] == "ok"]
    assert len(admitted) == [status for status, _ in answers].count(200) >= 4
    assert max(row["queued"] for row in admitted) < 1.0  # twice max_wait
    assert engine.most_running == 2


def test_a_quiet_key_is_served_beside_a_flood(start: Start, engine: Fake) -> None:
    engine.seconds_per_token = 0.02
    gateway = start(engine, slots=1, max_wait=60)
    quiet = new_key("quiet")
    eventually(lambda: gateway.get("/v1/models", quiet).status_code == 200)

    def late() -> list[int]:
        eventually(lambda: gateway.parts.admission.queued >= 15)
        return [gateway.chat("quiet", quiet).status_code for _ in range(3)]

    gateway.at_once([*[lambda: gateway.chat("flood")] * 20, late])
    assert engine.order.count("flood") == 20
    positions = [place for place, word in enumerate(engine.order) if word == "quiet"]
    assert len(positions) == 3
    assert positions[-1] <= 14  # each waits for about one of the flood, not for all of it


def test_engines_come_and_go(gateway: Gateway, engine: Fake) -> None:
    assert gateway.parts.admission.slots == 32
    engine.healthy = False
    eventually(lambda: gateway.parts.admission.slots == 0)
    gone = gateway.chat()
    assert gone.status_code == 503
    assert int(gone.headers["retry-after"]) >= 1
    engine.healthy = True
    eventually(lambda: gateway.chat().status_code == 200)
