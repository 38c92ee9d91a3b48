"""The verbs that make, list and revoke keys; a running service sees the change within a second."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from shared.terminal import console, print_json, say

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]

keys_app = typer.Typer(
    help="Make, list and revoke the keys that clients need.", no_args_is_help=True, rich_markup_mode=None
)


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    models: Annotated[
        str | None, typer.Option(metavar="A,B,…", show_default="all", help="Models and adapters the key may use.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="no limit", help="At most so many requests.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="no limit", help="Prompt and answer together.")
    ] = None,
    cap: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="USD", show_default="no limit", help="Money in all, by prices.toml."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a key and print it: the only time that it can be seen.

    Example: step5 keys create "web shop" --requests-per-minute 60 --cap 5
    """
    from step5_serving import keys
    from step5_serving.database import connect

    scope = None if models is None else [part.strip() for part in models.split(",") if part.strip()]
    database = connect()
    try:
        key = keys.create(
            database, name, models=scope, requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute, cap=cap,
        )  # fmt: skip
    finally:
        database.close()
    if json:
        return print_json({"name": name.strip(), "key": key})
    say("keep it: only its hash is stored")
    print(key)
    return None


@keys_app.command("list")
def list_verb(json: Json = False) -> None:
    """List the keys, revoked ones included; of the keys themselves only the id is known.

    Example: step5 keys list
    """
    from step5_serving import keys
    from step5_serving.database import connect

    database = connect()
    try:
        found = keys.list_keys(database)
    finally:
        database.close()
    if json:
        return print_json([asdict(key) for key in found])
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "created", "models", "requests/min", "tokens/min", "cap US$", ""):
        table.add_column(column)
    for key in found:
        limits = (key.requests_per_minute, key.tokens_per_minute, key.cap)
        table.add_row(
            key.id,
            Text(key.name),
            datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d"),
            Text("all" if key.models is None else ", ".join(key.models)),
            *("-" if limit is None else f"{limit:g}" for limit in limits),
            "revoked" if key.revoked else "",
        )
    console().print(table)
    return None


@keys_app.command()
def revoke(name: Annotated[str, typer.Argument(metavar="NAME|ID", show_default=False)], json: Json = False) -> None:
    """Make a key useless, within a second also for a running service.

    Example: step5 keys revoke "web shop"
    """
    from step5_serving import keys
    from step5_serving.database import connect

    database = connect()
    try:
        key = keys.revoke(database, name)
    finally:
        database.close()
    if json:
        return print_json(asdict(key))
    say(f"revoked {key.name} ({key.id})")
    return None
