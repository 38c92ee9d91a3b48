"""How a collection grows: search time, memory and disk from 1,000 to 100,000 chunks, beside embedding the question.

    python -m step3_rag.speed -o step3_rag/results     # measures this, too

Real questions, in a process of its own for each size of collection. Beyond the real chunks (about 2,900) a collection
is made up: texts of sentences drawn from different real chunks, each with the vector of a real chunk turned by noise
(cosine about 0.86 to it), so that both indexes have near neighbours and frequent words in plausible numbers. Nothing is
said about the quality of what is found there.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.results import Row, metric
from shared.terminal import PALETTE, say
from step3_rag.encoder import TextEncoder
from step3_rag.index import Index, latest_generation, publish
from step3_rag.passages import Passage
from step3_rag.rerank import late_interaction
from step3_rag.retrieval import DEPTH, search
from step3_rag.store import Reading, Store

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
NOISE = 0.6  # length of the noise that is added to a unit vector: cosine 1 / sqrt(1 + 0.36) = 0.86
SENTENCES = 4  # of a text that is made up; BoolQ's passages have 4.2 on average
PER_SOURCE = 100  # chunks of a source that is made up


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
