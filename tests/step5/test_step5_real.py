"""The gateway in front of a real vLLM with the real model: official client, exact accounts, steps 2 and 3, faults.

    python -m pytest tests/step5/test_step5_real.py -m real

Takes about four minutes on two cores, most of it vLLM starting twice. The faults come last.
"""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import Gateway, chat_body, eventually
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_collector import Collector, attributes
from real_service import (
    MODEL,
    STARTING,
    WEATHER,
    client,
    collector,
    connection,
    counted,
    gateway,
    lose,
    processes,
    program,
    raw_request,
    read_slowly,
    running,
)
from step5_fuzz_check import Storm
from step5_fuzz_vllm import send

from step5_serving import engines, supervisor
from step5_serving.launch import published_adapters

pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]
__all__ = ["client", "collector", "gateway"]  # fixtures

DEMO = "Is it warmer in Lisbon or Oslo right now, and what is 80 EUR in USD?"  # step 2's
HELLO: list[Any] = [{"role": "user", "content": "Name three colours."}]


def test_the_official_client(client: openai.OpenAI, gateway: Gateway) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert {path.name for path in published_adapters(MODEL)} < set(names)
    done = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20, temperature=0)
    assert done.choices[0].message.content
    chunks = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == done.choices[0].message.content
    assert done.usage is not None
    assert [row["completion"] for row in gateway.rows()[-2:]] == [done.usage.completion_tokens] * 2
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
    first, second = gateway.rows()[-2:]
    assert first["prompt"] > 500
    assert first["cached"] < 100
    assert second["prompt"] - 256 < second["cached"] < second["prompt"]  # whole blocks, of 128 tokens on a CPU


def test_the_accounts_agree_with_vllms_counters_to_the_token(gateway: Gateway) -> None:
    """Whole, streamed, several prompts and answers, refused, and hung up on at every stage."""

    def leave(blocks: int, **body: Any) -> None:
        with gateway.streaming("Tell me a long story.", max_tokens=400, model=MODEL, **body) as response:
            chunks = response.iter_raw()
            for _ in range(blocks):
                next(chunks)

    def plain(**more: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": ["One", "Two, three"], "max_tokens": 7, **more}
        return gateway.post("/v1/completions", json=body)

    _, new, prompt, completion = counted(
        gateway,
        [
            *[lambda n=n: gateway.chat("Say something.", model=MODEL, max_tokens=10 + n) for n in range(4)],
            *[lambda n=n: gateway.stream("Say something else.", model=MODEL, max_tokens=10 + n) for n in range(4)],
            plain,
            *[lambda n=n: leave(n) for n in (1, 2, 5, 9)],
            lambda: gateway.chat("No.", model=MODEL, temperature=-1),
        ],
    )
    assert [row["outcome"] for row in new].count("client_left") == 4
    assert (sum(row["prompt"] for row in new), sum(row["completion"] for row in new)) == (prompt, completion)

    # Of two answers to one prompt vLLM counts the prompt twice, and its usage, like OpenAI's bill, once.
    _, new, prompt, completion = counted(
        gateway,
        [
            lambda: gateway.chat("Say two things.", model=MODEL, max_tokens=9, n=2),
            lambda: gateway.stream("Say two more.", model=MODEL, max_tokens=9, n=2),
            lambda: plain(n=2),
        ],
    )
    assert (sum(2 * row["prompt"] for row in new), sum(row["completion"] for row in new)) == (prompt, completion)

    # Hung up on, the second answer may not have begun.
    _, (row,), prompt, completion = counted(gateway, [lambda: leave(3, n=2)])
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
    eventually(lambda: gateway.rows()[-1]["outcome"] == "client_left")
    assert gateway.rows()[-1]["completion"] < 1500


def test_steps_2_and_3_run_on_it(gateway: Gateway, tmp_path: Path) -> None:
    """Their own programs: step 2's demo; then, at the same time, the adapter `tools`, and step 3 with `grader`."""
    run = program(gateway, tmp_path)
    known = len(gateway.rows())
    text = "# Rivers\n\nSalmon live in the Amber river.\n\nThe Amber river is 300 kilometres long.\n"
    (tmp_path / "rivers.md").write_text(text, encoding="utf-8")

    def step2() -> Any:
        return run("step2_tool_calling", "ask", DEMO, "--sandbox")

    def tuned() -> Any:
        tools = ["--sandbox", "--only", "get_weather,convert_currency", "--prompt", "plain"]
        return run("step2_tool_calling", "ask", DEMO, *tools, "--model", "tools")

    def step3() -> Any:
        run("step3_rag", "ingest", "rivers.md")
        return run("step3_rag", "ask", "How long is the Amber river?", "--grader", "adapter")

    def succeeded(told: Any) -> list[Any]:
        return [one for one in told["calls"] if one["status"] == "ok"]

    def has_figure(told: Any) -> bool:
        """Whether the answer has one that a tool has said: "Oslo, Norway: 3.4 °C …", "80 EUR = 86.40 USD …"."""
        figures = re.findall(r"-?\d+\.\d+", " ".join(one["output"] for one in succeeded(told)))
        return any(figure in told["answer"] for figure in figures)

    # Alone, as in a batch the rounding is another one, and which calls the model makes with it. vLLM's own grammar ends
    # after the first call.
    forced = step2()
    assert len(succeeded(forced)) >= 2, forced
    assert has_figure(forced), forced
    called, asked = gateway.at_once([tuned, step3])
    assert "get_weather" in [one["call"]["name"] for one in succeeded(called)], called
    assert has_figure(called), called
    graded = next(step["detail"] for step in asked["steps"] if step["node"] == "grade")
    assert max(graded["relevant"]) > 0.5, asked
    assert asked["abstained"] or asked["sentences"]  # as the model pleases, but what is said is cited, to the letter
    for at in (at for sentence in asked["sentences"] for at in sentence["citations"]):
        assert text[at["start"] : at["end"]] == at["quote"] != ""
    new = gateway.rows()[known:]
    assert {row["model"] for row in new} == {"tools", MODEL, "grader"}
    assert {row["outcome"] for row in new} <= {"ok", "client_left"}  # step 2 hangs up on calls that repeat themselves


def test_an_adapter_of_step_4_says_the_same_on_it(gateway: Gateway, tmp_path: Path) -> None:
    """Greedy answers of vLLM beside those of the embedded engine; they part where two tokens are nearly as likely."""
    run = program(gateway, tmp_path)
    (found,) = run("step4_finetune.hand_off", "tools", "--against", f"{gateway.url}/v1", "--limit", "4")
    # In bfloat16, where the CPU has it; all of 50 answers in float32 (step4_finetune/results/hand_off_float32.json).
    assert found["agreeing"] >= 0.5 * found["tokens"] > 70, found
    assert all((difference["gap"] or 0.0) < 0.5 for difference in found["differences"]), found


# -- faults ------------------------------------------------------------------------------------------------------------


def test_clients_that_misbehave_under_load(gateway: Gateway) -> None:
    """10 MB, malformed JSON, a wrong key, slow ones, leaving ones: the others notice nothing, accounts are exact."""

    def good() -> bool:
        return gateway.stream("Count.", model=MODEL, max_tokens=30, ignore_eos=True).endswith(b"data: [DONE]\n\n")

    def reads_slowly() -> bool:
        with connection(gateway) as made:
            made.sendall(raw_request(gateway, stream=True, max_tokens=41))
            eventually(lambda: any(row["completion"] == 41 for row in gateway.rows()), 120)  # done, and none of it read
            return b"data: [DONE]" in read_slowly(made, b"\r\n0\r\n\r\n", 512)

    def leaves() -> bool:
        with connection(gateway) as made:
            made.sendall(raw_request(gateway, max_tokens=999))
            time.sleep(0.5)  # it has begun
        return True

    def refused(status: int, code: str, key: str | None = None, **body: Any) -> bool:
        answer = gateway.post("/v1/chat/completions", key, **body)
        return (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    large = b'{"model": "%s", "messages": "%s"}' % (MODEL.encode(), b"x" * 10_000_000)
    half = raw_request(gateway, max_tokens=5)
    before = len(gateway.log("request"))
    with connection(gateway) as slow, connection(gateway) as gone:
        for made in (slow, gone):
            made.sendall(half[:-20])
        refusals = [
            lambda: refused(413, "body_too_large", content=large),
            lambda: refused(413, "body_too_large", content=iter([large])),  # without a content-length
            lambda: refused(400, "invalid_json", content=b'{"model": "' + MODEL.encode()),
            lambda: refused(401, "invalid_api_key", gateway.key[:-1] + "!", json=chat_body(model=MODEL)),
        ]
        answers, new, prompt, completion = counted(gateway, [*[good] * 4, reads_slowly, leaves, leaves, *refusals])
        assert answers == [True] * 11
        gone.close()
        slow.sendall(half[-20:])  # it has held no slot, and is served when it has said what it wants
        assert b"HTTP/1.1 200" in read_slowly(slow, b'"usage"', 65536)

    assert Counter(row["outcome"] for row in new) == {"ok": 5, "client_left": 2}
    assert (sum(row["prompt"] for row in new), sum(row["completion"] for row in new)) == (prompt, completion)
    assert max(row["completion"] for row in new) < 999
    logged = Counter(line["status"] for line in gateway.log("request")[before:])
    assert logged == {200: 6, 499: 3, 413: 2, 400: 1, 401: 1}
    assert gateway.parts.supervisors[0].restarts == 0


def test_random_requests(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short storm, with a real engine; `make fuzz5` is the long one."""
    storm = Storm()
    _, new, prompt, completion = counted(gateway, [lambda: send(gateway, storm, 150, monkeypatch)])
    assert not storm.problems
    assert storm.statuses[200] > 30  # else it was about refusals only
    assert (sum(row["prompt"] for row in new), sum(row["completion"] for row in new)) == (prompt, completion)


def test_kill_9_of_the_engine_and_recovery(gateway: Gateway) -> None:
    supervised = gateway.parts.supervisors[0]
    first = supervised.pid
    assert first is not None
    assert len(processes(first)) >= 2  # the server and the process that computes

    assert lose(gateway, lambda: os.kill(first, signal.SIGKILL)) < 5
    refused = eventually(lambda: (answer := gateway.chat(model=MODEL)).status_code == 503 and answer)
    assert int(refused.headers["retry-after"]) >= 1
    eventually(lambda: not processes(first))  # nothing of the old one is left
    eventually(lambda: gateway.chat(model=MODEL, max_tokens=5).status_code == 200, STARTING)
    assert supervised.restarts == 1


def test_a_computing_process_that_hangs_is_noticed(gateway: Gateway) -> None:
    """As with a GPU that hangs: vLLM's server goes on to say that it is well. What the supervisor then asks tells."""
    engine, first = gateway.parts.engines.all[0], gateway.parts.supervisors[0].pid
    assert first is not None
    loop = gateway.parts.engines._tasks[0].get_loop()

    def computes(seconds: float) -> bool:
        return asyncio.run_coroutine_threadsafe(engine.computes(seconds), loop).result(60)

    def hang() -> None:
        eventually(lambda: running(gateway) == 1)
        others = [pid for pid in processes(first) if pid != first]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(1)  # until its last step is counted
            assert not computes(3.0)
            assert httpx.get(f"{engine.url}/health", verify=False, trust_env=False).status_code == 200
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        assert computes(30.0)

    answer, _ = gateway.at_once([lambda: gateway.chat(model=MODEL, max_tokens=100, ignore_eos=True), hang])
    assert answer.json()["usage"]["completion_tokens"] == 100


def test_a_stopped_engine_is_replaced(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, as the kernel does that for it, and answers nothing: not even the probes, which tells."""
    supervised = gateway.parts.supervisors[0]
    first, restarts = supervised.pid, supervised.restarts
    assert first is not None

    def stop() -> None:
        monkeypatch.setattr(engines, "PROBE_TIMEOUT", 1.0)
        monkeypatch.setattr(supervisor, "STUCK", 8.0)
        for pid in processes(first):
            os.kill(pid, signal.SIGSTOP)

    assert 5 < lose(gateway, stop) < 8 + 7
    assert len(gateway.log("engine_stuck")) == 1
    eventually(lambda: not processes(first))
    eventually(lambda: supervised.pid not in (None, first))  # it starts again; this is the last test
    assert supervised.restarts == restarts + 1
