"""The four evaluations from data set to table, as `eval` runs them; what is measured and how is in the modules below.

Everything is kept question by question in a folder, so each of them continues where it was stopped, and a larger limit
only asks what is new.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from shared.config import settings
from shared.errors import UserError
from shared.results import Row
from shared.terminal import say
from step3_rag.encoder import Encoder, TextEncoder
from step3_rag.evaluation import abstention_eval, answering_eval, calibration, retrieval_eval, tables
from step3_rag.evaluation.datasets import Dataset, build_collection, load
from step3_rag.evaluation.routing_eval import routing_rows
from step3_rag.graders import GRADERS, THRESHOLDS, Calibration
from step3_rag.index import Index
from step3_rag.ingest import progress_bar
from step3_rag.reflection import Reflection
from step3_rag.resources import ADAPTER_FOLDER, Resources, default_grader, open_resources
from step3_rag.routing import Router

# Questions of the ablation: so many that everything together takes under an hour on two idle cores with the embedded
# model. They are the first of a fixed order, so a larger limit continues.
SIZES = {"boolq": 40, "narrativeqa": 20, "unsolvable": 30}
RETRIEVED_FROM = ("boolq", "narrativeqa")
# Seconds on two such cores, for the estimate: one search, one passage embedded.
SEARCH, EMBED = 0.008, 0.02

# (what, of how many) → a bar that is advanced by calling what it yields
Bar = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Table:
    """name: of its results file. n: questions per row. notes: what they are."""

    name: str
    rows: list[Row]
    n: int
    notes: str


@contextmanager
def collection(dataset: Dataset, encoder: TextEncoder) -> Iterator[Index]:
    """Yield the index over a data set's documents; they are read and embedded the first time."""
    with progress_bar() as on_progress:
        index = build_collection(dataset, encoder, on_progress)
    try:
        yield index
    finally:
        index.close()


@contextmanager
def resources(dataset: Dataset, graders: str | None, model: str | None, *, quiet: bool) -> Iterator[Resources]:
    """Yield what answering from a data set's documents needs. graders: names with commas; None for all there are.

    Raises UserError as open_resources does.
    """
    names = _graders(graders, model)
    with collection(dataset, Encoder()) as index:
        folder = index.folder
    with open_resources(folder, model=model, graders=names, quiet=quiet) as opened:
        yield opened


def _graders(wanted: str | None, model: str | None = None) -> list[str]:
    """The graders to load: the default is always among them. An adapter that is not there is left out, and said."""
    if wanted is not None:
        names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
        if not names:
            raise UserError(f"--graders {wanted!r} names nothing: use {', '.join(GRADERS)}")
        return list(dict.fromkeys([*names, default_grader(model)]))
    if settings().openai_base_url:
        say("the grader `adapter` is left out: name it in --graders if the endpoint serves it")
    elif not (ADAPTER_FOLDER / "adapter_config.json").exists():
        say(f"the grader `adapter` is left out: there is none in {ADAPTER_FOLDER}")
    else:
        return list(GRADERS)
    return [name for name in GRADERS if name != "adapter"]


def retrieval(encoder: TextEncoder, limit: int | None, folder: Path, bar: Bar) -> list[Table]:
    """Measure the retrievers on BoolQ's and on NarrativeQA's questions. Raises what measure_retrieval raises."""
    made = []
    for name in RETRIEVED_FROM:
        dataset = load(name)
        with collection(dataset, encoder) as index:
            counts = retrieval_eval.with_an_answer(dataset, index)
            questions = [question for question in dataset.questions if question.id in counts][:limit]
            with bar(f"retrieval, {name}", len(retrieval_eval.arms(encoder)) * len(questions)) as advance:
                found = retrieval_eval.measure_retrieval(dataset, questions, counts, index, encoder, folder, advance)
            notes = (
                f"{index.store.count():,} passages of {len(dataset.documents):,} documents; {len(counts):,} of "
                f"{len(dataset.questions):,} questions have a passage that can be told to answer them; Δ is to the "
                "better of dense and lexical"
            )
        made.append(Table(f"retrieval_{name}", tables.retrieval_rows(found), len(questions), notes))
    return made


def answers(opened: Resources, limit: int | None, folder: Path, bar: Bar) -> list[Table]:
    """Measure the ablation on the three data sets. Raises what measure_answers raises."""
    made = []
    for name, size in SIZES.items():
        dataset = load(name)
        questions = dataset.questions[: limit or size]
        arms = answering_eval.arms_for(dataset, list(opened.graders))
        with collection(dataset, opened.encoder) as index:
            here = replace(opened, index=index)
            if answering_eval.estimate(dataset, questions, here, arms, folder):
                answering_eval.warm_up(load("calibration").questions[0], here, arms)
            with bar(f"answers, {name}", len(arms) * len(questions)) as advance:
                found = answering_eval.measure_answers(dataset, questions, here, arms, folder, advance)
        notes = (
            f"the first {len(questions)} of {len(dataset.questions):,} questions in a fixed order; k = {Reflection().k}"
        )
        made.append(Table(f"answers_{name}", tables.answer_rows(questions, found), len(questions), notes))
    return made


def abstention(opened: Resources, limit: int | None, folder: Path, bar: Bar) -> list[Table]:
    """Measure the graders on unsolvable_questions. Raises what measure_abstention raises."""
    dataset = load("unsolvable")
    questions = dataset.questions[:limit]
    scorers = abstention_eval.scorers(opened.graders, opened.encoder)
    with bar("abstention", len(scorers) * len(questions)) as advance:
        found = abstention_eval.measure_abstention(dataset, questions, opened, folder, advance)
    thresholds = {name: threshold for name, (_, threshold) in scorers.items()}
    notes = "each question with its own passage; thresholds from the calibration split"
    return [Table("abstention", tables.abstention_rows(questions, found, thresholds), len(questions), notes)]


def routing(encoder: TextEncoder, limit: int | None) -> list[Table]:
    """Measure the router. Raises what routing_rows raises."""
    questions = {name: load(name).questions[:limit] for name in SIZES}
    rows = routing_rows(Router(), encoder, questions)
    count = sum(int(row["metrics"]["questions"]["value"] or 0) for row in rows)
    return [Table("routing", rows, count, "rows: where a question belongs; →: where it went")]


def calibrate(opened: Resources, path: Path | None, bar: Bar) -> list[Table]:
    """Choose the thresholds of the graders that are loaded and write them to `path`, THRESHOLDS if None."""
    cases = calibration.cases(load("calibration"), opened.index, opened.encoder)
    chosen: dict[str, dict[calibration.Asked, Calibration]] = {name: {} for name in opened.graders}
    for name, grader in opened.graders.items():
        for task, labelled in cases.items():
            with bar(f"{name}: {task}", len(labelled)) as advance:
                chosen[name][task] = calibration.grade(grader, task, labelled, advance)
    calibration.write_thresholds(path or THRESHOLDS, chosen)
    count = sum(len(labelled) for labelled in cases.values())
    notes = "balanced accuracy on the cases that the threshold was chosen on"
    return [Table("calibration", calibration.rows(chosen), count, notes)]


def retrieval_seconds(limit: int | None) -> float:
    """Return about how long `retrieval` takes on two idle cores when nothing is there yet, indexing included."""
    seconds = 0.0
    for name in RETRIEVED_FROM:
        dataset = load(name)
        count = min(limit or len(dataset.questions), len(dataset.questions))
        # Every passage is embedded twice: for the index, and token by token for late interaction.
        seconds += 5 * count * SEARCH + 2 * EMBED * len(dataset.documents)
    return seconds


def answers_seconds(opened: Resources, limit: int | None, folder: Path) -> float:
    """Return about how long `answers` takes on two idle cores; what is in `folder` already is not counted."""
    seconds = 0.0
    for name, size in SIZES.items():
        dataset = load(name)
        arms = answering_eval.arms_for(dataset, list(opened.graders))
        seconds += answering_eval.estimate(dataset, dataset.questions[: limit or size], opened, arms, folder)
    return seconds


def abstention_seconds(opened: Resources, limit: int | None) -> float:
    """Return about how long `abstention` takes on two idle cores when nothing is there yet."""
    dataset = load("unsolvable")
    read = sum(map(opened.model.count, dataset.documents.values())) / len(dataset.documents) + 60
    asked = sum(name in answering_eval.MODELS for name in opened.graders)
    return asked * len(dataset.questions[:limit]) * read / answering_eval.READS
