"""The command line of step 5.

    python -m step5_serving --help
    python -m step5_serving serve

Each verb is a few lines; the work is in the module it names. Heavy imports stay inside the verbs, so that --help
answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, run
from step5_serving import cli_bench
from step5_serving.cli_keys import Json, keys_app

app = typer.Typer(
    help="Serve models like a service that takes traffic: keys, limits, fair queueing, accounts, metrics, traces.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


Engine = Annotated[
    str | None,
    typer.Option(metavar="vllm|embedded", show_default="vllm, where it is not installed embedded",
                 help="What computes: vLLM, or the project's own engine."),
]  # fmt: skip
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", show_default="$MODEL, else smollm2-135m",
                 help="Catalog name, directory or Hub id."),
]  # fmt: skip
Adapter = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", show_default="those of shared/adapters made for the model",
                 help="LoRA directory, served under its name; repeatable."),
]  # fmt: skip


@app.command(context_settings={"ignore_unknown_options": True})
def serve(
    engine: Engine = None,
    model: Model = None,
    adapter: Adapter = None,
    engine_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", show_default=False,
                     help="Use this running engine, start none; repeatable. ENGINE_API_KEY is its key."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a key first.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8080,
    slots: Annotated[
        int | None,
        typer.Option(min=1, show_default="32, embedded 8", help="Requests that an engine computes at once."),
    ] = None,
    max_wait: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Longest wait for a slot; who would wait longer gets 429.")
    ] = 0.5,
    max_body: Annotated[float, typer.Option(min=0.001, metavar="MB", help="Largest request body.")] = 4.0,
    connect_timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="To reach an engine.")] = 5.0,
    first_token_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="From an engine to the first token of a stream.")
    ] = 60.0,
    total_timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For a whole request.")] = 600.0,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="step5/log/gateway.jsonl in LLM_ROADMAP_HOME",
                     help="The JSON log; - is stderr."),
    ] = None,
    engine_arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM_ARGUMENTS]", show_default=False)
    ] = None,
) -> None:  # fmt: skip
    """Run the gateway and its engine until Ctrl-C.

    Example: step5 serve --engine embedded --port 8000
    """
    from shared.config import settings
    from step5_serving.launch import VLLM_SLOTS, choose_launch
    from step5_serving.service import Options, Timeouts
    from step5_serving.service import serve as run_service

    if engine_url and engine_arguments:
        raise UserError(
            f"{engine_arguments[0]!r} is no option of serve; arguments after -- are for a vLLM started here"
        )
    launches = []
    if not engine_url:
        spec = model or settings().model
        launches.append(choose_launch(engine, spec, adapter, slots=slots, extra=engine_arguments or ()))
    run_service(
        Options(
            host,
            port,
            launches,
            engine_url or (),
            slots or VLLM_SLOTS,
            max_wait,
            int(max_body * 1e6),
            Timeouts(connect_timeout, first_token_timeout, total_timeout),
            log,
        )
    )


@app.command()
def demo(engine: Engine = None, model: Model = None, adapter: Adapter = None, json: Json = False) -> None:
    """Start the service on a free port, send a streamed chat and a tool call, show what they cost, and stop.

    Example: step5 demo --engine embedded
    """
    from shared.config import settings
    from step5_serving.demo import demo as run_demo
    from step5_serving.launch import choose_launch

    found = run_demo(choose_launch(engine, model or settings().model, adapter), quiet=json)
    if json:
        print_json(found)


@app.command()
def usage(
    days: Annotated[
        int | None, typer.Option("--days", "-d", min=1, show_default="all", help="Only the last days.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="all", help="Only this key, by name or id.")
    ] = None,
    by: Annotated[str, typer.Option(metavar="A,B,…", help="Group by key, model, day.")] = "key,model",
    json: Json = False,
) -> None:
    """Show tokens and money, those of a service that was killed included.

    Example: step5 usage --days 7 --by day,model
    """
    from step5_serving.database import connect, home
    from step5_serving.ledger import bring_in_leftovers
    from step5_serving.usage import usage_rows

    groups = [name.strip() for name in by.split(",") if name.strip()]
    database = connect()
    try:
        bring_in_leftovers(database, home())
        rows = usage_rows(database, groups, days=days, key=key)
    finally:
        database.close()
    if json:
        return print_json(rows)
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in groups:
        table.add_column(name)
    for name in ("requests", "prompt", "cached", "completion", "US$"):
        table.add_column(name, justify="right")
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("requests", "prompt", "cached", "completion"))
        money = f"{row['cost']:.6f}{' + ?' if row['unpriced'] else ''}"
        table.add_row(*(str(row[name]) for name in groups), *counts, money)
    console().print(table)
    if any(row["estimated"] for row in rows):
        console(stderr=True).print("some requests' tokens are estimates: their engine or the gateway died on them")
    return None


app.command()(cli_bench.bench)
app.command()(cli_bench.quantise)
app.add_typer(keys_app, name="keys")


def main() -> None:
    """The program `step5`."""
    run(app)
