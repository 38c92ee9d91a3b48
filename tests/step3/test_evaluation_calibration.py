"""Thresholds: chosen on labelled cases that look like the app's, written so that load_thresholds reads them back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluation_world import collection
from fake_encoder import FakeEncoder

from shared.errors import UserError
from step3_rag.evaluation import calibration
from step3_rag.evaluation.calibration import Asked, Labelled, cases, grade, rows, write_thresholds
from step3_rag.evaluation.datasets import Dataset, Question, relevant, states
from step3_rag.graders import Case, Task, Thresholds, load_thresholds, overlap
from step3_rag.index import Index
from step3_rag.passages import Passage

FILLER = "The rain went on over the hills and nobody in the village spoke about it. " * 12
HEROES = {"Ann": "lamp", "Bodo": "wheel", "Carla": "kettle"}


def story(number: int) -> str:
    return "\n\n".join(f"Then {name} found the {thing} of town {number}. {FILLER}" for name, thing in HEROES.items())


FACTS = {f"train-{n:04}.md": f"# River {n}\n\nThe river number{n} flows past mill{n}. It is cold.\n" for n in range(6)}
STORIES = {f"story-{n:03}.txt": story(n) + "\n" for n in range(2)}
QUESTIONS = (
    *(Question(f"t{n}", f"Does the river number{n} flow?", ("yes",), f"train-{n:04}.md") for n in range(6)),
    *(
        Question(f"s{n}{name}", f"Who found the {thing} of town {n}?", (name,), f"story-{n:03}.txt")
        for n in range(2)
        for name, thing in HEROES.items()
    ),
)
DATASET = Dataset("calibration", FACTS | STORIES, QUESTIONS)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with collection(DATASET, tmp_path_factory.mktemp("home")) as index:
        yield index


@pytest.fixture(scope="module")
def made(index: Index) -> dict[Asked, list[Labelled]]:
    return cases(DATASET, index, FakeEncoder(max_tokens=256), per_kind=6)


def test_every_task_has_as_many_yes_as_no(made: dict[Asked, list[Labelled]]) -> None:
    assert list(made) == ["relevant", "answerable", "grounded", "answers"]
    for labelled in made.values():
        assert len(labelled) >= 8
        assert sum(label for _, label in labelled) * 2 == len(labelled)


def question_of(case: Case) -> Question:
    return next(question for question in QUESTIONS if question.text == case.question)


def test_labels_say_what_is_so(made: dict[Asked, list[Labelled]]) -> None:
    def is_relevant(case: Case) -> bool:
        question = question_of(case)
        (source,) = [name for name, text in DATASET.documents.items() if case.passage in text]
        return relevant(question, Passage("", source, (), 0, 0, case.passage))

    for case, label in made["relevant"] + made["answerable"]:
        assert is_relevant(case) == label
        assert not case.answer
    for case, label in made["grounded"]:
        right = question_of(case).answers if question_of(case).source.startswith("story") else (case.answer,)
        assert (case.answer in right and states(case.passage, case.answer)) == label
    for case, label in made["answers"]:
        assert states(case.passage, case.answer)
        assert (case.answer in question_of(case).answers) == label


def test_a_no_for_answerable_is_of_the_same_story(made: dict[Asked, list[Labelled]]) -> None:
    for case, label in made["answerable"]:
        if not label and question_of(case).source.startswith("story"):
            assert case.passage in DATASET.documents[question_of(case).source]


def test_a_question_whose_passage_is_not_found_gives_no_case(index: Index) -> None:
    lost = (Question("x", "Does the river number3 flow?", ("yes",), "elsewhere.md"),)
    with pytest.raises(UserError, match="no cases to calibrate relevant and answerable and grounded and answers"):
        cases(Dataset("lost", {}, lost), index, FakeEncoder(max_tokens=256))


def test_a_grader_is_calibrated_on_what_it_says(made: dict[Asked, list[Labelled]]) -> None:
    asked: list[Task] = []

    def right(task: Task, given: list[Case]) -> list[float]:  # a fake grader that knows the labels of `relevant`
        asked.append(task)
        return [0.8 if dict(made["relevant"])[case] else 0.3 for case in given]

    advanced: list[int] = []
    found = grade(right, "relevant", made["relevant"], lambda: advanced.append(1))  # type: ignore[arg-type]
    assert found.threshold == pytest.approx(0.55)
    assert (found.balanced_accuracy, found.auroc.value) == (1.0, 1.0)
    assert len(advanced) == len(asked) == len(made["relevant"])
    assert set(asked) == {"relevant"}


def test_answers_are_judged_by_their_quotes(made: dict[Asked, list[Labelled]]) -> None:
    seen: list[Case] = []

    def spy(task: Task, given: list[Case]) -> list[float]:
        assert task == "answerable"
        seen.extend(given)
        return [0.5] * len(given)

    grade(spy, "answers", made["answers"], lambda: None)  # type: ignore[arg-type]
    assert [case.passage for case in seen] == [case.passage for case, _ in made["answers"]]


def test_thresholds_are_written_for_load_thresholds_and_others_are_kept(
    made: dict[Asked, list[Labelled]], tmp_path: Path
) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text("[llm]\nrelevant = 0.1\nanswerable = 0.2\ngrounded = 0.3\nanswers = 0.4\n[overlap]\nrelevant = 9\n")
    chosen = {"overlap": {task: grade(overlap, task, labelled, lambda: None) for task, labelled in made.items()}}
    write_thresholds(path, chosen)
    assert load_thresholds("llm", path) == Thresholds(0.1, 0.2, 0.3, 0.4)
    loaded = load_thresholds("overlap", path)
    for task, found in chosen["overlap"].items():
        assert getattr(loaded, task) == pytest.approx(found.threshold, rel=1e-3)
    before = path.read_text()
    write_thresholds(path, chosen)
    assert path.read_text() == before
    assert [row["name"] for row in rows(chosen)] == [f"overlap: {task}" for task in chosen["overlap"]]


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text("not = = TOML")
    with pytest.raises(UserError, match="restore it from git"):
        write_thresholds(path, {})
    assert path.read_text() == "not = = TOML"


def test_the_written_file_says_what_it_is(tmp_path: Path) -> None:
    write_thresholds(tmp_path / "new.toml", {})
    assert (tmp_path / "new.toml").read_text().startswith(calibration.HEADER)
