"""The verbs that measure: eval retrieval, answers, abstention, routing, all; and calibrate.

    python -m step3_rag eval all --results step3_rag/results

The work is in evaluation/suite.py; here are the options, the bars and the tables on the terminal.
"""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.terminal import console, print_json, say
from step3_rag.cli_ask import Model
from step3_rag.cli_search import Json

if TYPE_CHECKING:
    from step3_rag.evaluation.suite import Bar, Table

measuring = typer.Typer()
evaluating = typer.Typer(
    help="Measure retrieval, answers, abstention and routing, with intervals and paired tests.", no_args_is_help=True
)
measuring.add_typer(evaluating, name="eval")

Limit = Annotated[
    int | None, typer.Option(min=2, metavar="N", show_default=False, help="Questions of each data set.")
]  # fmt: skip
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where what was measured is kept.")]
Results = Annotated[
    Path | None, typer.Option(metavar="DIR", show_default="nowhere", help="Write the tables there as results JSON.")
]
Graders = Annotated[
    str | None,
    typer.Option(metavar="A,B,…", show_default="all there are",
                 help="llm, embedding, overlap, adapter (step 4's; elsewhere than embedded only where named)."),
]  # fmt: skip
OUTPUT = Path("out/step3/eval")


@evaluating.command("retrieval")
def retrieval_verb(limit: Limit = None, output: Output = OUTPUT, results: Results = None, json: Json = False) -> None:
    """Which retriever finds the passage that answers? Without --limit, all questions.

    Example: step3 eval retrieval --limit 200
    """
    from step3_rag.encoder import Encoder
    from step3_rag.evaluation import suite

    _announce(suite.retrieval_seconds(limit))
    _finish([suite.retrieval(Encoder(), limit, output, _bars(json))], results, json)


@evaluating.command("answers")
def answers_verb(
    limit: Limit = None,
    graders: Graders = None,
    output: Output = OUTPUT,
    results: Results = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """The ablation: what each part of answering is worth, against naive RAG.

    Without --limit, 40 questions of BoolQ, 20 of NarrativeQA and 30 of unsolvable_questions.

    Example: step3 eval answers --limit 10 --graders embedding
    """
    from step3_rag.evaluation import suite
    from step3_rag.evaluation.datasets import load

    with suite.resources(load("unsolvable"), graders, model, quiet=json) as opened:
        _announce(suite.answers_seconds(opened, limit, output))
        _finish([suite.answers(opened, limit, output, _bars(json))], results, json)


@evaluating.command("abstention")
def abstention_verb(
    limit: Limit = None,
    graders: Graders = None,
    output: Output = OUTPUT,
    results: Results = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """How well does each grader tell an answerable question from one that only looks as if?

    Example: step3 eval abstention --graders embedding,overlap
    """
    from step3_rag.evaluation import suite
    from step3_rag.evaluation.datasets import load

    with suite.resources(load("unsolvable"), graders, model, quiet=json) as opened:
        _announce(suite.abstention_seconds(opened, limit))
        _finish([suite.abstention(opened, limit, output, _bars(json))], results, json)


@evaluating.command("routing")
def routing_verb(limit: Limit = None, results: Results = None, json: Json = False) -> None:
    """Where do questions go? The router's confusion matrix; under a minute.

    Example: step3 eval routing
    """
    from step3_rag.encoder import Encoder
    from step3_rag.evaluation import suite

    _finish([suite.routing(Encoder(), limit)], results, json)


@evaluating.command("all")
def all_verb(
    limit: Limit = None,
    graders: Graders = None,
    output: Output = OUTPUT,
    results: Results = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Everything, one after the other: under an hour on two idle cores. After Ctrl-C the same command continues.

    Example: step3 eval all --results step3_rag/results
    """
    from step3_rag.evaluation import suite
    from step3_rag.evaluation.datasets import load

    with suite.resources(load("unsolvable"), graders, model, quiet=json) as opened:
        seconds = suite.retrieval_seconds(limit) + suite.abstention_seconds(opened, limit)
        _announce(seconds + suite.answers_seconds(opened, limit, output))
        bars = _bars(json)

        def parts() -> "Iterator[list[Table]]":
            yield suite.routing(opened.encoder, limit)
            yield suite.retrieval(opened.encoder, limit, output, bars)
            yield suite.abstention(opened, limit, output, bars)
            yield suite.answers(opened, limit, output, bars)

        _finish(parts(), results, json)


@measuring.command("calibrate")
def calibrate_verb(
    graders: Graders = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default="the thresholds.toml in use")
    ] = None,
    results: Results = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Choose each grader's thresholds on data that no evaluation uses: about five minutes for one that is a model.

    Graders that are not measured keep what they have.

    Example: step3 calibrate --graders embedding,overlap
    """
    from step3_rag.evaluation import suite
    from step3_rag.evaluation.datasets import load

    with suite.resources(load("calibration"), graders, model, quiet=json) as opened:
        tables = suite.calibrate(opened, output, _bars(json))
    _finish([tables], results, json)


def _announce(seconds: float) -> None:
    minutes = max(1, round(seconds / 60))
    say(f"about {minutes} minutes on two idle cores with the embedded model; the same command continues a stopped run")


def _bars(quiet: bool) -> "Bar":
    """Progress bars on stderr; nothing where stderr is no terminal."""

    @contextmanager
    def bar(label: str, total: int) -> Iterator[Callable[[], None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        err = console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as progress:
            task = progress.add_task(label, total=total)
            yield lambda: progress.advance(task)

    return bar


def _finish(parts: "Iterable[list[Table]]", results: Path | None, json: bool) -> None:
    """Print each part's tables when it is done, and write them where that is asked for."""
    from step3_rag.evaluation.tables import show, write

    command = shlex.join(["step3", *sys.argv[1:]])
    done: list[Table] = []
    for tables in parts:
        for table in tables:
            if results is not None:
                write(results / f"{table.name}.json", table.rows, command=command, n=table.n, notes=table.notes)
            if not json:
                show(table.name, table.rows, table.n, table.notes)
        done += tables
    if json:
        print_json([asdict(table) for table in done])
