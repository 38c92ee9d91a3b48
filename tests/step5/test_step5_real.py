"""The gateway in front of a real vLLM with the real model: official client, exact accounts, cancellation, kill -9.

    python -m pytest tests/step5/test_step5_real.py -m real

Takes about four minutes on two cores, most of it vLLM starting twice.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import Gateway, eventually, new_key
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_collector import Collector, attributes
from prometheus_client.parser import text_string_to_metric_families

from shared.config import settings
from step5_serving.checkpoint import directory_of
from step5_serving.database import connect
from step5_serving.launch import has_vllm, published_adapters, vllm_launch
from step5_serving.service import Options, serve_in_thread

pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]

MODEL = "smollm2-135m"
HELLO: list[Any] = [{"role": "user", "content": "Name three colours."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Gateway]:
    """The model comes from the user's home, accounts and logs go to a temporary one."""
    if not has_vllm():
        message = "vLLM is not installed (step5_serving's extra cpu or cuda, Linux)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    directory = directory_of(MODEL)
    home = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_ROADMAP_HOME", str(home))
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds between batches
        settings.cache_clear()
        launch = vllm_launch(directory, MODEL, published_adapters(MODEL), slots=8)
        key = new_key()
        with (
            serve_in_thread(Options(port=0, launches=[launch], max_wait=60)) as (url, parts),
            httpx.Client(base_url=url, timeout=120, verify=False, trust_env=False) as http,
        ):
            eventually(lambda: parts.engines.slots, 900)
            yield Gateway(url, parts, key, home / "step5", http)
    settings.cache_clear()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=120) as made:
        yield made


def series(gateway: Gateway, *names: str) -> list[float]:
    """The sums of vLLM's own Prometheus series."""
    text = httpx.get(f"{gateway.parts.engines.all[0].url}/metrics", trust_env=False).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = [[sample.value for sample in samples if sample.name == name] for name in names]
    assert all(found), names
    return [sum(values) for values in found]


def running(gateway: Gateway) -> float:
    """Requests that vLLM computes or keeps waiting."""
    return sum(series(gateway, "vllm:num_requests_running", "vllm:num_requests_waiting"))


def rows(gateway: Gateway) -> list[dict[str, Any]]:
    gateway.parts.ledger.flush()
    with closing(connect()) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM requests ORDER BY started")]


def test_the_official_client(client: openai.OpenAI, gateway: Gateway) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert {path.name for path in published_adapters(MODEL)} < set(names)
    done = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20, temperature=0)
    assert done.choices[0].message.content
    chunks = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == done.choices[0].message.content
    assert done.usage is not None
    assert [row["completion"] for row in rows(gateway)[-2:]] == [done.usage.completion_tokens] * 2
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0)
    assert "Paris" in answer.choices[0].text


def test_a_tool_call(client: openai.OpenAI) -> None:
    """Forced, because the base model does not decide to; the adapter that step 4 trains for it does by itself."""
    question: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    forced: Any = {"type": "function", "function": {"name": "get_weather"}}
    for model, choice in [(MODEL, forced), *[(path.name, "auto") for path in published_adapters(MODEL)]]:
        if model not in (MODEL, "tools"):
            continue
        done = client.chat.completions.create(
            model=model, messages=question, tools=[WEATHER], tool_choice=choice, max_tokens=60, temperature=0
        )
        calls = done.choices[0].message.tool_calls
        assert calls, model
        assert calls[0].function.name == "get_weather"
        assert '"city"' in calls[0].function.arguments


def test_what_the_engine_refuses_is_passed_on(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="context|length|tokens"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 20_000}])


def test_the_prefix_cache_shows_in_usage_and_price(client: openai.OpenAI, gateway: Gateway) -> None:
    prefix: list[Any] = [{"role": "system", "content": "Answer in one word. " * 120}]
    for question in ("Is snow white?", "Is coal black?"):
        messages = [*prefix, {"role": "user", "content": question}]
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    first, second = rows(gateway)[-2:]
    assert first["prompt"] > 500
    assert first["cached"] < 100
    assert second["prompt"] - 256 < second["cached"] < second["prompt"]  # whole blocks, of 128 tokens on a CPU


def test_the_accounts_agree_with_vllms_counters_to_the_token(gateway: Gateway) -> None:
    """Whole, streamed, several prompts and answers, refused, and hung up on at every stage."""

    def counted(requests: list[Any]) -> tuple[list[dict[str, Any]], float, float]:
        """Send all at once; return their rows and by how much vLLM's counters of tokens rose."""
        eventually(lambda: running(gateway) == 0 and gateway.parts.admission.running == 0)
        names = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
        before, known = series(gateway, *names), len(rows(gateway))
        gateway.at_once(requests)
        eventually(lambda: running(gateway) == 0 and gateway.parts.admission.running == 0)
        after, new = series(gateway, *names), rows(gateway)[known:]
        assert len(new) == len(requests)
        assert not any(row["estimated"] for row in new)
        return new, after[0] - before[0], after[1] - before[1]

    def leave(blocks: int, **body: Any) -> None:
        with gateway.streaming("Tell me a long story.", max_tokens=400, model=MODEL, **body) as response:
            chunks = response.iter_raw()
            for _ in range(blocks):
                next(chunks)

    def plain(**more: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": ["One", "Two, three"], "max_tokens": 7, **more}
        return gateway.post("/v1/completions", json=body)

    new, prompt, completion = counted(
        [
            *[lambda n=n: gateway.chat("Say something.", model=MODEL, max_tokens=10 + n) for n in range(4)],
            *[lambda n=n: gateway.stream("Say something else.", model=MODEL, max_tokens=10 + n) for n in range(4)],
            plain,
            *[lambda n=n: leave(n) for n in (1, 2, 5, 9)],
            lambda: gateway.chat("No.", model=MODEL, temperature=-1),
        ]
    )
    assert [row["outcome"] for row in new].count("client_left") == 4
    assert (sum(row["prompt"] for row in new), sum(row["completion"] for row in new)) == (prompt, completion)

    # Of two answers to one prompt vLLM counts the prompt twice, and its usage, like OpenAI's bill, once.
    new, prompt, completion = counted(
        [
            lambda: gateway.chat("Say two things.", model=MODEL, max_tokens=9, n=2),
            lambda: gateway.stream("Say two more.", model=MODEL, max_tokens=9, n=2),
            lambda: plain(n=2),
        ]
    )
    assert (sum(2 * row["prompt"] for row in new), sum(row["completion"] for row in new)) == (prompt, completion)

    # Hung up on, the second answer may not have begun.
    (row,), prompt, completion = counted([lambda: leave(3, n=2)])
    assert row["outcome"] == "client_left"
    assert prompt in (row["prompt"], 2 * row["prompt"])
    assert row["completion"] == completion


def test_vllms_span_hangs_below_the_gateways(gateway: Gateway, collector: Collector) -> None:
    """One trace from the client's request to prefill and decode."""
    answer = gateway.chat("Name a fish.", model=MODEL, max_tokens=5)
    trace = answer.headers["traceresponse"].split("-")[1]

    def names() -> dict[str, Span]:
        return {span.name: span for span in collector.spans if span.trace_id.hex() == trace}

    spans = eventually(lambda: len(found := names()) >= 3 and found)
    sent, computed = spans[f"chat {MODEL}"], spans["llm_request"]
    assert computed.parent_span_id == sent.span_id
    assert sent.parent_span_id == spans["POST /v1/chat/completions"].span_id
    assert attributes(computed)["gen_ai.usage.completion_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert sent.start_time_unix_nano < computed.start_time_unix_nano < computed.end_time_unix_nano


def test_vllm_stops_when_the_client_leaves(gateway: Gateway) -> None:
    with gateway.streaming("Write a very long text.", model=MODEL, max_tokens=1500, ignore_eos=True) as response:
        blocks = response.iter_raw()  # held: httpx hangs up when the iterator is dropped
        next(blocks)
        eventually(lambda: running(gateway) == 1)  # its metrics are a moment behind
    left = time.monotonic()
    eventually(lambda: running(gateway) == 0)
    assert time.monotonic() - left < 3
    eventually(lambda: rows(gateway)[-1]["outcome"] == "client_left")
    assert rows(gateway)[-1]["completion"] < 1500


def test_kill_9_of_the_engine_and_recovery(gateway: Gateway) -> None:
    supervisor = gateway.parts.supervisors[0]
    first = supervisor.pid
    assert first is not None
    group = [pid for pid in map(int, _pids()) if _group(pid) == first]
    assert len(group) >= 2  # the server and the process that computes

    def interrupted() -> bytes:
        return gateway.stream("Count to a thousand.", model=MODEL, max_tokens=1000, ignore_eos=True)

    def kill() -> None:
        eventually(lambda: running(gateway) == 3)
        os.kill(first, signal.SIGKILL)

    *answers, _ = gateway.at_once([interrupted] * 3 + [kill])
    assert all(b"engine_lost" in answer or b"engine_unavailable" in answer for answer in answers)
    refused = eventually(lambda: (answer := gateway.chat(model=MODEL)).status_code == 503 and answer)
    assert int(refused.headers["retry-after"]) >= 1
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in group))  # nothing of the old one is left
    eventually(lambda: gateway.chat(model=MODEL, max_tokens=5).status_code == 200, 900)
    assert supervisor.restarts == 1
    assert gateway.parts.admission.running == gateway.parts.admission.queued == 0
    assert [row["estimated"] for row in rows(gateway)[-4:-1]] == [1, 1, 1]


def _pids() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
