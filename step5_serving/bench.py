"""What the service carries, measured in one run so that ratios compare like with like.

python -m step5_serving bench                                     # vLLM where installed, embedded, generate: 10 minutes
python -m step5_serving bench --targets vllm,vllm+gateway
python -m step5_serving bench --engine-url http://127.0.0.1:8000  # an engine that runs already

Per engine, alone and behind the gateway: closed loop at 1, 8 and 32 streams; the gateway's added time to the first
token, from requests that alternate; the prefix cache; the highest rate that meets the SLO, open loop, and 3 times that
rate. Each cell's prompts begin with a number of their own: what an engine has cached from the cell before is no help.

A closed-loop cell is one run of some 15 seconds: ratios near 1 differ by a few per cent between runs, so that
"throughput >= 0.97 of the engine's" takes longer cells (--seconds) or several runs to establish. The added time is
measured with no other load. A highest rate found with few requests rests on their slowest one.
"""

import asyncio
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UserError
from shared.results import Metric, Row, metric
from shared.terminal import say
from step5_serving.bench_targets import generate_one_by_one, running_engine, running_gateway
from step5_serving.load import Sample, Target, alternate, closed_loop, open_loop
from step5_serving.load_report import Slo, Summary, highest_rate, percentile, summarise, sustained

ENGINES = ("vllm", "embedded")
TARGETS = ("vllm", "vllm+gateway", "embedded", "embedded+gateway", "transformers")
PREFIX_WORDS = 700  # of MT-bench some 1,000 tokens; the row says how many they were
OVERLOAD = 3.0  # times the sustainable rate
SLO = Slo(ttft=2.0, itl=0.5)


@dataclass(frozen=True)
class Plan:
    """How much is measured. seconds: of each cell and probe, after which nothing new is sent. requests: at most, per
    closed-loop cell. start_rate, max_rate: requests a second, where the search begins and what it never exceeds.
    tolerance: of the rate found. max_wait: the gateway's own, in seconds; None for what serve has."""

    streams: Sequence[int] = (1, 8, 32)
    seconds: float = 15.0
    requests: int = 320
    max_tokens: int = 64
    pairs: int = 40
    prefixes: int = 5
    slo: Slo = SLO
    start_rate: float = 1.0
    max_rate: float = 64.0
    tolerance: float = 0.25
    max_wait: float | None = None


@dataclass(frozen=True)
class Probe:
    """One open-loop run of a target at a rate, for the curve."""

    target: str
    rate: float
    summary: Summary


def read_prompts(path: Path | None) -> list[str]:
    """First turns of a file like MT-bench's: JSON lines with `turns`. None: MT-bench's own 80, fetched.

    Raises UserError for a file that has none.
    """
    if path is None:
        from shared.artifacts import fetch

        path = fetch("mt-bench")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        prompts = [str(json.loads(line)["turns"][0]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f'{path}: not JSON lines with "turns": {type(error).__name__}: {error}') from None
    if not prompts:
        raise UserError(f"{path} holds no prompts")
    return prompts


class Prompts:
    """An endless supply of prompts that no cache has seen."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts, self._numbers = itertools.cycle(texts), itertools.count(1)

    def fresh(self, count: int) -> list[str]:
        """So many prompts, each with a number of its own in front."""
        return [f"({next(self._numbers)}) {next(self._texts)}" for _ in range(count)]

    def long(self) -> str:
        """A text of PREFIX_WORDS words that begins like no other."""
        words: list[str] = []
        while len(words) < PREFIX_WORDS:
            words += self.fresh(1)[0].split()
        return " ".join(words[:PREFIX_WORDS])


def _ms(seconds: float | None) -> Metric:
    return metric(None if seconds is None else 1000 * seconds, unit="ms")


def cell_row(name: str, summary: Summary, baseline: float | None) -> Row:
    """A row of the closed-loop table. baseline: tokens per second of `generate`, None when it was not measured."""
    ttft, itl = summary.ttft or (None, None, None), summary.itl or (None, None, None)
    return {
        "name": name,
        "metrics": {
            "tokens/s": metric(summary.tokens_per_second),
            "TTFT p50": _ms(ttft[0]),
            "TTFT p99": _ms(ttft[2]),
            "ITL p50": _ms(itl[0]),
            "ITL p99": _ms(itl[2]),
            "× generate": metric(summary.tokens_per_second / baseline if baseline else None, unit="×"),
            "requests": metric(summary.requests),
            "not answered": metric(summary.requests - summary.ok),
        },
    }


def closed_rows(targets: Sequence[Target], prompts: Prompts, plan: Plan, baseline: float | None) -> Iterator[Row]:
    """Closed loop: targets next to each other at each number of streams; a warm-up before each is not counted."""
    for streams in plan.streams:
        for target in targets:
            say(f"{target.name}: {streams} streams, closed loop")
            asyncio.run(closed_loop(target, prompts.fresh(streams), streams=streams, requests=streams, max_tokens=4))
            run = closed_loop(
                target, prompts.fresh(plan.requests), streams=streams, requests=plan.requests, seconds=plan.seconds,
                max_tokens=plan.max_tokens,
            )  # fmt: skip
            yield cell_row(f"{target.name}, {streams} streams", summarise(asyncio.run(run), plan.slo), baseline)


def added_row(engine: Target, gateway: Target, prompts: Prompts, plan: Plan) -> Row:
    """What the gateway adds to the time to the first token, by pairs of requests with the same prompt.

    Both have been asked each prompt before, so that the engine's prefix cache favours neither. Raises UserError
    (exit code 1) when no pair was answered.
    """
    say(f"{gateway.name}: added time to the first token, {plan.pairs} pairs")
    texts = prompts.fresh(min(plan.pairs, 20))
    asyncio.run(alternate(engine, gateway, texts, pairs=len(texts)))
    pairs = asyncio.run(alternate(engine, gateway, texts, pairs=plan.pairs))
    added = [b.ttft - a.ttft for a, b in pairs if a.ttft is not None and b.ttft is not None]
    if not added:
        raise UserError(f"{gateway.name}: no pair of requests was answered: {pairs[0][1].detail}", exit_code=1)
    metrics = {"p50": _ms(statistics.median(added)), "p99": _ms(percentile(added, 99)), "pairs": metric(len(added))}
    return {"name": f"{gateway.name}, added TTFT", "metrics": metrics}


def prefix_row(target: Target, prompts: Prompts, plan: Plan) -> Row:
    """Time to the first token of a second request over that of the first, with the same long beginning.

    Median of `plan.prefixes` prefixes. None where the requests were not answered.
    """
    say(f"{target.name}: shared prefix")
    firsts: list[float] = []
    seconds: list[float] = []
    length = 0
    for _ in range(plan.prefixes):
        prefix = prompts.long()
        asked: list[Sample] = []
        for question in ("What is this about?", "Who would write this?"):
            text = [f"{prefix}\n\n{question}"]
            asked += asyncio.run(closed_loop(target, text, streams=1, requests=1, max_tokens=1))
        if asked[0].ttft is not None and asked[1].ttft is not None:
            firsts.append(asked[0].ttft)
            seconds.append(asked[1].ttft)
            length = asked[0].prompt_tokens
    ratios = [b / a for a, b in zip(firsts, seconds, strict=True)]
    return {
        "name": f"{target.name}, shared prefix",
        "metrics": {
            "prompt tokens": metric(length or None),
            "TTFT first": _ms(statistics.median(firsts) if firsts else None),
            "TTFT second": _ms(statistics.median(seconds) if seconds else None),
            "second / first": metric(statistics.median(ratios) if ratios else None, unit="×"),
        },
    }


def probe(target: Target, prompts: Prompts, plan: Plan, rate: float) -> Probe | None:
    """One open-loop run; None when the time is too short for a single request at this rate."""
    say(f"{target.name}: {rate:.3g} requests a second, open loop")
    texts = prompts.fresh(int(2 * rate * plan.seconds) + 20)
    run = open_loop(target, texts, rate=rate, seconds=plan.seconds, seed=1, max_tokens=plan.max_tokens)
    samples = asyncio.run(run)
    return Probe(target.name, rate, summarise(samples, plan.slo)) if samples else None


def sweep(target: Target, prompts: Prompts, plan: Plan) -> tuple[list[Row], list[Probe]]:
    """The highest rate that meets the SLO, and what happens at 3 times that; also all probes, for the curve.

    With few requests per probe its p99 is its slowest request: --seconds makes the verdict firmer.
    """
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        found = probe(target, prompts, plan, rate)
        if found is None:
            return False
        probes.append(found)
        return sustained(found.summary, plan.slo)

    best = highest_rate(holds, start=min(plan.start_rate, plan.max_rate), tolerance=plan.tolerance, limit=plan.max_rate)
    if best is None:
        return [{"name": f"{target.name}, highest rate", "metrics": {"rate": metric(None, unit="/s")}}], probes
    at_best = next(p.summary for p in reversed(probes) if p.rate == best)
    over = probe(target, prompts, plan, OVERLOAD * best)
    assert over is not None
    assert at_best.ttft is not None
    probes.append(over)
    p99 = over.summary.ttft[2] if over.summary.ttft else None
    rows: list[Row] = [
        {
            "name": f"{target.name}, highest rate",
            "metrics": {
                "rate": metric(best, unit="/s"),
                "at the limit of the search": metric(int(best >= plan.max_rate)),
                "tokens/s": metric(at_best.tokens_per_second),
                "TTFT p99": _ms(at_best.ttft[2]),
                "requests": metric(at_best.requests),
            },
        },
        {
            "name": f"{target.name}, {OVERLOAD:g} × that rate",
            "metrics": {
                "rate": metric(over.rate, unit="/s"),
                "TTFT p99": _ms(p99),
                "TTFT p99 ratio": metric(p99 / at_best.ttft[2] if p99 else None, unit="×"),
                "requests": metric(over.summary.requests),
                "refused": metric(over.summary.refused),
                "errors": metric(over.summary.errors),
                "429 p99": _ms(over.summary.refusal_p99),
            },
        },
    ]
    return rows, probes


def generate_row(model: str, prompts: Prompts, plan: Plan) -> tuple[Row, float]:
    """Plain `generate`, one by one; also its tokens per second."""
    from step5_serving.checkpoint import directory_of

    say("transformers: generate, one by one")
    answers = generate_one_by_one(
        directory_of(model), prompts.fresh(plan.requests), max_tokens=plan.max_tokens, seconds=plan.seconds
    )
    samples = [
        Sample(
            a["due"], a["due"], "ok", first=a["times"][0], end=a["times"][-1], tokens=len(a["times"]),
            gaps=[later - earlier for earlier, later in itertools.pairwise(a["times"])],
        )
        for a in answers if a["times"]
    ]  # fmt: skip
    summary = summarise(samples, plan.slo)
    return cell_row("transformers generate, one by one", summary, summary.tokens_per_second), summary.tokens_per_second


def check_targets(targets: Sequence[str], has_url: bool, has_vllm: bool) -> None:
    """Raise UserError for a target that there is not."""
    known = ("engine", "engine+gateway", "transformers") if has_url else TARGETS
    for name in targets:
        if name not in known:
            raise UserError(f"--targets {name!r}: use {', '.join(known)}{' with --engine-url' if has_url else ''}")
        if name.startswith("vllm") and not has_vllm:
            raise UserError(f"--targets {name}: vLLM is not installed (extra cpu or cuda, Linux)")
    if not targets:
        raise UserError("--targets names none")


def bench(
    targets: Sequence[str], prompts: Prompts, plan: Plan, *, model: str, engine_url: str | None = None, slots: int = 32
) -> tuple[list[Row], list[Probe]]:
    """Measure the targets, one engine at a time; return rows and probes. Raises UserError when one does not start.

    engine_url: without /v1, for the targets engine and engine+gateway; slots: requests that it computes at once.
    """
    from step5_serving.launch import choose_launch

    rows: list[Row] = []
    probes: list[Probe] = []
    baseline: float | None = None
    if "transformers" in targets:
        row, baseline = generate_row(model, prompts, plan)
        rows.append(row)
    for name in ENGINES if engine_url is None else ("engine",):
        chosen = [target for target in targets if target.partition("+")[0] == name]
        if not chosen:
            continue
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            if engine_url is None:
                say(f"{name}: starting")
                launch = choose_launch(name, model, [])
                engine, slots = stack.enter_context(running_engine(launch, folder)), launch.slots
            else:
                engine = Target(name, f"{engine_url.rstrip('/').removesuffix('/v1')}/v1", model)
            asked = [engine] if name in chosen else []
            if f"{name}+gateway" in chosen:
                options = [] if plan.max_wait is None else ["--max-wait", str(plan.max_wait)]
                asked.append(stack.enter_context(running_gateway(engine, slots, folder, options))[0])
            rows += closed_rows(asked, prompts, plan, baseline)
            if len(asked) == 2:
                rows.append(added_row(engine, asked[1], prompts, plan))
            rows.append(prefix_row(asked[0], prompts, plan))
            found, curve = sweep(asked[-1], prompts, plan)  # behind the gateway, if it takes part
            rows += found
            probes += curve
    return rows, probes
