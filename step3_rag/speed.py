"""How fast ingest and search are: ratios to the parts they stand on, in one run.

    .venv/bin/uv pip install -c requirements.lock -e 'step3_rag[speed]'     # LangChain's way to compare with, the plot
    .venv/bin/python -m step3_rag.speed -o step3_rag/results                # run it on an idle machine

Ingest: the articles of the demo collection, by `ingest` (read, cut, embed, store, both indexes), against
`langchain_chroma.Chroma.from_documents` on the same chunks, ready cut, with the same model in LangChain's default
Hugging Face embeddings. They take turns; the vectors of both are compared.

Search: real questions against the cost of embedding the question, as the collection grows (growth.py).
"""

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from shared.errors import UserError
from shared.results import Row, format_metric, metric, write_results
from shared.terminal import console, run, say
from step3_rag.demo_collection import ARTIFACT, write_articles
from step3_rag.encoder import Encoder, TextEncoder
from step3_rag.growth import SIZES, grow, plot
from step3_rag.ingest import ingest
from step3_rag.passages import Passage
from step3_rag.store import Store

QUESTIONS = 300
EXTRAS = ("langchain_chroma", "langchain_community", "sentence_transformers", "matplotlib")
INSTALL = ".venv/bin/uv pip install -c requirements.lock -e 'step3_rag[speed]'"


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
        raise UserError(f"not installed: {', '.join(absent)}; run: {INSTALL}")
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
    notes = "chunks beyond the real ones are made up: recombined sentences, real vectors turned by noise; see growth.py"
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
