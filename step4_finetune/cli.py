"""The command line of step 4.

    python -m step4_finetune --help
    python -m step4_finetune eval bfcl --adapter tools --limit 20

Each verb is a few lines; the work is in the module it names. Heavy imports stay inside the verbs, so that --help
answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from shared.terminal import console, print_json, run
from step4_finetune.cli_data import data
from step4_finetune.cli_eval import EVALUATION, Json, measuring, write_tables

app = typer.Typer(
    help="Teach the embedded model with LoRA and DPO, and measure what that changed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
app.add_typer(data, name="data")

Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", show_default=False, help="A LoRA directory, or its name.")]


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", show_default=False, help="A file, or a name in recipes/.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="Override a value; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Train an adapter, by SFT or by DPO as the recipe says; kill it and the same command goes on.

    Example: step4 train tools_sft_quick --set num_train_epochs=1
    """
    from step4_finetune.pipeline import RECIPES, train_recipe

    named = RECIPES / f"{recipe}.yaml"
    result = train_recipe(named if not recipe.exists() and named.exists() else recipe, overrides or [])
    if json:
        return print_json(asdict(result))
    console().print(
        f"loss {result.first_loss:.3f} → {result.last_loss:.3f} in {result.steps} steps, {result.seconds:.0f} s, "
        f"{result.tokens_per_second:.0f} tok/s\nadapter: {result.adapter}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return None


app.add_typer(measuring)


@app.command()
def merge(
    adapter: Adapter,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", show_default=False, help="The directory to make.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", show_default="the one it was trained on")
    ] = None,
    json: Json = False,
) -> None:
    """Add an adapter to its base model: a plain model that anything loads.

    Example: step4 merge out/step4/tools_sft_full/adapter --to out/step4/merged
    """
    from step4_finetune.adapters import merge as add
    from step4_finetune.columns import adapter_directory

    merged = add(adapter_directory(adapter), to, model)
    if json:
        return print_json({"model": str(merged)})
    console().print(f"model: {merged}", markup=False, soft_wrap=True)
    return None


@app.command()
def publish(
    adapter: Adapter,
    name: Annotated[str, typer.Option("--name", show_default=False, help="What the other steps call it.")],
    evaluation: Annotated[Path, typer.Option(metavar="DIR", help="What `eval` recorded about it.")] = EVALUATION,
    json: Json = False,
) -> None:
    """Copy an adapter to shared/adapters/NAME, with a card: data, recipe, figures.

    Example: step4 publish out/step4/tools_sft_full/adapter --name tools
    """
    from step4_finetune import adapters
    from step4_finetune.card import card_of
    from step4_finetune.columns import adapter_directory

    directory = adapter_directory(adapter)
    target = adapters.publish(directory, name, card_of(directory, name, evaluation), adapters.PUBLISHED)
    if json:
        return print_json({"adapter": str(target)})
    console().print(f"adapter: {target}", markup=False, soft_wrap=True)
    return None


@app.command()
def report(
    evaluation: Annotated[Path, typer.Argument(metavar="DIR", help="What `eval` recorded.")] = EVALUATION,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="HTML", show_default="DIR/report.html", help="The page.")
    ] = None,
    json: Json = False,
) -> None:
    """Write one page: curves, bars with intervals, calibration, items fixed and broken.

    Example: step4 report out/step4/eval -o report.html
    """
    from step4_finetune.report import write_report

    path = output or evaluation / "report.html"
    write_report(evaluation, path)
    if json:
        return print_json({"report": str(path), "bytes": path.stat().st_size})
    console().print(f"report: {path}", markup=False, soft_wrap=True)
    return None


@app.command()
def demo(
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default="nowhere", help="Write the table as results JSON.")
    ] = None,
    json: Json = False,
) -> None:
    """Data, base, train, tuned, DPO, report, on a small scale: what `make step4` runs.

    Example: step4 demo
    """
    from step4_finetune.pipeline import Pipeline
    from step4_finetune.tables import change_line, print_table

    found = Pipeline().run()
    minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in found.seconds.items())
    minutes = f"minutes: {minutes}; together {sum(found.seconds.values()) / 60:.1f}"
    if results is not None:
        gains = [f"{e.label} against {e.baseline}: {change_line(c)}" for e in found.table for c in e.changes]
        preferred = [f"SFT + DPO against SFT: {change_line(found.preferred)}"] if found.preferred else []
        notes = [minutes, f"{found.pairs} pairs", *gains, *preferred]
        write_tables(results, {"bfcl": found.table}, notes="\n".join(notes))
    if json:
        return print_json(asdict(found))
    out = console()
    print_table("bfcl", found.table)
    if found.preferred is not None:
        out.print(f"\nSFT + DPO against SFT, {found.pairs} pairs", style="bold")
        out.print(f"  {change_line(found.preferred)}", markup=False)
    out.print(f"\n{minutes}", markup=False)
    out.print(f"report: {found.report.resolve().as_uri()}", markup=False, soft_wrap=True)
    return None


def main() -> None:
    """The program `step4`."""
    run(app)


if __name__ == "__main__":
    main()
