"""How many engines a rate needs, from one engine's measured speed.

    python -m step5_serving.deploy.capacity                                   # prices.toml's figures: 2 cores, SmolLM2
    python -m step5_serving.deploy.capacity --prefill 52000 --decode 9000 --prompt 1500 --completion 300 --gateway 500

An engine's second is divided between reading prompts and writing answers:

    seconds per request = prompt tokens / prefill rate + completion tokens / decode rate (all slots busy)
    engines             = rate × seconds per request / utilisation, rounded up, and one spare

Utilisation is what is left for rushes: near 1 the queue, and with it the time to the first token, grows without bound.
The sum assumes that prefill and decode do not overlap, which is the case on a CPU and pessimistic on a GPU.
"""

import math
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from shared.terminal import console, print_json, run

PRICES = Path(__file__).parents[1] / "prices.toml"
RATES = (1, 10, 100, 1000)


def engines_for(rate: float, seconds: float, utilisation: float) -> int:
    """Engines that carry `rate` requests a second at `seconds` each, with one to spare."""
    return math.ceil(rate * seconds / utilisation) + 1


def main(
    prompt: Annotated[int, typer.Option(min=0, help="Tokens of a prompt, less what the prefix cache has.")] = 300,
    completion: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 100,
    prefill: Annotated[
        float | None, typer.Option(min=1, metavar="N", show_default="prices.toml", help="Prompt tokens a second.")
    ] = None,
    decode: Annotated[
        float | None,
        typer.Option(min=1, metavar="N", show_default="prices.toml", help="Output tokens a second, all slots busy."),
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.1, max=0.95, help="Share of an engine that is planned for.")
    ] = 0.7,
    gateway: Annotated[
        float | None,
        typer.Option(min=1, metavar="N", show_default="left out", help="Requests a second that a gateway carries."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")] = False,
) -> None:
    """Print engines, cost and gateways for 1 to 1,000 requests a second."""
    local = tomllib.loads(PRICES.read_text("utf-8"))["local"]
    figures = local["models"]["*"]
    seconds = prompt / (prefill or figures["prefill_per_second"]) + completion / (
        decode or figures["decode_per_second"]
    )
    rows = []
    for rate in RATES:
        engines = engines_for(rate, seconds, utilisation)
        row = {"requests_per_second": rate, "engines": engines, "dollars_per_hour": engines * local["dollars_per_hour"]}
        rows.append(row | ({"gateways": math.ceil(rate / gateway / utilisation)} if gateway else {}))
    if json:
        return print_json({"seconds_per_request": seconds, "rows": rows})
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" for value in row.values()))
    console().print(f"{seconds:.3f} s of an engine per request, {1 / seconds:.2f} requests a second at full load")
    console().print(table)
    return None


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    run(app)
