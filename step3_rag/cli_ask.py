"""The verbs that answer: ask and chat."""

from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import UserError
from shared.terminal import print_json, say
from step3_rag.cli_search import Collection, Json

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from step3_rag.reflection import Reflection, Resources

asking = typer.Typer()

Grader = Annotated[
    str | None,
    typer.Option("--grader", "-g", metavar="NAME", show_default="the one that measured best",
                 help="Who judges passages and answers: llm, adapter, embedding or overlap."),
]  # fmt: skip
K = Annotated[int, typer.Option("--k", "-k", min=1, help="Passages to find, and at most to answer from.")]
Steps = Annotated[bool, typer.Option("--trace", "--explain", help="Show every decision on the way.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", show_default="$MODEL, else smollm2-135m",
                 help="Model to load, or a name that OPENAI_BASE_URL serves."),
]  # fmt: skip


@asking.command()
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)],
    trace: Steps = False,
    grader: Grader = None,
    k: K = 5,
    model: Model = None,
    collection: Collection = "default",
    json: Json = False,
) -> None:
    """Answer QUESTION from a collection, with citations, or say why not.

    Example: step3 ask "who wrote the first compiler" --trace
    """
    from step3_rag.answers import Answer, Step
    from step3_rag.reflection import run
    from step3_rag.trace import Trace, document

    if not question.strip():
        raise UserError("the question is empty")
    settings = _settings(grader, k, model)
    steps: list[Step] = []
    with _opened(collection, model, settings, quiet=json) as resources:
        show = Trace(steps=trace)
        if not json:
            show.begin()
        for event in run(question, resources, settings):
            if not json:
                show(event)
            elif isinstance(event, Step):
                steps.append(event)
            elif isinstance(event, Answer):
                print_json(document(event, steps))


@asking.command()
def chat(
    trace: Steps = False,
    grader: Grader = None,
    k: K = 5,
    model: Model = None,
    collection: Collection = "default",
    json: Json = False,
) -> None:
    """Talk about a collection; /help lists the commands, Ctrl-C stops an answer.

    Example: step3 chat --collection encyclopaedia
    """
    from step3_rag.chat import converse
    from step3_rag.trace import document

    settings = _settings(grader, k, model)
    with _opened(collection, model, settings, quiet=json) as resources:
        if not json:
            say("/help lists the commands")
        talk = converse(resources, settings, steps=trace, quiet=json)
    if json:
        print_json([document(answer, steps) for answer, steps in zip(talk.answers, talk.steps, strict=True)])


def _settings(grader: str | None, k: int, model: str | None) -> "Reflection":
    from step3_rag.reflection import Reflection
    from step3_rag.resources import default_grader

    return Reflection(k=k, grader=grader or default_grader(model))


def _opened(
    collection: str, model: str | None, settings: "Reflection", *, quiet: bool
) -> "AbstractContextManager[Resources]":
    from step3_rag.ingest import collection_folder
    from step3_rag.resources import open_resources

    graders = [settings.grader] if settings.grader else []
    return open_resources(collection_folder(collection), model=model, graders=graders, quiet=quiet)
