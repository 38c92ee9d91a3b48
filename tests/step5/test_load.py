"""The load generator against a server of known delays: the figures come out right, a stall is not left out."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from step5_serving.load import Sample, Target, arrivals, closed_loop, open_loop
from step5_serving.load_report import Slo, highest_rate, percentile, summarise, sustained

SLO = Slo(ttft=1.0, itl=0.5)


async def against(answer: Callable[[web.StreamResponse], Awaitable[None]], run: Callable, status: int = 200) -> list:
    async def chat(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(status=status)
        await reply.prepare(request)
        await answer(reply)
        return reply

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return await run(Target("t", f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m"))
    finally:
        await runner.cleanup()


async def three_tokens(reply: web.StreamResponse) -> None:
    await asyncio.sleep(0.2)
    for _ in range(3):
        await reply.write(b"data: " + json.dumps({"choices": [{"delta": {"content": "a"}}]}).encode() + b"\n\n")
        await asyncio.sleep(0.1)
    await reply.write(b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n')


def test_arrivals_are_poisson_and_seeded() -> None:
    times = arrivals(50, 200, seed=1)
    assert times == arrivals(50, 200, seed=1) != arrivals(50, 200, seed=2)
    assert abs(len(times) - 10_000) < 400  # four standard deviations
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert 0.95 < spread / mean < 1.05  # 1 for exponential gaps, 0 for regular ones


def test_known_delays_come_out() -> None:
    samples = asyncio.run(against(three_tokens, lambda t: closed_loop(t, ["x"], streams=2, requests=4)))
    assert [s.outcome for s in samples] == ["ok"] * 4
    assert all(s.tokens == 3 for s in samples)
    for s in samples:
        assert s.ttft is not None
        assert 0.19 < s.ttft < 0.6
        assert len(s.gaps) == 2
        assert 0.05 < sum(s.gaps) / 2 < 0.4


def test_refusal_and_cut_stream_are_no_success() -> None:
    async def nothing(reply: web.StreamResponse) -> None:
        pass

    for status, outcome in ((429, "refused"), (503, "error"), (200, "error")):
        run = against(nothing, lambda t: closed_loop(t, ["x"], streams=1, requests=1), status)
        assert asyncio.run(run)[0].outcome == outcome


def test_a_stall_shows_in_every_request_due_during_it() -> None:
    async def run() -> list[Sample]:
        loop, free = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(1.0, free.set)

        async def stalled(reply: web.StreamResponse) -> None:
            await free.wait()
            await three_tokens(reply)

        return await against(stalled, lambda t: open_loop(t, ["x"], rate=20, seconds=0.8, seed=3))

    samples = asyncio.run(run())
    assert len(samples) == len(arrivals(20, 0.8, 3)) > 5
    waits = [s.ttft for s in samples if s.ttft is not None]
    assert min(waits) > 0.3
    assert waits[0] > 1.0


def test_latency_counts_from_due_not_from_sent() -> None:
    late = Sample(due=0.0, sent=2.0, outcome="ok", first=2.1, end=2.2)
    assert late.ttft == 2.1
    assert not sustained(summarise([late], SLO), SLO)


@pytest.mark.parametrize("capacity", [0.3, 5.0, 37.0])
def test_search_finds_the_capacity(capacity: float) -> None:
    found = highest_rate(lambda rate: rate <= capacity, start=4.0)
    assert found is not None
    assert found <= capacity <= found * 1.1
    assert highest_rate(lambda rate: False, start=4.0) is None
    assert highest_rate(lambda rate: True, start=4.0, limit=64.0) == 64.0


def test_percentile_is_nearest_rank() -> None:
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([7.0], 50) == 7.0
