"""Measure one rung of the benchmark ladder in a process of its own, and print the figures as one JSON line.

A process per rung, because peak memory can only be read per process, and because llama.cpp and PyTorch would
otherwise keep two thread pools spinning on the same cores.

    python -m step1_foundations.bench_rung int4 --model smollm2-135m
"""

import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.tokenizer import ChatTokenizer

REPEATS = 3  # each figure is the median of these
PROMPT, PREFILL, DECODE = 32, 512, 128  # tokens; main() takes fewer for a model with a short context
BATCH = 8  # sequences in the batch rung
TEXT = Path(__file__).with_name("reference_text.txt")

Forward = Callable[[list[int]], Any]


def main() -> None:
    """Run the rung named on the command line."""
    from shared.model_config import read_config
    from shared.models import resolve
    from shared.tokenizer import ChatTokenizer

    global PREFILL, DECODE
    rung, model, gguf = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""
    directory = resolve(model)
    context = read_config(directory).context
    PREFILL, DECODE = min(PREFILL, context), min(DECODE, context - PROMPT)
    ids = reference_ids(ChatTokenizer(directory))  # one tokenizer for all rungs, so that they score the same tokens
    if rung == "llama.cpp":
        figures = _llama_cpp(gguf, ids)
    elif rung.startswith("transformers"):
        figures = _transformers(rung, directory, ids)
    else:
        figures = _engine(rung, model, ids)
    print(json.dumps(figures))


def _engine(rung: str, spec: str, ids: list[int]) -> dict[str, Any]:
    """Our own forward pass. rung: a dtype, optionally with "no cache", "loop", "PyTorch", "batch" or "HTTP"."""
    import torch

    from shared import native
    from shared.engine import Engine, load_engine
    from shared.models import load

    if rung.endswith("HTTP"):
        served = load_engine(spec, dtype=rung.split()[0], quiet=True)
        return _http_cost(served, ids)
    if rung.endswith("PyTorch"):
        native.library = lambda: (None, "switched off for this rung")  # type: ignore[assignment]
    dtype = rung.split()[0]
    model = load(spec, dtype=dtype, quiet=True)
    if "loop" in rung:
        type(model.transformer).fused = False
    transformer = model.transformer
    if rung.endswith("batch"):
        return {"decode": _batch_speed(Engine(model), ids)}

    def prefill(tokens: list[int]) -> Any:
        cache = transformer.new_cache(len(tokens) + DECODE)
        hidden = transformer.forward(torch.tensor(tokens), [cache], [len(tokens)])
        return cache, int(transformer.logits(hidden[-1:]).argmax())

    def decode(state: Any) -> None:
        cache, token = state
        for _ in range(DECODE):
            hidden = transformer.forward(torch.tensor([token]), [cache], [1])
            token = int(transformer.logits(hidden).argmax())

    def decode_without_cache(_: Any) -> None:
        tokens = ids[:PROMPT]
        for _ in range(16):  # every step recomputes everything: 16 are enough to see it
            tokens = [*tokens, prefill(tokens)[1]]

    def score(tokens: list[int]) -> list[Any]:
        # One token at a time: the path that decoding takes, whose rounding is what we want to know.
        cache = transformer.new_cache(len(tokens))
        return [transformer.logits(transformer.forward(torch.tensor([t]), [cache], [1]))[0] for t in tokens]

    no_cache = "no cache" in rung
    figures = _speeds(prefill, decode_without_cache if no_cache else decode, ids, 16 if no_cache else DECODE)
    weights = sum(
        m.nbytes() for layer in transformer.layers for m in (layer.qkv, layer.output, layer.gate_up, layer.down)
    )
    figures["bytes_per_token"] = weights + transformer.head.nbytes()
    figures["peak_memory"] = _peak_memory()
    return figures | _quality(score, ids)


def _transformers(rung: str, directory: Path, ids: list[int]) -> dict[str, Any]:
    """Hugging Face's generate() on the same weights. rung: "transformers" and a dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    from shared.models import choose_threads

    torch.set_num_threads(int(choose_threads(None).value))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, rung.split()[1]))
    options = {"do_sample": False, "pad_token_id": 0}

    def prefill(tokens: list[int]) -> Any:
        prompt = torch.tensor([tokens])
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, **options)
        return prompt

    def decode(prompt: Any) -> None:
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=DECODE, min_new_tokens=DECODE, **options
        )

    def score(tokens: list[int]) -> list[Any]:
        with torch.inference_mode():
            return list(model(torch.tensor([tokens])).logits[0].float())

    figures = _speeds(prefill, decode, ids, DECODE)
    figures["bytes_per_token"] = sum(p.nbytes for p in model.parameters())
    figures["peak_memory"] = _peak_memory()
    return figures | _quality(score, ids)


def _llama_cpp(gguf: str, ids: list[int]) -> dict[str, Any]:
    """llama.cpp on the same GGUF file, through llama-cpp-python."""
    import os

    import torch
    from llama_cpp import Llama

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options = {"n_ctx": 2048, "n_threads": threads, "n_threads_batch": threads, "n_batch": 512, "verbose": False}
    model = Llama(gguf, **options)

    def prefill(tokens: list[int]) -> int:
        model.reset()
        model.eval(tokens)
        return model.sample(temp=0)

    def decode(token: int) -> None:
        for _ in range(DECODE):
            model.eval([token])
            token = model.sample(temp=0)

    figures = _speeds(prefill, decode, ids, DECODE)
    figures["bytes_per_token"] = Path(gguf).stat().st_size
    figures["peak_memory"] = _peak_memory()
    scoring = Llama(gguf, logits_all=True, **options)

    def score(tokens: list[int]) -> list[Any]:
        scoring.reset()
        for token in tokens:
            scoring.eval([token])
        return [torch.from_numpy(row.copy()) for row in scoring.scores[: len(tokens)]]

    return figures | _quality(score, ids)


def _speeds(prefill: Forward, decode: Callable[[Any], None], ids: list[int], steps: int) -> dict[str, Any]:
    """Median TTFT in ms (prompt of 32), prefill tok/s (512) and decode tok/s."""
    decode(prefill(ids[:PROMPT]))  # warm up: page in the weights, start the threads
    first, long, step = [], [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        state = prefill(ids[:PROMPT])
        first.append(time.perf_counter() - start)
        start = time.perf_counter()
        decode(state)
        step.append(time.perf_counter() - start)
        start = time.perf_counter()
        prefill(ids[:PREFILL])
        long.append(time.perf_counter() - start)
    return {
        "ttft": statistics.median(first) * 1000,
        "prefill": PREFILL / statistics.median(long),
        "decode": steps / statistics.median(step),
    }


def _quality(score: Callable[[list[int]], list[Any]], ids: list[int]) -> dict[str, Any]:
    """Perplexity on the reference text, and the greedy choice at every position (compared between rungs later)."""
    ids = ids[:PREFILL]
    rows = score(ids)
    losses = [-float(row.float().log_softmax(-1)[target]) for row, target in zip(rows, ids[1:], strict=False)]
    return {"perplexity": math.exp(statistics.mean(losses)), "greedy": [int(row.argmax()) for row in rows]}


def _batch_speed(engine: Any, ids: list[int]) -> float:
    """Tokens per second of BATCH requests answered together by the engine's own loop."""
    import queue

    from shared.generation import Request
    from shared.sampling import Sampling

    def run() -> float:
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for i in range(BATCH):  # different beginnings, so that no prompt is served from the prefix cache
            prompt = ids[i * 8 : i * 8 + PROMPT]
            engine.submit(Request(prompt, Sampling(temperature=0), DECODE, ignore_eos=True), events.put)
        engine.step()  # all eight prompts fit one prefill step; this figure is about decoding
        start, before = time.perf_counter(), engine.tokens_decoded
        while engine.step():
            pass
        return float((engine.tokens_decoded - before) / (time.perf_counter() - start))

    run()
    return statistics.median(run() for _ in range(REPEATS))


def _http_cost(engine: Any, ids: list[int]) -> dict[str, Any]:
    """Milliseconds that HTTP adds to a one-token request, and decode tok/s of a stream."""
    import httpx

    from shared.generation import Request
    from shared.openai_server import serve
    from shared.sampling import Sampling

    direct, over_http, streamed = [], [], []
    with serve(engine) as url, httpx.Client(timeout=60) as client:
        body = {"model": engine.model.name, "prompt": ids[:PROMPT], "max_tokens": 1, "temperature": 0}
        for _ in range(
            50
        ):  # alternating, so that a slow second hits both alike; all but the first hit the prefix cache
            start = time.perf_counter()
            list(engine.generate(Request(ids[:PROMPT], Sampling(temperature=0), 1)))
            direct.append(time.perf_counter() - start)
            start = time.perf_counter()
            client.post(f"{url}/completions", json=body).raise_for_status()
            over_http.append(time.perf_counter() - start)
        for _ in range(REPEATS):
            stream = body | {"max_tokens": DECODE, "stream": True, "ignore_eos": True}
            with client.stream("POST", f"{url}/completions", json=stream) as response:
                times = [time.perf_counter() for line in response.iter_lines() if line.startswith("data: {")]
            streamed.append((len(times) - 1) / (times[-1] - times[0]))
    return {
        "decode": statistics.median(streamed),
        "http_ms": (statistics.median(over_http[5:]) - statistics.median(direct[5:])) * 1000,
    }


def reference_ids(tokenizer: "ChatTokenizer") -> list[int]:
    """The reference text's token ids, at least PREFILL of them."""
    ids = tokenizer.encode(TEXT.read_text())
    if len(ids) < PREFILL:
        raise SystemExit(f"the reference text has only {len(ids)} tokens with this tokenizer, {PREFILL} are needed")
    return ids


def _peak_memory() -> float:
    """Peak resident memory of this process in MB, memory-mapped weights included."""
    import resource

    with contextlib.suppress(OSError):  # Linux: getrusage would inherit the peak of the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # macOS counts bytes, Linux KiB


if __name__ == "__main__":
    main()
