"""Chapter 5: the service. vLLM (or the embedded engine) behind the gateway, a short load, one request's cost and trace,
then steps 2 and 3 with nothing changed but OPENAI_BASE_URL.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.tour import tools, training
from scripts.tour.documents import show_answer
from scripts.tour.findings import Chapter, Facts, Picture, Stage, Table, Talk, Text, Verdict
from scripts.tour.pictures import BLUE, Span, timeline
from scripts.tour.spans import Collector, collecting
from scripts.tour.steps import ask_step
from shared.errors import UserError

if TYPE_CHECKING:
    from step5_serving.load import Sample, Target

STREAMS, SECONDS, TOKENS = (1, 8), 10.0, 48
CHAT = "Why is the sky blue? Answer in two sentences."
TOOL = "What is the weather in Oslo?"
DOCUMENT = "what is a thundersnow"
LONGEST = 80  # tokens of the chat's answer


def perform(stage: Stage) -> None:
    """Start, load, account, and let the two steps use it. A step that fails does not keep the other from trying."""
    from step5_serving.bench_targets import running_engine, running_gateway
    from step5_serving.launch import choose_launch, published_adapters

    mine = _two_minutes(stage)
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        adapters = [*published_adapters(stage.model), *([mine] if mine else [])]
        launch = choose_launch(None, stage.model, adapters)
        stage.remark(f"starting {launch.name}, which takes about {launch.start_seconds:.0f} s")
        begun = time.perf_counter()
        engine = stack.enter_context(running_engine(launch, folder))
        gateway, _ = stack.enter_context(running_gateway(engine, launch.slots, folder))
        served = [launch.model, *(path.name for path in adapters)]
        which = "vLLM" if launch.name == "vllm" else "the project's own engine (vLLM is not installed here)"
        ready = time.perf_counter() - begun
        stage.show(
            Facts(
                [
                    ("engine", which, "behind step 5's gateway"),
                    ("ready", f"{ready:.0f} s", f"serves {', '.join(served)}"),
                ]
            )
        )
        _load(stage, gateway, continuous=launch.name == "vllm")
        _one_request(stage, gateway, collector, spans=3 if launch.name == "vllm" else 2)
        problems = _steps(stage, gateway, [path.name for path in adapters])
        _accounts(stage, gateway)
    if problems:
        raise UserError("; ".join(problems), exit_code=1)


def _two_minutes(stage: Stage) -> Path | None:
    """Chapter 4's adapter under its own name (training calls every adapter's folder alike), or None without one."""
    made, named = stage.tour / "training" / training.RUN / "adapter", stage.folder / training.RUN
    if not made.is_dir():
        return None
    shutil.rmtree(named, ignore_errors=True)
    shutil.copytree(made, named)
    return named


# -- load --------------------------------------------------------------------------------------------------------------


def _load(stage: Stage, gateway: "Target", *, continuous: bool) -> None:
    from step5_serving.bench import SLO, Prompts, read_prompts
    from step5_serving.load import closed_loop
    from step5_serving.load_report import summarise

    prompts, rows, speeds = Prompts(read_prompts(None)), [], []
    samples: list[Sample] = []
    asyncio.run(closed_loop(gateway, prompts.fresh(1), streams=1, requests=1, max_tokens=4))  # warm, not counted
    for streams in STREAMS:
        stage.remark(f"load: {streams} at once for {SECONDS:g} s")
        run = closed_loop(
            gateway, prompts.fresh(400), streams=streams, requests=400, seconds=SECONDS, max_tokens=TOKENS
        )
        samples = asyncio.run(run)
        found = summarise(samples, SLO)
        ttft, itl = found.ttft or (None, None, None), found.itl or (None, None, None)
        rows.append(
            [f"{streams} at once", str(found.requests), str(found.requests - found.ok),
             f"{found.tokens_per_second:.0f}", _ms(ttft[0]), _ms(ttft[2]), _ms(itl[0])]
        )  # fmt: skip
        speeds.append(found.tokens_per_second)
    head = ["", "requests", "failed", "tok/s", "TTFT p50", "TTFT p99", "between tokens"]
    stage.show(Table(f"Load through the gateway, {SECONDS:g} s each, up to {TOKENS} tokens an answer", head, rows))
    if speeds[0] > 0:
        times = f"{speeds[1] / speeds[0]:.1f} times as many tokens a second"
        stage.show(Text(f"Asked {STREAMS[1]} questions at once it writes {times} as asked one at a time."))
    stage.show(load_picture(samples, continuous=continuous))


def load_picture(samples: "Sequence[Sample]", *, continuous: bool) -> Picture:
    """Every answered request of a load on one axis of time. continuous: whether the engine batches so."""
    begun = min(sample.due for sample in samples)
    spans = [
        Span(f"request {n}, {s.tokens} tokens", s.due - begun, s.end - begun, s.first - begun, BLUE)
        for n, s in enumerate(samples, 1)
        if s.first is not None
    ]
    joins = " A new one joins the running batch as soon as one ends (continuous batching)." if continuous else ""
    return Picture(
        f"{len(spans)} requests, {STREAMS[-1]} at a time", timeline(spans, "The requests of the load"),
        f"Each bar is a request: pale until its first token, full while its tokens come.{joins}",
    )  # fmt: skip


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.0f} ms"


# -- one request -------------------------------------------------------------------------------------------------------


def _one_request(stage: Stage, gateway: "Target", collector: Collector, *, spans: int) -> None:
    """One streamed chat, what the accounts say of it, and its trace."""
    import openai

    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=0, timeout=120) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=gateway.model,
            messages=[{"role": "user", "content": CHAT}],
            max_tokens=LONGEST,
            temperature=0,
            stream=True,
        )
        words = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
        row: Any = client.get(f"/usage/{raw.headers['x-request-id']}", cast_to=object)
    stage.show(Talk([("you", CHAT), (gateway.model, words)]))
    first = "–" if row["first_token"] is None else f"{row['first_token']:.3f} s"
    stage.show(
        Facts(
            [
                ("tokens", f"{row['prompt']} in, {row['completion']} out", f"{row['cached']} from the prefix cache"),
                ("time", f"{row['seconds']:.2f} s", f"first token after {first}, queued {row['queued']:.3f} s"),
                ("cost", _dollars(row["cost"]), "by step5_serving/prices.toml: what the machine costs for that time"),
                ("trace", row["trace"], "the same id in the client's headers, the log, the accounts and the spans"),
            ]
        )
    )
    found = collector.trace(row["trace"], spans)
    if not found:
        stage.show(Verdict(False, "No span of the request arrived."))
        return
    listed = ", ".join(f"{span.label} {_ms(span.end - span.start)}" for span in found)
    stage.show(Picture("Its trace", timeline(found, "The spans of one request", waterfall=True), f"{listed}."))


def _dollars(cost: float | None) -> str:
    return "no price" if cost is None else f"${cost:.7f}"


# -- steps 2 and 3 on it -----------------------------------------------------------------------------------------------


def _steps(stage: Stage, gateway: "Target", adapters: Sequence[str]) -> list[str]:
    """Let both steps answer through the service; return what went wrong."""
    env = {"OPENAI_BASE_URL": gateway.url, "OPENAI_API_KEY": gateway.key or ""}
    stage.show(Text("Steps 2 and 3 on the service: the same programs, OPENAI_BASE_URL set, nothing else changed."))
    problems = []
    tool = ["ask", TOOL, "--sandbox", "--only", "get_weather", "--prompt", "plain", "--strategy", "constrained"]
    for name in [name for name in (tools.ADAPTER, training.RUN) if name in adapters] or [gateway.model]:
        try:
            found = ask_step(stage, "step2_tool_calling", *tool, "--model", name, env=env)
        except UserError as error:
            problems.append(f"step 2 on the service, {name}: {error}")
            continue
        calls = [f"{c['call']['name']}({c['call']['text']}) → {c['output']}" for c in found["calls"]]
        turns = [("you", TOOL), *((f"{name} calls", call) for call in calls), (name, found["answer"])]
        stage.show(Talk(turns))
        good = any(call["status"] == "ok" for call in found["calls"])
        ran = "made a call that ran" if good else "made no call that ran"
        stage.show(Verdict(good, f"Step 2, {name} on the service: it {ran} ({found['seconds']:.1f} s)."))
    try:
        document = ask_step(
            stage, "step3_rag", "ask", DOCUMENT, "--collection", "encyclopaedia", "--model", gateway.model, env=env
        )
    except UserError as error:
        problems.append(f"step 3 on the service: {error}")
        return problems
    show_answer(stage, document)
    ended = "declined" if document["abstained"] else f"answered with {len(document['sentences'])} cited sentence(s)"
    stage.show(Verdict(not document["abstained"], f"Step 3 on the service: {ended} in {document['seconds']:.1f} s."))
    return problems


def _accounts(stage: Stage, gateway: "Target") -> None:
    import httpx

    answer = httpx.get(f"{gateway.url}/usage", headers={"authorization": f"Bearer {gateway.key}"}, timeout=30)
    rows = [
        [row["model"], f"{row['requests']:,}", f"{row['prompt']:,}", f"{row['completion']:,}", _dollars(row["cost"])]
        for row in answer.raise_for_status().json()["data"]
    ]
    stage.show(Table("The accounts of this chapter", ["model", "requests", "tokens in", "tokens out", "cost"], rows))


CHAPTER = Chapter(
    "service",
    "The service under load",
    [
        "An engine turns tokens into tokens; a service also knows who asks, who is next, what it cost and where the "
        "time went. Step 5's gateway stands in front of vLLM, or of the project's own engine where there is no vLLM.",
        "It speaks the same protocol as everything else here. Step 4's adapters are models of their own on it.",
    ],
    ["make step5", "OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=sk-… make step2", "make bench5"],
    perform,
)
