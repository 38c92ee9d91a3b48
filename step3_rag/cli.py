"""The command line of step 3.

    python -m step3_rag --help
    python -m step3_rag ingest ~/notes
    python -m step3_rag ask "what did I write about backups?"

Each verb is a few lines; the work is in the module it names. The answer goes to stdout, everything about how it came
to be goes to stderr. Heavy imports stay inside the verbs, so that --help answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, run, say
from step3_rag.cli_ask import Model, asking
from step3_rag.cli_eval import measuring
from step3_rag.cli_search import Collection, Json, looking

if TYPE_CHECKING:
    from step3_rag.ingest import Report

app = typer.Typer(
    help="Ask your documents: hybrid search, graded passages, cited answers, and “I don't know”.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


@app.command("ingest")
def ingest_verb(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", show_default=False)],
    collection: Collection = "default",
    json: Json = False,
) -> None:
    """Read files and folders into a collection, or bring it up to date with them.

    Markdown, HTML, reStructuredText, text, PDF and source code. What is unchanged is skipped, what is gone is
    forgotten; a run that was stopped goes on where it was.

    Example: step3 ingest ~/notes paper.pdf --collection work
    """
    from step3_rag.encoder import Encoder
    from step3_rag.ingest import collection_folder, ingest, progress_bar

    folder = collection_folder(collection)
    with progress_bar() as on_progress:
        report = ingest(paths, folder, Encoder(), on_progress)
    if json:
        print_json(asdict(report))
    else:
        _show_report(report)
    if report.remarks and not report.added + report.changed + report.unchanged:
        raise UserError("none of the files could be read", exit_code=1)


def _show_report(report: "Report") -> None:
    from shared.foreign_text import one_line

    for remark in report.remarks:
        say(f"{one_line(remark.path, 1000)}: {one_line(remark.problem, 1000)}")
    files = {"added": report.added, "changed": report.changed, "unchanged": report.unchanged, "removed": report.removed}
    counts = ", ".join(f"{count:,} {name}" for name, count in files.items() if count) or "no files"
    say(f"{counts}; {report.passages:,} passages, {report.embedded:,} of them embedded now ({report.seconds:.1f} s)")


@app.command("sources")
def sources_verb(collection: Collection = "default", json: Json = False) -> None:
    """List what a collection was made from.

    Example: step3 sources --collection work
    """
    from shared.foreign_text import one_line
    from step3_rag.index import latest_generation
    from step3_rag.ingest import collection_folder
    from step3_rag.store import Store

    folder = collection_folder(collection)
    store = Store(folder)
    sources, latest = store.sources(), latest_generation(folder)
    behind = latest is None or latest[0] < store.version
    encoder = store.encoder
    store.close()
    if json:
        rows = [{"path": path, "passages": count} for path, count in sources]
        return print_json({"collection": collection, "encoder": encoder, "indexed": not behind, "sources": rows})
    for path, count in sources:
        console().print(f"{count:>6}  {one_line(path, 4096)}", markup=False, soft_wrap=True)
    total = sum(count for _, count in sources)
    say(f"{len(sources):,} sources, {total:,} passages, embedded with {one_line(encoder, 200)}")
    if behind:
        say("an ingest was cut short: its newest passages are not indexed yet; run it again")
    return None


@app.command("ui")
def ui_verb(
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            metavar="NAME",
            show_default="default, else the first there is",
            help="The collection.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; the page has no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Where to listen.")] = 7860,
) -> None:
    """Open the page: ask, see the evidence, add files. Ends with Ctrl-C.

    Example: step3 ui --collection encyclopaedia
    """
    from step3_rag.ingest import collection_folder
    from step3_rag.page import launch
    from step3_rag.uploads import collections

    folder = collection_folder(collection or "default")
    if collection is None and not (folder / "collection.db").exists():  # after `make step3` there is only its own
        folder = next((folder.with_name(name) for name in collections(folder.parent)), folder)
    launch(folder, host, port)


@app.command("demo")
def demo_verb(model: Model = None, json: Json = False) -> None:
    """Index a small encyclopaedia and ask it questions: what `make step3` runs.

    One is answered, one is put in other words first, one is declined.

    The first time takes a few minutes, for 2,651 articles have to be embedded.

    Example: step3 demo
    """
    from step3_rag.demo import perform
    from step3_rag.demo_collection import COLLECTION, ingest_demo
    from step3_rag.encoder import Encoder
    from step3_rag.ingest import collection_folder, progress_bar
    from step3_rag.resources import open_resources

    folder = collection_folder(COLLECTION)
    with progress_bar() as on_progress:
        report = ingest_demo(folder, Encoder(), on_progress)
    if not json:
        _show_report(report)
    with open_resources(folder, model=model, quiet=json) as resources:
        documents = perform(resources, quiet=json)
    if json:
        print_json(documents)
    else:
        say("")
        say("ask your own, on the page: make step3-ui")
        say(f'or here: .venv/bin/python -m step3_rag ask "…" --collection {COLLECTION}')


app.add_typer(asking)
app.add_typer(looking)
app.add_typer(measuring)


def main() -> None:
    """The program `step3`."""
    run(app)
