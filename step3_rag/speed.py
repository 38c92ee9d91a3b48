"""How fast ingest and search are, and how a collection grows: ratios to the parts they stand on, in one run.

    pip install -e 'step3_rag[speed]'                  # the LangChain way to compare with, and the plot
    python -m step3_rag.speed -o step3_rag/results     # run it on an idle machine

Ingest: the articles of the demo collection, by `ingest` (read, cut, embed, store, both indexes), against
`langchain_chroma.Chroma.from_documents` on the same chunks, ready cut, with the same model in LangChain's default
Hugging Face embeddings. They take turns; the vectors of both are compared.

Search: real questions against the cost of embedding the question, in a process of its own for each size of collection.
Beyond the real chunks (about 2,900) a collection is made up: texts of sentences drawn from different real chunks, each
with the vector of a real chunk turned by noise (cosine about 0.86 to it), so that both indexes have near neighbours and
frequent words in plausible numbers. Nothing is said about the quality of what is found there.
"""

import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from shared.errors import UserError
from shared.results import Row, format_metric, metric, write_results
from shared.terminal import PALETTE, console, run, say
from step3_rag.demo_collection import ARTIFACT, write_articles
from step3_rag.encoder import Encoder, TextEncoder
from step3_rag.index import Index, latest_generation, publish
from step3_rag.ingest import ingest
from step3_rag.passages import Passage
from step3_rag.rerank import late_interaction
from step3_rag.retrieval import DEPTH, search
from step3_rag.store import Reading, Store

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
QUESTIONS = 300
NOISE = 0.6  # length of the noise that is added to a unit vector: cosine 1 / sqrt(1 + 0.36) = 0.86
SENTENCES = 4  # of a text that is made up; BoolQ's passages have 4.2 on average
PER_SOURCE = 100  # chunks of a source that is made up
EXTRAS = ("langchain_chroma", "langchain_community", "sentence_transformers", "matplotlib")


# -- ingest ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IngestTimes:
    """Seconds of each repetition, and by how much the two sets of vectors differ at most (1 - cosine)."""

    chunks: int
    ours: list[float]
    langchain: list[float]
    distance: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is: the median over repetitions, each of which ran both, one after the other."""
        return statistics.median(b / a for a, b in zip(self.ours, self.langchain, strict=True))


def compare_ingest(
    documents: Path, encoder: TextEncoder, embeddings: Any, folder: Path, repetitions: int
) -> IngestTimes:
    """Ingest `documents` both ways, in turns. embeddings: LangChain's, of the same model; both are warm already.

    The first repetition's collection of ours stays in folder/ours-0.
    """
    ours, langchain, distance = [], [], 0.0
    for repetition in range(repetitions):
        own = folder / f"ours-{repetition}"
        begun = time.perf_counter()
        ingest([documents], own, encoder)
        ours.append(time.perf_counter() - begun)
        store = Store(own)
        passages, vectors = list(store.all_passages()), store.vectors(store.ids())
        store.close()
        seconds, theirs = langchain_ingest(passages, embeddings, folder / f"langchain-{repetition}")
        langchain.append(seconds)
        distance = max(1 - _cosine(vectors[name], theirs[name]) for name in vectors)
    return IngestTimes(len(vectors), ours, langchain, distance)


def langchain_ingest(
    passages: Sequence[Passage], embeddings: Any, folder: Path
) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Return the seconds of Chroma.from_documents, and the vectors by id, which are read after the clock stopped."""
    from langchain_chroma import Chroma  # type: ignore[import-not-found,unused-ignore]
    from langchain_core.documents import Document  # type: ignore[import-not-found,unused-ignore]

    documents = [Document(page_content=p.indexed_text, metadata={"source": p.source}) for p in passages]
    begun = time.perf_counter()
    store = Chroma.from_documents(documents, embeddings, ids=[p.id for p in passages], persist_directory=str(folder))
    seconds = time.perf_counter() - begun
    found = store.get(include=["embeddings"])
    return seconds, {name: np.asarray(v, np.float32) for name, v in zip(found["ids"], found["embeddings"], strict=True)}


def default_embeddings() -> Any:
    """LangChain's Hugging Face embeddings, all settings as they come, with the model that we use."""
    import warnings

    from shared import artifacts

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # langchain-huggingface, which its deprecation names instead, wants a huggingface-hub below 2; the code is the
        # same.
        from langchain_community.embeddings import HuggingFaceEmbeddings  # type: ignore[import-not-found,unused-ignore]

        return HuggingFaceEmbeddings(model_name=str(artifacts.fetch("minilm-l6-v2")))


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# -- growth ------------------------------------------------------------------------------------------------------------


def enlarge(store: Store, size: int, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Bring a collection to `size` chunks: first the real texts with their vectors, then made-up ones.

    The same number always gives the same chunk.
    """
    sentences = [sentence for text in texts for sentence in text.split(". ") if sentence.strip()]
    for first in range(store.count(), size, PER_SOURCE):
        source, passages, rows, at = f"/made/{first:08}.txt", [], [], 0
        for number in range(first, min(size, first + PER_SOURCE)):
            text, row = texts[number % len(texts)], vectors[number % len(texts)]
            if number >= len(texts):
                chance = np.random.default_rng(number)
                text = ". ".join(sentences[i] for i in chance.integers(len(sentences), size=SENTENCES))
                row = row + chance.standard_normal(row.size, np.float32) * (NOISE / math.sqrt(row.size))
            passages.append(Passage(f"{number:032x}", source, (), at, at + len(text), text))
            rows.append(row / np.linalg.norm(row))
            at += len(text) + 2
        store.write([Reading(source, "made", "\n\n".join(p.text for p in passages), passages, np.array(rows))])


def search_times(folder: Path, questions: Sequence[str], load: Callable[[], TextEncoder]) -> dict[str, float]:
    """Measure a collection in this process, which must be a fresh one: memory first, then the model and the clock.

    memory: MB that became resident as the indexes were opened and used. embed, search: milliseconds per question,
    search includes the embedding; p50 and p95 over the questions. second look: search with late interaction on top, of
    every sixth question.
    """
    import bm25s  # type: ignore[import-untyped]  # noqa: F401  (their own memory is not the index's)
    import chromadb  # noqa: F401

    store = Store(folder)
    ids = store.ids()
    store.close()
    before = resident_mb()
    index = Index(folder)
    for number, question in enumerate(questions):
        name = ids[number * 7919 % len(ids)]  # all over the graph
        index.dense(index.store.vectors([name])[name], DEPTH)
        index.lexical(question, DEPTH)
    memory = resident_mb() - before

    encoder = load()
    for question in questions[:10]:
        search(question, 10, index, encoder)

    def embed(question: str) -> None:
        encoder.encode([question])

    def find(question: str) -> None:
        search(question, 10, index, encoder)

    late = late_interaction(encoder)

    def find_and_look_again(question: str) -> None:
        search(question, 10, index, encoder, reranker=late)

    taken: dict[Callable[[str], None], list[float]] = {embed: [], find: [], find_and_look_again: []}

    def measure(work: Callable[[str], None], question: str) -> None:
        begun = time.perf_counter()
        work(question)
        taken[work].append(1000 * (time.perf_counter() - begun))

    for number, question in enumerate(questions):
        for work in (embed, find) if number % 2 else (find, embed):  # neither always finds the caches warm
            measure(work, question)
    for question in questions[::6]:
        measure(find_and_look_again, question)
    index.close()
    found = {"memory": memory}
    for name, work in (("embed", embed), ("search", find), ("second look", find_and_look_again)):
        found |= {f"{name} p50": statistics.median(taken[work]), f"{name} p95": _p95(taken[work])}
    return found


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def resident_mb() -> float:
    """Resident memory of this process in MB, memory-mapped pages included; where /proc is missing, its peak so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmRSS:")[1].split()[0]) / 1e3
    except OSError:
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def disk_mb(folder: Path) -> dict[str, float]:
    """Return what a collection takes on disk, in MB: the database, the vector index, the word index."""
    latest = latest_generation(folder)
    assert latest is not None
    parts = {"database": [folder / "collection.db"]}
    parts |= {name: [p for p in (latest[1] / sub).rglob("*") if p.is_file()]
              for name, sub in (("vector index", "chroma"), ("word index", "bm25"))}  # fmt: skip
    return {name: sum(path.stat().st_size for path in paths) / 1e6 for name, paths in parts.items()}


def grow(
    real: Path, folder: Path, sizes: Sequence[int], questions: Sequence[str], load: Callable[[], TextEncoder]
) -> list[Row]:
    """Make a collection of each size out of the real one (`real`) and measure it; one row per size."""
    source = Store(real)
    texts = [passage.indexed_text for passage in source.all_passages()]
    found = source.vectors(source.ids())
    vectors = np.stack([found[name] for name in source.ids()])
    rows: list[Row] = []
    for size in sizes:
        say(f"search at {size:,} chunks")
        store = Store(folder, encoder=source.encoder)
        enlarge(store, size, texts, vectors)
        begun = time.perf_counter()
        publish(store, folder, lambda *_: None)
        seconds = time.perf_counter() - begun
        store.close()
        # A fresh process: memory that was once given to this one says nothing about the index.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured = pool.submit(search_times, folder, questions, load).result()
        rows.append(_row(size, measured, disk_mb(folder), seconds))
    source.close()
    return rows


def _row(size: int, measured: dict[str, float], disk: dict[str, float], seconds: float) -> Row:
    metrics = {name: metric(measured[name], unit="ms") for name in measured if name != "memory"}
    metrics["search / embed p50"] = metric(measured["search p50"] / measured["embed p50"], unit="×")
    metrics["search / embed p95"] = metric(measured["search p95"] / measured["embed p95"], unit="×")
    metrics["memory"] = metric(measured["memory"], unit="MB")
    metrics |= {name: metric(value, unit="MB") for name, value in disk.items()}
    metrics["indexing"] = metric(seconds, unit="s")
    return {"name": f"{size:,} chunks", "metrics": metrics}


def plot(rows: Sequence[Row], sizes: Sequence[int], path: Path) -> None:
    """Draw the growth curves: megabytes and milliseconds over chunks, all axes logarithmic where growth is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    lines = [(left, "database", "blue"), (left, "vector index", "vermilion"), (left, "word index", "green"),
             (left, "memory", "grey"), (right, "search p50", "blue"), (right, "search p95", "sky"),
             (right, "embed p50", "orange")]  # fmt: skip
    for axes, name, colour in lines:
        values = [row["metrics"][name]["value"] for row in rows]
        axes.plot(sizes, values, marker="o", color=PALETTE[colour], label=name)
    left.set(xscale="log", yscale="log", xlabel="chunks", ylabel="MB")
    right.set(xscale="log", xlabel="chunks", ylabel="ms per question", ylim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


# -- the program -------------------------------------------------------------------------------------------------------


def missing() -> list[str]:
    """The packages of the extra `speed` that are not installed."""
    return [name for name in EXTRAS if importlib.util.find_spec(name) is None]


def main(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the results go.")],
    repetitions: Annotated[int, typer.Option(min=1, help="Ingests of each kind.")] = 3,
    largest: Annotated[int, typer.Option(min=1_000, help="Chunks of the largest collection.")] = SIZES[-1],
) -> None:
    """Measure ingest and search: speed_ingest.json, speed.json and speed.png."""
    from shared import artifacts

    if absent := missing():
        raise UserError(f"not installed: {', '.join(absent)}; run: pip install -e 'step3_rag[speed]'")
    sizes = [size for size in SIZES if size <= largest]
    with tempfile.TemporaryDirectory(prefix="step3-speed-") as scratch:
        folder = Path(scratch)
        documents = write_articles(folder / "demo")
        records = (artifacts.fetch(ARTIFACT) / "dev.jsonl").read_text(encoding="utf-8").splitlines()
        questions = [json.loads(record)["question"] for record in records[:: len(records) // QUESTIONS]][:QUESTIONS]
        encoder, embeddings = Encoder(), default_embeddings()
        encoder.encode(questions[:64])
        embeddings.embed_documents(questions[:64])
        say("ingest, both ways")
        times = compare_ingest(documents, encoder, embeddings, folder, repetitions)
        rows = grow(folder / "ours-0", folder / "grown", sizes, questions, Encoder)

    command = f"python -m step3_rag.speed -o {output}"
    packages = ("torch", "chromadb", "bm25s", "langchain-chroma", "langchain-community", "sentence-transformers")
    compared = ingest_rows(times)
    notes = (
        f"{times.chunks:,} chunks, {repetitions} repetitions in turns, medians; ours also reads, cuts and makes BM25"
    )
    write_results(
        output / "speed_ingest.json", command=command, rows=compared, n=repetitions, notes=notes, packages=packages
    )
    notes = "chunks beyond the real ones are made up: recombined sentences, real vectors turned by noise; see speed.py"
    write_results(
        output / "speed.json", command=command, rows=rows, n=len(questions), notes=notes, packages=packages[:3]
    )
    plot(rows, sizes, output / "speed.png")
    for row in [*compared, *rows]:
        cells = ", ".join(f"{name} {format_metric(value)}" for name, value in row["metrics"].items())
        console().print(f"{row['name']}: {cells}", markup=False, soft_wrap=True)


def ingest_rows(times: IngestTimes) -> list[Row]:
    """Return the comparison as rows; the ratio and the largest distance between vectors stand in ours."""
    rows: list[Row] = []
    for name, seconds in (("step 3's ingest", times.ours), ("Chroma.from_documents", times.langchain)):
        middle = statistics.median(seconds)
        metrics = {"seconds": metric(middle, unit="s"), "chunks/s": metric(times.chunks / middle)}
        rows.append({"name": name, "metrics": metrics})
    rows[0]["metrics"]["times as fast"] = metric(times.ratio, unit="×")
    rows[0]["metrics"]["largest 1 - cosine"] = metric(times.distance)
    return rows


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
