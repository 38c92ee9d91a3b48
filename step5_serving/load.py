"""Load on an OpenAI-compatible endpoint, and what its clients then wait for.

Open loop: requests leave at the times of a Poisson process, whether or not earlier ones have been answered, as those
of independent users do. Closed loop: N streams, each sending its next request when the last has been answered.

Every wait counts from the moment the request was *due*, not from when it could be sent. A generator that waits for a
stalled server before sending more leaves out the very requests that the stall would have hurt ("coordinated
omission": Tene, "How NOT to Measure Latency", 2013).
"""

import asyncio
import json
import math
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

Outcome = Literal["ok", "refused", "error"]
REFUSED_PAUSE = 1.0  # seconds until a stream that got a 429 asks again: the least that Retry-After can say


@dataclass(frozen=True)
class Target:
    """Where requests go: a base URL that ends in /v1, the model's name there, a key where one is needed."""

    name: str
    url: str
    model: str
    key: str | None = None


@dataclass
class Sample:
    """One request. Times are seconds of one monotonic clock; `due` is when it should have left."""

    due: float
    sent: float
    outcome: Outcome = "error"
    status: int | None = None
    detail: str = ""
    first: float | None = None
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0  # of the answer, by the server's own usage block
    prompt_tokens: int = 0

    @property
    def ttft(self) -> float | None:
        """Seconds from due to the first token; None when none came."""
        return None if self.first is None else self.first - self.due

    @property
    def latency(self) -> float:
        """Seconds from due to the end of the answer or refusal."""
        return self.end - self.due


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times in [0, seconds) at which requests are due: a Poisson process of `rate` a second.

    Raises ValueError unless both are positive.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate and seconds must be positive, got {rate} and {seconds}")
    rng, times, now = random.Random(seed), [], 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        times.append(now)
    return times


def _has_text(chunk: dict[str, Any]) -> bool:
    """Tell whether a chunk carries part of the answer; the first one often carries only the role."""
    return any(
        choice.get("delta", {}).get(part)
        for choice in chunk.get("choices", ())
        for part in ("content", "reasoning_content", "tool_calls")
    )


async def ask(
    session: aiohttp.ClientSession, target: Target, prompt: str, *, due: float, max_tokens: int, timeout: float
) -> Sample:
    """Stream one chat completion. Never raises for what the server does: that is the sample's outcome."""
    sample = Sample(due=due, sent=time.perf_counter())
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"X-Request-Id": f"load-{uuid.uuid4().hex}"}  # by which logs of gateway and engine can be matched
    if target.key:
        headers["Authorization"] = f"Bearer {target.key}"
    last, done = 0.0, False
    try:
        limit = aiohttp.ClientTimeout(total=timeout)
        async with session.post(f"{target.url}/chat/completions", json=body, headers=headers, timeout=limit) as reply:
            sample.status = reply.status
            if reply.status != 200:
                sample.outcome = "refused" if reply.status == 429 else "error"
                sample.detail = (await reply.text())[:200]
                return sample
            async for line in reply.content:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    done = True
                    break
                chunk, now = json.loads(payload), time.perf_counter()
                if "error" in chunk:
                    sample.detail = str(chunk["error"])[:200]
                    return sample
                if usage := chunk.get("usage"):
                    sample.tokens, sample.prompt_tokens = usage["completion_tokens"], usage.get("prompt_tokens", 0)
                if _has_text(chunk):
                    if sample.first is None:
                        sample.first = now
                    else:
                        sample.gaps.append(now - last)
                    last = now
        # A stream that merely ends, without [DONE] or a token, was cut off: no success.
        sample.outcome = "ok" if done and sample.first is not None else "error"
        if sample.outcome == "error":
            sample.detail = "the stream ended early"
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
        sample.detail = f"{type(error).__name__}: {error}"[:200]
    finally:
        sample.end = time.perf_counter()
    return sample


def _session() -> aiohttp.ClientSession:
    """A session without a limit on connections: aiohttp's own, 100, would queue requests in the client."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def open_loop(
    target: Target,
    prompts: Sequence[str],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    max_tokens: int = 64,
    timeout: float = 120.0,
) -> list[Sample]:
    """Send prompts in turn at the times of `arrivals`; return every sample in order of due time."""
    times = arrivals(rate, seconds, seed)
    async with _session() as session, asyncio.TaskGroup() as group:
        start, tasks = time.perf_counter(), []
        for index, at in enumerate(times):
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            prompt = prompts[index % len(prompts)]
            request = ask(session, target, prompt, due=start + at, max_tokens=max_tokens, timeout=timeout)
            tasks.append(group.create_task(request))
    return [task.result() for task in tasks]


async def closed_loop(
    target: Target,
    prompts: Sequence[str],
    *,
    streams: int,
    requests: int,
    seconds: float = math.inf,
    max_tokens: int = 64,
    timeout: float = 120.0,
) -> list[Sample]:
    """Send `requests` prompts over `streams` streams, each asking again once answered; return every sample.

    seconds: after which no new request is sent; those under way are answered and count.
    """
    waiting, samples, deadline = iter(range(requests)), [], time.perf_counter() + seconds

    async def stream(session: aiohttp.ClientSession) -> None:
        for index in waiting:
            if time.perf_counter() > deadline:
                return
            prompt, now = prompts[index % len(prompts)], time.perf_counter()
            samples.append(await ask(session, target, prompt, due=now, max_tokens=max_tokens, timeout=timeout))
            if samples[-1].outcome == "refused":
                await asyncio.sleep(REFUSED_PAUSE)

    async with _session() as session, asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(stream(session))
    return samples


async def alternate(
    first: Target, second: Target, prompts: Sequence[str], *, pairs: int, max_tokens: int = 1, timeout: float = 120.0
) -> list[tuple[Sample, Sample]]:
    """Ask both targets the same prompts one by one, the order swapped in every other pair so that drift and a warm
    prefix cache favour neither."""
    result = []
    async with _session() as session:
        for index in range(pairs):
            prompt, found = prompts[index % len(prompts)], {}
            for target in (first, second) if index % 2 == 0 else (second, first):
                now = time.perf_counter()
                found[target] = await ask(session, target, prompt, due=now, max_tokens=max_tokens, timeout=timeout)
            result.append((found[first], found[second]))
    return result
