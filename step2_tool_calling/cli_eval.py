"""The verbs that measure: eval, compare, prompts."""

import asyncio
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from shared.errors import UserError
from shared.terminal import console, print_json
from step2_tool_calling.options import Json, Model, Timeout

if TYPE_CHECKING:
    from shared.bfcl import Item
    from shared.endpoint import Endpoint
    from shared.results import Row
    from step2_tool_calling.evaluate import Outcome
    from step2_tool_calling.prompts import Prompt
    from step2_tool_calling.strategies import Name

measuring = typer.Typer()


@measuring.command("prompts")
def prompts_verb(json: Json = False) -> None:
    """List the prompts and what each of them tries.

    Example: step2 prompts
    """
    from step2_tool_calling.prompts import load_prompt, names

    prompts = [load_prompt(name) for name in names()]
    if json:
        return print_json([asdict(prompt) for prompt in prompts])
    for prompt in prompts:
        console().print(f"[bold]{prompt.name}[/]  [dim]v{prompt.version}[/]")
        console().print(f"  {prompt.tries}", markup=False)
    return None


@measuring.command("eval")
def eval_verb(
    prompts: Annotated[
        str, typer.Option("--prompts", "-p", metavar="A,B,…", help="Prompts; also as NAME:STRATEGY@MODEL.")
    ] = "plain",
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", metavar="A,B,…", help="native, constrained, text.")
    ] = "constrained",
    categories: Annotated[
        str, typer.Option(metavar="A,B,…", help="BFCL categories.")
    ] = "simple_python,multiple,parallel,parallel_multiple,irrelevance",
    limit: Annotated[
        int | None, typer.Option(min=1, show_default="all", help="Items of each category, evenly spaced.")
    ] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            max=1.0,
            show_default=False,
            help="Another row per constrained run: call from this probability on; repeatable.",
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(show_default="none", help="For temperatures above 0.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the answers are kept.")] = Path(
        "out/step2/eval"
    ),
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default="nowhere", help="Write the table as results JSON.")
    ] = None,
    timeout: Timeout = 600.0,
    model: Model = None,
    json: Json = False,
) -> None:
    """Measure tool calling on BFCL v4, every prompt with every strategy.

    A prompt that writes the tools itself ({tools}) is measured with the strategy text, whatever --strategy says.
    NAME:STRATEGY is measured with that strategy only, NAME@MODEL asks another model that the endpoint serves.
    Answers are kept item by item: the same command again continues, and ends at once when all are there.

    Example: step2 eval --prompts plain,examples --strategy native --limit 20
    """
    from shared.bfcl import CATEGORIES, load
    from shared.endpoint import connect
    from step2_tool_calling.prices import load_prices
    from step2_tool_calling.session import is_local

    chosen = _listed(categories, "--categories", list(CATEGORIES))
    strategies: list[Any] = _listed(strategy, "--strategy", list(_strategy_names()))
    measured = [_what_to_measure(text, strategies) for text in _listed(prompts, "--prompts")]
    items = [item for category in chosen for item in load(category, limit)]
    settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    rows: list[Row] = []
    with connect(model, role="tools", quiet=json) as endpoint:
        if not is_local(endpoint):
            load_prices()  # a broken list is found out before anything is paid for
        for prompt, suitable, served in measured:
            asked = replace(endpoint, model=served or endpoint.model)
            for name in suitable:
                outcomes, dollars = _measure(
                    asked,
                    items,
                    name,
                    prompt,
                    folder=output,
                    concurrency=concurrency,
                    timeout=timeout,
                    settings=settings,
                    quiet=json,
                )
                label = f"{asked.model}, {name}, {prompt.name}"
                rows += _rows(label, items, outcomes, dollars, (threshold or []) if name == "constrained" else [])
    if results is not None:
        from shared.results import write_results

        command = shlex.join(["step2", *sys.argv[1:]])
        notes = f"s/item: median, {concurrency} requests at a time"
        packages = ("torch", "openai", "xgrammar")
        write_results(results, command=command, rows=rows, n=len(items), notes=notes, packages=packages)
    _show(rows, json)


def _what_to_measure(text: str, strategies: "list[Name]") -> "tuple[Prompt, list[Name], str]":
    """Read NAME, NAME:STRATEGY, NAME@MODEL or both; return prompt, strategies, and "" for the endpoint's own model."""
    from step2_tool_calling.prompts import load_prompt, writes_tools

    text, _, model = text.partition("@")
    name, _, own = text.rpartition(":")
    chosen: list[Any] = [own] if name and own in _strategy_names() else strategies
    prompt = load_prompt(name if chosen == [own] else text)
    return prompt, ["text"] if writes_tools(prompt.messages) else chosen, model


def _rows(
    label: str,
    items: "Sequence[Item]",
    outcomes: "Sequence[Outcome]",
    dollars: float | None,
    thresholds: Sequence[float],
) -> "list[Row]":
    """The row of a run, and one for each threshold that it is read with."""
    from step2_tool_calling.scoreboard import row, thresholded

    rows = [row(label, items, outcomes, dollars)]
    for threshold in thresholds:
        limited = thresholded(outcomes, threshold)
        rows.append(row(f"{label}, calls from {threshold:g}", items, limited, dollars))
    return rows


def _measure(
    endpoint: "Endpoint",
    items: "Sequence[Item]",
    strategy: "Name",
    prompt: "Prompt",
    *,
    folder: Path,
    concurrency: int,
    timeout: float,
    settings: dict[str, Any],
    quiet: bool,
) -> "tuple[list[Outcome], float | None]":
    """Run one setting, with a progress bar; return its outcomes and what they cost."""
    from openai import AsyncOpenAI

    from step2_tool_calling.conversation import Usage
    from step2_tool_calling.evaluate import answer_item, evaluate, header_of
    from step2_tool_calling.prices import cost
    from step2_tool_calling.session import is_local
    from step2_tool_calling.strategies import Model as Asked

    where = "embedded" if endpoint.engine is not None else endpoint.base_url
    adapter = endpoint.engine.model.adapters.get(endpoint.model) if endpoint.engine else None
    who = f"{endpoint.model}-{adapter.digest}" if adapter else endpoint.model
    name = "-".join([who, strategy, prompt.name, prompt.digest]).replace("/", "_")

    async def measure(progress: "Callable[[Outcome], None]") -> "list[Outcome]":
        async with AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=4, timeout=timeout
        ) as client:
            asked = Asked(client, endpoint.model, **settings)
            return await evaluate(
                items,
                lambda item: answer_item(item, asked, strategy, prompt),
                folder / f"{name}.jsonl",
                header=header_of(asked, where, strategy, prompt),
                concurrency=concurrency,
                progress=progress,
            )

    with _progress(f"{strategy} {prompt.name}", len(items), quiet) as advance:
        outcomes = asyncio.run(measure(advance))
    used = sum((outcome.usage for outcome in outcomes), Usage())
    return outcomes, cost(endpoint.model, used, local=is_local(endpoint))


def _progress(label: str, total: int, quiet: bool) -> Any:
    """A context manager: a progress bar on stderr that yields `advance(outcome)`."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown() -> Any:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(stderr=True), disable=quiet) as bar:
            task = bar.add_task(label, total=total)
            yield lambda _: bar.advance(task)
            bar.update(task, completed=total)  # items that were there already

    return shown()


def _show(rows: "list[Row]", json: bool) -> None:
    from shared.results import format_metric
    from step2_tool_calling.scoreboard import FAILURES

    if json:
        return print_json(rows)
    out = console()
    for entry in rows:
        out.print(f"\n{entry['name']}", style="bold", markup=False)
        metrics = entry["metrics"]
        for key in metrics:
            if key not in FAILURES:
                out.print(f"  {key:18} {format_metric(metrics[key])}", markup=False)
        failures = ", ".join(f"{key} {metrics[key]['value']}" for key in FAILURES if metrics[key]["value"])
        out.print(f"  {'failures':18} {failures or 'none'}", markup=False)
    return None


@measuring.command("calibrate")
def calibrate_verb(
    run: Annotated[Path, typer.Argument(metavar="FILE.jsonl", show_default=False)], json: Json = False
) -> None:
    """Find the call threshold in a constrained run over other items than those it is for.

    Example: step2 calibrate out/step2/eval/live/smollm2-135m-constrained-plain-….jsonl
    """
    from step2_tool_calling.scoreboard import calibrate

    outcomes = _read(run)
    items = _items_of(outcomes.values())
    found = calibrate(items, [outcomes[item.id] for item in items])
    if json:
        return print_json(asdict(found))
    low, high = found.ci95
    console().print(
        f"--call-threshold {found.threshold:.3g}   balanced accuracy {100 * found.balanced_accuracy:.1f} % "
        f"on these {found.n} items, AUROC {found.auroc:.3f} [{low:.3f}, {high:.3f}]",
        markup=False,
    )
    return None


@measuring.command("compare")
def compare_verb(
    a: Annotated[Path, typer.Argument(metavar="A.jsonl", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B.jsonl", show_default=False)],
    examples: Annotated[int, typer.Option(min=0, help="Items to show that B fixed, and that it broke.")] = 3,
    json: Json = False,
) -> None:
    """Compare two measured runs on the items they share.

    Example: step2 compare out/step2/eval/A.jsonl out/step2/eval/B.jsonl
    """
    from step2_tool_calling.scoreboard import compare, describe
    from step2_tool_calling.trace import printable

    first, second = _read(a), _read(b)
    items = _items_of(first.values())
    result = compare(items, first, second)
    if json:
        return print_json(asdict(result))
    out = console()
    out.print(f"A {a.stem}  {result.a:.1f} %\nB {b.stem}  {result.b:.1f} %", markup=False, soft_wrap=True)
    out.print(
        f"B - A: {result.difference:+.1f} points [{result.ci95[0]:+.1f}, {result.ci95[1]:+.1f}], n = {result.n}; "
        f"only B right {result.only_b_right}, only A right {result.only_a_right}, exact p = {result.p:.2g}",
        markup=False,
    )
    known = {item.id: item for item in items}
    for title, ids in (("fixed", result.fixed), ("broken", result.broken)):
        for item_id in ids[:examples]:
            out.print(f"\n{title}: {item_id}  {known[item_id].messages[-1]['content']}", markup=False)
            for side, outcomes in (("A", first), ("B", second)):
                score, said = describe(known[item_id], outcomes[item_id])
                out.print(f"  {side} {score.kind or 'right'}: {printable(said)}", markup=False)
    return None


def _read(path: Path) -> "dict[str, Outcome]":
    from step2_tool_calling.evaluate import read_outcomes

    if not path.exists():
        raise UserError(f"{path}: no such run; `eval` writes them")
    outcomes = read_outcomes(path)
    if not outcomes:
        raise UserError(f"{path} holds no answers: run the `eval` again that was to write them")
    return outcomes


def _items_of(outcomes: Any) -> "list[Item]":
    from shared.bfcl import load

    present = {outcome.id: outcome.category for outcome in outcomes}
    return [item for category in dict.fromkeys(present.values()) for item in load(category) if item.id in present]


def _listed(text: str, option: str, allowed: Sequence[str] = ()) -> list[str]:
    """The names in a list with commas, each once. allowed: what may stand there, where this is known."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} {text!r} names nothing" + (f": use {', '.join(allowed)}" if allowed else ""))
    if unknown := [name for name in names if allowed and name not in allowed]:
        raise UserError(f"{option} {unknown[0]!r}: use {', '.join(allowed)}")
    return names


def _strategy_names() -> tuple[str, ...]:
    from step2_tool_calling.strategies import Name

    return get_args(Name)
