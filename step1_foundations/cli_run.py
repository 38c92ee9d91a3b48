"""The verbs that let the model speak: generate, chat, bench, and the demo that `make step1` runs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.terminal import console, print_json, say
from step1_foundations.options import Adapter, Device, DType, Json, Model, Text, finish, open_model

if TYPE_CHECKING:
    from shared.sampling import Sampling

runs = typer.Typer()

Temperature = Annotated[float, typer.Option("--temperature", "-t", help="Below 1 sharpens; 0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the fewest tokens with this much mass; 1 is off.")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep tokens at least this fraction of the top one.")]
Seed = Annotated[int | None, typer.Option(show_default="a new one each time", help="Same seed, same answer.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Longest answer, in tokens.")]
Explain = Annotated[bool, typer.Option("--explain", help="Colour each token by its probability, list alternatives.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", show_default="the template's", help="System message.")]


@runs.command()
def generate(
    text: Text,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    max_tokens: MaxTokens = 256,
    explain: Explain = False,
    raw: Annotated[bool, typer.Option("--raw", help="Continue TEXT as it stands, without the chat template.")] = False,
    system: System = None,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Answer TEXT, streaming; --explain shows how sure the model was.

    Example: step1 generate "Name three colours." --explain
    """
    from shared.engine import Engine
    from step1_foundations.generate import answer, print_explanation, printer

    loaded = open_model(model, adapter, device, dtype, json)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    tokenizer = loaded.tokenizer
    prompt = tokenizer.encode(text, add_special=True) if raw else tokenizer.encode(tokenizer.render(messages))
    sampling = _sampling(temperature, top_k, top_p, min_p, seed)
    result = answer(Engine(loaded), prompt, sampling, max_tokens, (lambda _: None) if json else printer(explain))
    if not json:
        print()
        if explain:
            print_explanation(result)
        console().print(f"({result.footer()})", style="dim", markup=False, soft_wrap=True)
    finish(asdict(result), json)


@runs.command()
def chat(
    system: System = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    seed: Seed = None,
    max_tokens: MaxTokens = 512,
    explain: Explain = False,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Talk with the model; /help lists the commands, Ctrl-C stops an answer.

    Example: step1 chat --system "Answer in one sentence."
    """
    from shared.engine import Engine
    from step1_foundations.generate import Session, read_lines
    from step1_foundations.generate import chat as converse

    loaded = open_model(model, adapter, device, dtype, json)
    session = Session(
        Engine(loaded), _sampling(temperature, top_k, top_p, min_p, seed), max_tokens, explain, quiet=json
    )
    if system:
        session.set_system(system)
    if not json:
        say("/help lists the commands")
    converse(session, read_lines("" if json else "you> ", echo=not json))
    if json:
        print_json({"model": loaded.name, "messages": session.messages})


@runs.command()
def bench(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="JSON", show_default="nowhere", help="Results and a PNG.")
    ] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Measure the ladder: no cache, KV cache, bf16, int8, int4, compiled, batch.

    About 7 minutes; keep the machine idle meanwhile. Each rung picks its own dtype on the CPU.

    Example: step1 bench -o out/bench.json
    """
    from shared.config import settings
    from step1_foundations.bench import bench as run_bench
    from step1_foundations.bench import print_bench

    document = run_bench(model or settings().model, output)
    if json:
        print_json(document)
    else:
        print_bench(document)
        if output is not None:
            console().print(f"results: {output}, chart: {output.with_suffix('.png')}", markup=False, soft_wrap=True)


@runs.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="HTML", help="The page.")] = Path(
        "out/step1/report.html"
    ),
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Load, answer a question, write the report: what `make step1` runs.

    Example: step1 demo
    """
    from step1_foundations.load_report import measure_load, print_load

    loading = measure_load(model, adapter, device, dtype, quiet=True)  # before other imports: it times torch's

    from shared.engine import Engine
    from shared.sampling import Sampling
    from step1_foundations.generate import answer, printer
    from step1_foundations.report import write_report

    if not json:
        print_load(console(), loading)
    loaded = open_model(model, adapter, device, dtype, True)
    question, text = "Explain in one sentence what a neural network is.", "The capital of France is"
    tokenizer = loaded.tokenizer
    prompt = tokenizer.encode(tokenizer.render([{"role": "user", "content": question}]))
    if not json:
        console().print(f"\n[bold]you>[/] {question}\n[bold]model>[/] ", end="")
    room = min(96, loaded.config.context - len(prompt))
    result = answer(Engine(loaded), prompt, Sampling(temperature=0), room, (lambda _: None) if json else printer(True))
    write_report(output, loaded, text)
    if json:
        print_json({"load": asdict(loading), "answer": asdict(result), "report": str(output)})
        return
    out = console()
    out.print(f"\n({result.footer()})\n", style="dim", markup=False, soft_wrap=True)
    out.print(f"report: {output}  (open it in a browser)", markup=False, soft_wrap=True)
    out.print("next:   .venv/bin/python -m step1_foundations --help", markup=False, soft_wrap=True)


def _sampling(temperature: float, top_k: int, top_p: float, min_p: float, seed: int | None) -> "Sampling":
    from shared.errors import UserError
    from shared.sampling import Sampling

    if temperature < 0:
        raise UserError("--temperature must be 0 or more")
    if top_p <= 0:
        raise UserError("--top-p must be above 0")
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
