"""The verbs that measure: eval and compare."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UserError
from shared.terminal import console, print_json
from step4_finetune.evaluation.tasks import NAMES
from step4_finetune.tables import change_line, print_change, print_regressions, print_table, printable, progress_bars

if TYPE_CHECKING:
    from shared.results import Row
    from step4_finetune.columns import Entry

measuring = typer.Typer()

EVALUATION = Path("out/step4/eval")
GENERAL = "regressions"  # measured through lm-eval, not through an endpoint
TASKS = (*NAMES, GENERAL)
GENERAL_LIMIT = 500  # items of each; about 260,000 tokens a model
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", show_default="$MODEL, else smollm2-135m",
                 help="Model to load, or a name that OPENAI_BASE_URL serves."),
]  # fmt: skip


@measuring.command("eval")
def eval_verb(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", show_default=False, help=", ".join(TASKS))],
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", "-a", metavar="NAME|DIR", show_default=False,
                     help="A tuned column: a LoRA directory, a name in shared/adapters, or one the endpoint serves; "
                     "repeatable."),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", metavar="A,B,…",
                          help="The base columns: none, best (the task's own), a name, or a .md file."),
    ] = "none,best",
    strategy: Annotated[
        str | None, typer.Option("--strategy", "-s", metavar="NAME", show_default="the task's first",
                                 help="native, constrained or choice."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, show_default="all", help="Items of each group, evenly spaced.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, show_default="0.5; 0 for calls of the embedded base model",
                     help="A call, or a yes, from this probability on."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Answers and record.")] = EVALUATION,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default="nowhere", help="Write the table as results JSON.")
    ] = None,
    model: Model = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Measure TASKs: the base model with and without a prompt, and every adapter.

    Answers are kept item by item: the same command again continues, and ends at once when all are there.

    Example: step4 eval bfcl --adapter tools --limit 20
    """
    from step4_finetune.record import entries_of, read_record

    asked = _listed(tasks, TASKS, "TASK")
    prompts = _listed(prompt.split(","), (), "--prompt")
    adapters = list(dict.fromkeys(adapter or []))
    general = GENERAL in asked
    asked = [task for task in asked if task != GENERAL]
    if asked:
        _through_endpoint(
            asked, prompts, adapters, output, model, json,
            limit=limit, strategy=strategy, threshold=threshold, concurrency=concurrency,
        )  # fmt: skip
    rows = _general(adapters, output, model, limit or GENERAL_LIMIT) if general else []
    record = read_record(output)
    tables = {task: entries_of(record, task) for task in asked}
    if results is not None:
        write_tables(results, tables, rows)
    if json:
        regressions = {"regressions": record["regressions"]} if general else {}
        return print_json({task: [asdict(entry) for entry in table] for task, table in tables.items()} | regressions)
    for task, table in tables.items():
        print_table(task, table)
    if general:
        print_regressions(record["regressions"])
    return None


def _through_endpoint(
    tasks: Sequence[str],
    prompts: Sequence[str],
    adapters: Sequence[str],
    output: Path,
    model: str | None,
    quiet: bool,
    **settings: Any,
) -> None:
    from shared.endpoint import connect
    from step4_finetune.columns import adapter_column, base_columns, measure, similarity
    from step4_finetune.record import record

    with connect(model, quiet=quiet) as endpoint, progress_bars(quiet) as progress:
        tuned = [adapter_column(endpoint, adapter) for adapter in adapters]
        for task in tasks:
            columns = [*base_columns(endpoint, task, prompts), *tuned]
            entries = [measure(endpoint, c, task, output, progress=progress, **settings) for c in columns]
            if task == "relevant" and entries[0].strategy == "choice":  # what finds passages can grade them as well
                entries.insert(0, similarity(output, settings["limit"]))
            record(output, task, entries)


def _general(adapters: Sequence[str], output: Path, model: str | None, limit: int) -> "list[Row]":
    from shared.config import settings
    from step4_finetune.columns import adapter_directory, label_of
    from step4_finetune.evaluation.regressions import changes, measure, row
    from step4_finetune.evaluation.runner import weights_digest
    from step4_finetune.record import record_regressions

    if settings().openai_base_url:
        raise UserError(f"{GENERAL} needs the weights: unset OPENAI_BASE_URL and name a model with --model")
    if not adapters:
        raise UserError(f"{GENERAL} compares with the base: name at least one --adapter")
    folder, spec = output / GENERAL, model or settings().model
    directories = [adapter_directory(adapter) for adapter in adapters]
    base = measure(spec, None, folder, limit=limit)
    rows = [row("base", base, base)]
    for directory in directories:
        tuned, label = measure(spec, directory, folder, limit=limit), label_of(directory)
        rows.append(row(label, base, tuned))
        record_regressions(output, label, str(directory), weights_digest(directory), changes(base, tuned))
    return rows


def write_tables(
    path: Path, tables: "dict[str, list[Entry]]", general: "Sequence[Row]" = (), notes: str | None = None
) -> None:
    """Write the tables, by task, as one results file (shared/results.py); the command is this program's."""
    from shared.results import write_results

    rows: list[Any] = [
        {"name": f"{task}: {entry.label}" if len(tables) > 1 else entry.label, "metrics": entry.row}
        for task, table in tables.items()
        for entry in table
    ]
    counts = {entry.n for table in tables.values() for entry in table}
    write_results(
        path,
        command=shlex.join(["step4", *sys.argv[1:]]),
        rows=[*rows, *general],
        n=counts.pop() if len(counts) == 1 else None,
        notes=notes,
        packages=("torch", "openai", "xgrammar"),
    )


@measuring.command("compare")
def compare_verb(
    a: Annotated[Path, typer.Argument(metavar="A.jsonl", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B.jsonl", show_default=False)],
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, show_default="as eval has it", help="A call, or a yes, from here on; in both."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Items to show that B fixed, and that it broke.")] = 3,
    json: Json = False,
) -> None:
    """Compare two files of answers to the same task, item by item.

    Example: step4 compare out/step4/eval/bfcl-base.jsonl out/step4/eval/bfcl-sft.jsonl
    """
    from step4_finetune.columns import task_of, usual_threshold
    from step4_finetune.evaluation.comparison import compare, judge
    from step4_finetune.evaluation.runner import read_answers, read_header

    headers = [read_header(path) for path in (a, b)]
    if headers[0]["task"] != headers[1]["task"]:
        raise UserError(f"{a.name} is of {headers[0]['task']}, {b.name} of {headers[1]['task']}: compare one task")
    task = task_of(headers[0]["task"], None)
    used = [
        usual_threshold(h["strategy"], h.get("endpoint", ""), h.get("weights", "")) if threshold is None else threshold
        for h in headers
    ]
    first, second = (judge(task, read_answers(path), from_) for path, from_ in zip((a, b), used, strict=True))
    found = compare(task, first, second)
    if json:
        sides = [
            {"file": str(path), "threshold": from_} | h for path, from_, h in zip((a, b), used, headers, strict=True)
        ]
        return print_json({"a": sides[0], "b": sides[1]} | asdict(found))
    out = console()
    for side, header, from_ in zip("AB", headers, used, strict=True):
        out.print(f"{side} {header['label']}  ({header['strategy']}, from p = {from_:g})", markup=False, soft_wrap=True)
    out.print(f"\nB − A on {task.name}, 95 % intervals, McNemar's exact p", markup=False)
    for change in found.changes:
        print_change(change)
    if found.auroc is not None:
        value, ci95, p = found.auroc
        auroc = {"group": "AUROC", "n": found.changes[-1].n, "difference": value, "ci95": ci95, "p": p}
        out.print(f"  {change_line(auroc)}", markup=False)
    for title, items in (("fixed", found.fixed), ("broken", found.broken)):
        for item in items[:examples]:
            out.print(f"\n{title}: {item.id}  {printable(item.question)}", markup=False)
            for side, answer in (("A", item.a), ("B", item.b)):
                out.print(f"  {side} {answer.kind or 'right'}: {printable(answer.said)}", markup=False)
    return None


def _listed(names: Sequence[str], allowed: Sequence[str], option: str) -> list[str]:
    """The names, each once. allowed: what may stand there, where this is known."""
    found = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not found:
        raise UserError(f"{option} names nothing" + (f": use {', '.join(allowed)}" if allowed else ""))
    if unknown := [name for name in found if allowed and name not in allowed]:
        raise UserError(f"{option} {unknown[0]!r}: use {', '.join(allowed)}")
    return found
