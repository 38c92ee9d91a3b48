"""The command line of step 1: one verb per question about a model.

    python -m step1_foundations --help
    python -m step1_foundations next "The capital of France is"

Each verb is a few lines: load, call the analysis (plain data out), print it for people or as JSON. The work is in the
module named in its body. Heavy imports stay inside the verbs, so that --help answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from shared.terminal import console, print_json, run
from step1_foundations.cli_run import runs
from step1_foundations.options import Adapter, Chat, Device, DType, Json, Model, Text, finish, open_model

# Plain help text and plain errors: boxes do not survive a pipe, and `run` prints our own errors in one line.
app = typer.Typer(
    help="Load a language model and look inside while it works.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


@app.command("load")
def load_verb(
    model: Model = None, adapter: Adapter = None, device: Device = None, dtype: DType = None, json: Json = False
) -> None:
    """Load a model; show parameters, memory, KV cache and load times.

    Example: step1 load --dtype bfloat16
    """
    from step1_foundations.load_report import measure_load, print_load

    report = measure_load(model, adapter, device, dtype, quiet=True)  # the report itself lists the choices
    if not json:
        print_load(console(), report)
    finish(asdict(report), json)


@app.command()
def tokens(
    text: Text,
    chat: Chat = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", show_default=False, help="Another model's tokenizer beside it; may be repeated."),
    ] = None,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Show the token ids, pieces and bytes of TEXT (reads no weights).

    Example: step1 tokens "naïve 🙂" --chat
    """
    from shared.config import settings
    from shared.models import resolve
    from shared.tokenizer import ChatTokenizer
    from step1_foundations.tokens import print_comparison, print_tokens, tokenize

    specs = [model or settings().model, *(compare or [])]
    results = [tokenize(ChatTokenizer(resolve(spec)), spec, text, chat=chat) for spec in specs]
    if compare:
        if not json:
            print_comparison(console(), results)
        return finish({"models": [asdict(result) for result in results]}, json)
    if not json:
        print_tokens(console(), results[0])
    return finish(asdict(results[0]), json)


@app.command("next")
def next_verb(
    text: Text,
    chat: Chat = False,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="Below 1 sharpens; 0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the fewest tokens with this much mass; 1 is off.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep tokens at least this fraction of the top one; 0 is off.")] = 0.0,
    target: Annotated[
        str | None, typer.Option(metavar="WORD", show_default=False, help="Also show this word's rank and probability.")
    ] = None,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Show what the model expects after TEXT, before and after sampling filters.

    Example: step1 next "The capital of France is" --top-p 0.9 --target Paris
    """
    from step1_foundations.next_token import next_token, print_next
    from step1_foundations.tokens import prompt_ids

    loaded = open_model(model, adapter, device, dtype, json)
    result = next_token(
        loaded,
        prompt_ids(loaded.tokenizer, text, chat=chat),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        target=target,
    )
    if not json:
        print_next(console(), result)
    finish(asdict(result), json)


@app.command()
def embed(
    words: Annotated[list[str], typer.Argument(metavar="WORD...", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="The 2-D map.")] = Path("out/embed.png"),
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Show each WORD's nearest tokens, the cosines between words, and a 2-D map.

    Example: step1 embed king queen Paris London
    """
    from step1_foundations.embeddings import embed as analyse
    from step1_foundations.embeddings import print_embeddings
    from step1_foundations.plots import plot_embeddings

    result = analyse(open_model(model, adapter, device, dtype, json), words)
    if not json:
        print_embeddings(console(), result)
    plot_embeddings(result, output)
    finish(asdict(result), json, output)


@app.command()
def attention(
    text: Text,
    layer: Annotated[int | None, typer.Option(show_default="of the best previous-token head", help="Draw it.")] = None,
    head: Annotated[int | None, typer.Option(show_default="likewise", help="Draw this head.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="All maps.")] = Path(
        "out/attention.png"
    ),
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Show where each head looks in TEXT, and name what each head does.

    Example: step1 attention "The cat sat on the mat" --layer 3 --head 5
    """
    from step1_foundations.attention import attention as analyse
    from step1_foundations.attention import choose_head, print_attention
    from step1_foundations.inspector import MAX_TOKENS
    from step1_foundations.plots import plot_attention
    from step1_foundations.tokens import prompt_ids

    loaded = open_model(model, adapter, device, dtype, json)
    result = analyse(loaded, prompt_ids(loaded.tokenizer, text, limit=min(MAX_TOKENS, loaded.config.context)))
    chosen = choose_head(result, layer, head)
    if not json:
        print_attention(console(), result, chosen)
    plot_attention(result, chosen, output)
    finish(asdict(result), json, output)


@app.command()
def lens(
    text: Text,
    position: Annotated[int, typer.Option(help="Token to look at; negative counts from the end.")] = -1,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Show what each layer would say after TEXT: where the answer appears.

    Example: step1 lens "The capital of France is"
    """
    from step1_foundations.attribution import check_position, print_lens
    from step1_foundations.attribution import lens as analyse
    from step1_foundations.inspector import MAX_TOKENS
    from step1_foundations.tokens import prompt_ids

    loaded = open_model(model, adapter, device, dtype, json)
    ids = prompt_ids(loaded.tokenizer, text, limit=min(MAX_TOKENS, loaded.config.context))
    check_position(position, len(ids))
    result = analyse(loaded, ids)
    if not json:
        print_lens(console(), result, position)
    finish(asdict(result), json)


@app.command()
def ablate(
    text: Text,
    target: Annotated[str, typer.Option(metavar="WORD", show_default=False, help="The answer to explain.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="The heat map.")] = Path(
        "out/ablate.png"
    ),
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Switch each head and MLP off: which ones does the answer depend on?

    Example: step1 ablate "The capital of France is" --target Paris
    """
    from functools import partial

    from rich.progress import track

    from step1_foundations.attribution import ablate as analyse
    from step1_foundations.attribution import print_ablation
    from step1_foundations.inspector import MAX_TOKENS
    from step1_foundations.plots import plot_ablation
    from step1_foundations.tokens import prompt_ids

    loaded = open_model(model, adapter, device, dtype, json)
    ids = prompt_ids(loaded.tokenizer, text, limit=min(MAX_TOKENS, loaded.config.context))
    errors = console(stderr=True)
    bar = partial(track, description="layers", console=errors, transient=True, disable=not errors.is_terminal)
    result = analyse(loaded, ids, target, bar)
    if not json:
        print_ablation(console(), result)
    plot_ablation(result, output)
    finish(asdict(result), json, output)


@app.command()
def report(
    text: Text,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="HTML", help="The page.")] = Path("out/report.html"),
    chat: Chat = False,
    target: Annotated[
        str | None, typer.Option(metavar="WORD", show_default="the likeliest next word", help="The answer to explain.")
    ] = None,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = None,
    dtype: DType = None,
    json: Json = False,
) -> None:
    """Write all of the above about TEXT as one interactive page.

    Example: step1 report "The capital of France is" -o report.html
    """
    from step1_foundations.report import write_report

    loaded = open_model(model, adapter, device, dtype, json)
    write_report(output, loaded, text, chat=chat, target=target)
    if json:
        print_json({"report": str(output), "bytes": output.stat().st_size})
    else:
        console().print(f"report: {output}", markup=False, soft_wrap=True)


app.add_typer(runs)


def main() -> None:
    """Run the program: errors become one line on stderr and an exit code."""
    run(app)


if __name__ == "__main__":
    main()
