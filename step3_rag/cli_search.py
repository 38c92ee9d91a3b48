"""The verbs that look without answering: search and route."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, say

if TYPE_CHECKING:
    from step3_rag.encoder import TextEncoder
    from step3_rag.index import Index
    from step3_rag.passages import Hit, Passage
    from step3_rag.rerank import Reranker
    from step3_rag.routing import Route

looking = typer.Typer()

Collection = Annotated[str, typer.Option("--collection", "-c", metavar="NAME", help="The collection.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Explain = Annotated[bool, typer.Option("--explain", help="Show how it came about.")]

SHOWN = 300  # characters of a passage in a list of results


@looking.command("search")
def search_verb(
    query: Annotated[str, typer.Argument(metavar="QUERY", show_default=False)],
    explain: Explain = False,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Passages to show.")] = 5,
    retrievers: Annotated[
        str, typer.Option("--retrievers", metavar="A,B", help="dense, lexical, or both, fused.")
    ] = "dense,lexical",
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="late",
            help="Who looks twice at the best 20: late, llm, adapter, a cross-encoder's directory or Hub id; or none.",
        ),
    ] = None,
    mmr: Annotated[
        float | None,
        typer.Option(
            metavar="BALANCE",
            min=0.0,
            max=1.0,
            show_default="off",
            help="Avoid repetition: 1 looks at relevance alone, 0 at novelty alone; 0.7 is usual.",
        ),
    ] = None,
    collection: Collection = "default",
    json: Json = False,
) -> None:
    """Show the passages that are nearest to QUERY; no model answers.

    Example: step3 search "who wrote the first compiler" --explain
    """
    from step3_rag.ingest import collection_folder
    from step3_rag.retrieval import search

    names = list(dict.fromkeys(name.strip() for name in retrievers.split(",") if name.strip()))
    with _opened(collection_folder(collection), rerank, quiet=json) as (index, encoder, reranker):
        hits = search(query, k, index, encoder, retrievers=names, reranker=reranker, balance=mmr)
        # Each retriever's own list too: what it ranked high and the fusion did not is half of the explanation.
        lists = {name: search(query, k, index, encoder, retrievers=[name]) for name in names} if explain else {}
        if index.behind():
            say("an ingest was cut short: its newest passages are not found yet; run it again")
    if json:
        document: dict[str, Any] = {"query": query, "hits": [asdict(hit) for hit in hits]}
        if explain:
            document["lists"] = {name: [asdict(hit) for hit in found] for name, found in lists.items()}
        return print_json(document)
    if explain:
        _explain(lists, hits)
    _show(hits)
    return None


@contextmanager
def _opened(folder: Path, rerank: str | None, *, quiet: bool) -> "Iterator[tuple[Index, TextEncoder, Reranker | None]]":
    """Yield the collection's indexes, its encoder and the reranker; the chat model is loaded only if it reranks."""
    from step3_rag.encoder import Encoder
    from step3_rag.index import Index
    from step3_rag.rerank import DEFAULT_RERANKER, by_grader, load_reranker

    rerank = rerank or DEFAULT_RERANKER
    with ExitStack() as stack:
        if rerank in ("llm", "adapter"):
            from step3_rag.resources import open_resources

            loaded = stack.enter_context(open_resources(folder, graders=[rerank], quiet=quiet))
            yield loaded.index, loaded.encoder, by_grader(loaded.graders[rerank])
            return
        index = Index(folder)
        stack.callback(index.close)
        encoder = Encoder(index.store.encoder)
        yield index, encoder, None if rerank == "none" else load_reranker(rerank, encoder)


def _explain(lists: "Mapping[str, Sequence[Hit]]", hits: "Sequence[Hit]") -> None:
    """Print each list with ranks and scores, and for each result what its place is made of."""
    from step3_rag.fusion import K
    from step3_rag.passages import STAGES

    out = console()

    def line(rank: int, score: float, text: str, passage: "Passage") -> None:
        out.print(f"  {rank:>3}  {score:>8.4f}  {text}{_short(passage)}", markup=False, soft_wrap=True)

    for name, found in lists.items():
        out.print(f"[bold]{name}[/]  [dim]{STAGES[name]}[/]", soft_wrap=True)
        for rank, hit in enumerate(found, 1):
            line(rank, hit.score, "", hit.passage)
    for stage in ("fused", "reranked", "diverse"):
        seen = sorted((hit for hit in hits if stage in hit.ranks), key=lambda hit: hit.ranks[stage])
        if seen:
            out.print(f"[bold]{stage}[/]  [dim]{STAGES[stage]}[/]", soft_wrap=True)
        for hit in seen:
            terms = (f"1/({K}+{hit.ranks[name]}) {name}" for name in lists if name in hit.ranks)
            line(
                hit.ranks[stage], hit.scores[stage], f"= {' + '.join(terms)}  " if stage == "fused" else "", hit.passage
            )
    out.print()


def _show(hits: "Sequence[Hit]") -> None:
    from shared.foreign_text import one_line
    from step3_rag.trace import place

    out = console()
    if not hits:
        out.print("nothing was found")
    for rank, hit in enumerate(hits, 1):
        passage = hit.passage
        where = f"{rank}. {place(passage)}, {passage.start}–{passage.end}"
        out.print(where, markup=False, style="bold", soft_wrap=True)
        more = " …" if len(passage.text) > SHOWN else ""
        out.print(f"   {one_line(passage.text, SHOWN)}{more}", markup=False, soft_wrap=True)


def _short(passage: "Passage") -> str:
    """Where a passage stands, short enough for a list: the file's name and the titles."""
    from shared.foreign_text import one_line

    return one_line(" > ".join((Path(passage.source).name, *passage.heading_path)), SHOWN)


@looking.command("route")
def route_verb(
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", show_default=False)] = None,
    explain: Explain = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Print the threshold that fits the examples in routes.toml.")
    ] = False,
    json: Json = False,
) -> None:
    """Show which way QUESTION would go: to the collection, as small talk, or nowhere.

    Example: step3 route "thanks, that helped" --explain
    """
    if (question is None) == (not calibrate) or (question is not None and not question.strip()):
        raise UserError("give one question, or --calibrate")
    from step3_rag.encoder import Encoder
    from step3_rag.routing import Router

    router, encoder = Router(), Encoder()
    if question is None:
        threshold = router.calibrate(encoder)
        return print_json({"threshold": threshold}) if json else console().print(f"threshold = {threshold}")
    route = router.route(question, encoder)
    if json:
        return print_json({"question": question, "threshold": router.threshold, **asdict(route)})
    console().print(f"{route.name}  similarity {route.similarity:.3f}")
    return _explain_route(route, router.threshold) if explain else None


def _explain_route(route: "Route", threshold: float) -> None:
    out = console()
    for name, similarity in route.similarities.items():
        out.print(f"  {similarity:>6.3f}  {name}", style="bold" if name == route.name else None)
    out.print(f"[dim]another route than collection must be nearer by more than {threshold:g}[/]", soft_wrap=True)
    out.print("nearest examples:")
    for example, name, cosine in route.nearest:
        out.print(f"  {cosine:>6.3f}  {name}: {example}", markup=False, soft_wrap=True)
