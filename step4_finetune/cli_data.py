"""The verbs about training data: data build, data show, data stats."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, say
from step4_finetune.data_files import FOLDER, SETS
from step4_finetune.tables import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

data = typer.Typer(no_args_is_help=True, help="Build the training data, look at it, count it.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]
File = Annotated[str, typer.Argument(metavar="SET|FILE", help="tools, grader, or a file that `build` wrote.")]


@data.command("build")
def build_verb(
    sets: Annotated[
        list[str] | None, typer.Argument(metavar="SET...", show_default="tools grader", help="tools, grader.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Holds a folder per set.")] = FOLDER,
    json: Json = False,
) -> None:
    """Build training data; say what was refused and what was removed, and why.

    Example: step4 data build tools
    """
    from step4_finetune.data_files import build

    chosen = list(dict.fromkeys(sets or SETS))
    for name in chosen:
        if name not in SETS:
            raise UserError(f"there is no data set {name!r}: choose {' or '.join(SETS)}")
    reports = {}
    for name in chosen:
        if not json:
            say(f"building {name} …")
        reports[name] = build(name, seed, output)
        if not json:
            _print_report(reports[name], output / name)
    if json:
        print_json(reports)


def _print_report(report: "Mapping[str, Any]", folder: Path) -> None:
    out = console()
    for name, file in report["files"].items():
        out.print(f"{folder / name}  {file['rows']} rows, sha256 {file['sha256'][:12]}", markup=False, soft_wrap=True)
    for title, sources in (
        ("refused by the check", report["refused"]),
        ("removed, since an evaluation text has it too", report["removed"]),
    ):
        for source, reasons in sources.items():
            counted = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
            out.print(f"  {title}: {source}: {counted or 'none'}", markup=False)
    for example in report.get("examples_of_refusals", ()):
        out.print(f"    {printable(example)}", style="dim", markup=False)


@data.command("stats")
def stats_verb(
    file: File = "tools",
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also in tokens of the model (reads its tokenizer).")
    ] = False,
    json: Json = False,
) -> None:
    """Count a data file: kinds, sources, and with --tokens lengths.

    Example: step4 data stats tools --tokens
    """
    from step4_finetune.data_files import path_of, stats

    path = path_of(file)
    tokenizer = None
    if tokens:
        from shared.config import settings
        from shared.models import resolve
        from shared.tokenizer import ChatTokenizer

        tokenizer = ChatTokenizer(resolve(settings().model))
    found = stats(path, tokenizer)
    if json:
        return print_json({"file": str(path)} | found)
    out = console()
    out.print(str(path), style="bold", markup=False, soft_wrap=True)
    for key, value in found.items():
        text = ", ".join(f"{name} {count}" for name, count in value.items()) if isinstance(value, dict) else value
        out.print(f"  {key.replace('_', ' ')}: {text}", markup=False)
    return None


@data.command("show")
def show_verb(
    file: File = "tools",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Rows, evenly spaced over the file.")] = 5,
    kind: Annotated[str | None, typer.Option(show_default="all", help="Only this kind, e.g. parallel.")] = None,
    source: Annotated[
        str | None, typer.Option(show_default="all", help="Only this source, e.g. glaive; for the grader a task.")
    ] = None,
    json: Json = False,
) -> None:
    """Show rows as a person reads them: what is asked, what should be answered.

    Example: step4 data show tools --kind no_tool -n 3
    """
    from step4_finetune.data_files import choose, path_of, read

    rows = choose(read(path_of(file)), count, kind, source)
    if json:
        return print_json(rows)
    for row in rows:
        _print_row(row)
    return None


def _print_row(row: "Mapping[str, Any]") -> None:
    out = console()
    out.print(f"\n{row['id']}", style="bold", markup=False, end="")
    out.print(f"  {row.get('source', row.get('task', ''))}, {row['kind']}", style="dim", markup=False)
    for tool in row.get("tools") or ():
        out.print(f"  tool    {printable(_signature(tool['function']))}", style="dim", markup=False)
    answers = {side: row[side] for side in ("chosen", "rejected") if side in row}  # a pair of dpo_pairs.py
    asked = row["messages"] if answers else row["messages"][:-1]
    for message in asked:
        out.print(f"  {message['role']:7} {printable(message['content'])}", markup=False)
    for side, answer in (answers or {"answer": row["messages"][-1]}).items():
        for line in _lines(answer):
            out.print(f"  {side:8}{printable(line)}", style="green" if side != "rejected" else "red", markup=False)


def _signature(function: "Mapping[str, Any]") -> str:
    """name(required: type, optional?: type): what it does."""
    parameters = function["parameters"]
    required = parameters.get("required", ())
    arguments = ", ".join(
        f"{name}{'' if name in required else '?'}: {schema.get('type', 'any')}"
        for name, schema in parameters.get("properties", {}).items()
    )
    return f"{function['name']}({arguments})  {function.get('description', '')}"


def _lines(answer: "Mapping[str, Any]") -> list[str]:
    calls = [f"{c['function']['name']}({c['function']['arguments']})" for c in answer.get("tool_calls") or ()]
    return calls or [answer["content"]]
