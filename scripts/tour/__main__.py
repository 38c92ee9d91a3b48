"""`make tour`: all five steps in one run, told on the terminal, kept as one page.

    python -m scripts.tour
    python -m scripts.tour --only tools

Leaves out/tour/report.html (the page), out/tour/tour.json (the findings) and a folder per chapter. A chapter that fails
is reported and the tour goes on. Stopped with Ctrl-C, the same command goes on with the chapters that are missing or
failed; a tour that is complete starts over.
"""

import datetime
import json
import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from scripts.tour import documents, look, service, tools, training
from scripts.tour.findings import Block, Chapter, Found, Stage, from_json
from scripts.tour.narrator import Narrator
from shared.errors import UserError
from shared.files import atomic_write
from shared.terminal import console, print_json, run

CHAPTERS = (look.CHAPTER, tools.CHAPTER, documents.CHAPTER, training.CHAPTER, service.CHAPTER)
FOLDER = Path("out/tour")


def tour(
    chapters: Sequence[Chapter], folder: Path, narrator: Narrator, model: str, only: str | None = None
) -> list[Found]:
    """Run what is to be run, write findings and page after each chapter; return what was run, in order.

    only: this chapter, whatever there is of it; else all, or those that an interrupted tour lacks.
    Raises UserError for an unknown `only` and a folder that cannot be written.
    """
    names = [chapter.name for chapter in chapters]
    if only is not None and only not in names:
        raise UserError(f"--only {only!r}: use one of {', '.join(names)}")
    found = {name: f for name, f in read_findings(folder / "tour.json").items() if name in names and f.model == model}
    todo = [only] if only else [name for name in names if name not in found or found[name].error]
    if not todo:  # complete: once more from the beginning
        found, todo = {}, names
    for number, chapter in enumerate(chapters, 1):
        if chapter.name not in todo:
            continue
        if chapter.name in found and not found[chapter.name].error:  # to be repeated, not to be continued
            shutil.rmtree(folder / chapter.name, ignore_errors=True)
        narrator.begin(chapter, number, len(chapters))
        found[chapter.name] = perform(chapter, folder, narrator, model)
        narrator.end(found[chapter.name])
        _write(chapters, folder, found)
    return [found[name] for name in names if name in todo]


def perform(chapter: Chapter, folder: Path, narrator: Narrator, model: str) -> Found:
    """Run one chapter; its failure is a finding too. An error that nobody foresaw leaves a traceback in its folder."""
    found = Found(chapter.name, model, _made())

    def show(block: Block) -> None:
        found.blocks.append(block)
        narrator.block(block)

    begun = time.perf_counter()
    try:
        chapter.perform(Stage(folder, chapter.name, model, show, narrator.remark))
    except UserError as error:
        found.error = str(error)
    except Exception as error:
        log = folder / chapter.name / "error.txt"
        atomic_write(log, traceback.format_exc())
        found.error = f"{type(error).__name__}: {error} (traceback: {log})"
    found.seconds = time.perf_counter() - begun
    return found


def read_findings(path: Path) -> dict[str, Found]:
    """The findings of an earlier tour, by chapter; none when there is no such file, or it is not one of ours."""
    try:
        documents = json.loads(path.read_text(encoding="utf-8"))
        return {document["name"]: from_json(document) for document in documents}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(chapters: Sequence[Chapter], folder: Path, found: dict[str, Found]) -> None:
    from scripts.tour.report import render

    ordered = [found[chapter.name].as_json() for chapter in chapters if chapter.name in found]
    try:
        atomic_write(folder / "tour.json", json.dumps(ordered, ensure_ascii=False, indent=1) + "\n")
        atomic_write(folder / "report.html", render(chapters, found))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder with --output"
        ) from None


def _made() -> dict[str, str]:
    from shared.provenance import git_revision, hardware

    machine = hardware()
    size = f"{machine['cores']} cores, {machine['memory_gib']} GiB"
    return {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "revision": git_revision(),
        "machine": f"{machine['cpu']}, {size}, {machine['instruction_set']}",
    }


def main(
    only: Annotated[
        str | None,
        typer.Option(metavar="CHAPTER", show_default="all that are missing",
                     help="Repeat one: look, tools, documents, training or service."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Page, findings, work files.")] = FOLDER,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")] = False,
) -> None:  # fmt: skip
    """Go through all five steps with the embedded model, in under ten minutes, and write one page about it.

    Example: python -m scripts.tour

    Example: python -m scripts.tour --only training
    """
    from rich.console import Console

    from shared.config import settings

    if settings().openai_base_url:
        raise UserError("the tour serves its own model, and says so of every figure: unset OPENAI_BASE_URL")
    narrator = Narrator(Console(quiet=True) if json else console(), console(stderr=True))
    ran = tour(CHAPTERS, output, narrator, settings().model, only)
    if json:
        print_json([found.as_json() for found in ran])
    else:
        seconds = sum(found.seconds for found in ran)
        console().print(f"\n{len(ran)} chapters in {seconds / 60:.1f} minutes", markup=False)
        console().print(f"report: {output / 'report.html'}  (open it in a browser)", markup=False, soft_wrap=True)
    if failed := [found.name for found in ran if found.error]:
        again = " and ".join(failed)
        raise UserError(f"failed: {again}; the report says why, and the same command tries again", exit_code=1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
