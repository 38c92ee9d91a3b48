"""`bench`: the ladder from the slowest way to make a token to the fastest, on one machine, in one run.

    python -m step1_foundations bench --output step1_foundations/results/bench.json

Each rung changes one thing and runs in its own process (bench_rung.py). Quality stands beside speed: perplexity on
a fixed text, and how often the greedy choice is that of float32. Decoding is bound by reading weights, so each rung is
also compared with the roofline: the machine's measured memory bandwidth divided by the bytes one token reads.
"""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.models import resolve
from shared.results import Row, metric, write_results
from shared.terminal import console, say
from shared.weights import published_int4

BASELINE = "transformers bfloat16"
REFERENCE = "float32 loop"  # the greedy choices that others are compared with


def ladder(model: str) -> list[tuple[str, str]]:
    """The rungs as (rung, what it changes), those that can run here."""
    rungs = [
        ("transformers float32", "Hugging Face's generate(), float32"),
        (BASELINE, "Hugging Face's generate(), the checkpoint's own dtype: the baseline"),
        ("float32 no cache", "our forward pass, everything recomputed for every token"),
        (REFERENCE, "+ KV cache"),
        ("bfloat16 loop", "+ half the bytes"),
        ("int8 loop", "+ a quarter of the bytes, native matrix kernel"),
        ("int4 PyTorch", "+ an eighth of the bytes, as published, with PyTorch's kernels (no C compiler needed)"),
        ("int4 loop", "+ the native matrix kernel"),
        ("int4", "+ the whole step compiled (what `auto` picks)"),
    ]
    if importlib.util.find_spec("llama_cpp") and gguf_path(model):
        rungs.append(("llama.cpp", "llama.cpp on the same GGUF"))  # next to int4: machines drift within minutes
    return [
        *rungs,
        ("int4 batch", "+ 8 sequences at once, tok/s of all together"),
        ("int4 HTTP", "the same engine through the OpenAI server, one stream"),
    ]


def gguf_path(model: str) -> Path | None:
    """The GGUF file a catalog model came as, if it did."""
    from shared import artifacts, catalog

    if model not in catalog.load():
        return None
    path = artifacts.fetch(model)
    return path if path.suffix == ".gguf" else None


def run_ladder(model: str) -> dict[str, dict[str, Any]]:
    """Measure every rung, one after the other; return rung → figures, plus "bandwidth" in GB/s."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    resolve(model)  # fetch and convert before anything is timed
    results: dict[str, dict[str, Any]] = {"machine": {"bandwidth": memory_bandwidth()}}
    rungs = ladder(model)
    columns = TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
    with Progress(*columns, TimeElapsedColumn(), console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("bench", total=len(rungs))
        for rung, _ in rungs:
            progress.update(task, description=rung)
            results[rung] = _measure(rung, model)
            progress.advance(task)
    return results


def _measure(rung: str, model: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "step1_foundations.bench_rung", rung, model]
    if rung == "llama.cpp":
        command.append(str(gguf_path(model)))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"bench rung {rung!r} failed: {last}", exit_code=1)
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def memory_bandwidth() -> float:
    """GB/s that all threads together read from memory: the best of five sums over 512 MB of float32."""
    import torch

    from shared.models import choose_threads

    torch.set_num_threads(int(choose_threads(None).value))
    data = torch.ones(128 * 1024 * 1024)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds) / 1e9


def rows_of(results: dict[str, dict[str, Any]]) -> list[Row]:
    """Turn raw figures into table rows: ratios to the baseline, share of the roofline, agreement with float32."""
    bandwidth = results["machine"]["bandwidth"]
    baseline, reference = results.get(BASELINE), results.get(REFERENCE)
    rows: list[Row] = []
    for rung, figures in results.items():
        if rung == "machine":
            continue
        metrics: dict[str, Any] = {"decode tok/s": metric(figures["decode"])}
        if baseline:
            metrics["× transformers"] = metric(figures["decode"] / baseline["decode"])
        for key, name in (("prefill", "prefill tok/s"), ("ttft", "TTFT ms"), ("peak_memory", "peak MB")):
            if key in figures:
                metrics[name] = metric(figures[key])
        if "bytes_per_token" in figures and "no cache" not in rung:
            share = figures["decode"] * figures["bytes_per_token"] / (bandwidth * 1e9)
            metrics["MB per token"] = metric(figures["bytes_per_token"] / 1e6)
            metrics["% of roofline"] = metric(100 * share)
        if "perplexity" in figures:
            metrics["perplexity"] = metric(figures["perplexity"], digits=4)
            if reference:
                same = [a == b for a, b in zip(figures["greedy"], reference["greedy"], strict=True)]
                metrics["greedy agreement %"] = metric(100 * sum(same) / len(same))
        if "http_ms" in figures:
            metrics["HTTP ms per request"] = metric(figures["http_ms"])
        rows.append({"name": rung, "metrics": metrics})
    return rows


def bench(model: str, output: Path | None) -> dict[str, Any]:
    """Run the ladder and write results JSON and a chart beside it; return the document."""
    if not published_int4(resolve(model)):
        say("note: this checkpoint has no published int4 weights; they are rounded here (RTN, groups of 32)")
    results = run_ladder(model)
    rows = rows_of(results)
    notes = (
        f"Medians of 3. Prompt 32 tokens, 128 decoded; prefill 512 tokens. Memory bandwidth measured in the same run: "
        f"{results['machine']['bandwidth']:.1f} GB/s. Greedy agreement: share of 512 positions whose most likely token "
        "is that of float32."
    )
    document = {"rows": rows, "notes": notes}
    if output is not None:
        command = f"python -m step1_foundations bench --model {model}"
        packages = ("torch", "transformers", "llama-cpp-python")
        write_results(output, command=command, rows=rows, n=512, notes=notes, packages=packages)
        plot(rows, output.with_suffix(".png"))
    return document


def plot(rows: list[Row], path: Path) -> None:
    """Bars of decode speed per rung."""
    from step1_foundations.plots import bar_chart

    names = [row["name"] for row in rows]
    values = [float(row["metrics"]["decode tok/s"]["value"] or 0) for row in rows]
    bar_chart(names, values, "decode, tokens per second", path)


def print_bench(document: dict[str, Any]) -> None:
    """Print the ladder as a table that fits 80 columns."""
    from rich.table import Table

    from shared.results import format_metric

    shown = {
        "decode tok/s": "decode\ntok/s", "× transformers": "× hf", "prefill tok/s": "prefill\ntok/s",
        "TTFT ms": "TTFT\nms", "peak MB": "peak\nMB", "% of roofline": "% of\nroof",
        "perplexity": "perpl.", "greedy agreement %": "same\n%",
    }  # fmt: skip
    table = Table("rung", *shown.values(), box=None, padding=(0, 1))
    for row in document["rows"]:
        cells = [format_metric(row["metrics"][m]) if m in row["metrics"] else "–" for m in shown]
        table.add_row(row["name"], *cells)
    out = console()
    out.print(table)
    out.print(document["notes"], style="dim")
