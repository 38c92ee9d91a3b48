"""The evaluation's questions: balanced, always the same, and nothing in them that step 4's grader was trained on."""

import json
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder

from shared.config import settings
from shared.errors import UserError
from step3_rag.evaluation import datasets
from step3_rag.evaluation.datasets import GRADER_WORDS, Question, load, relevant, shuffled, states
from step3_rag.passages import Passage
from tests.shared.grader_world import STORIES, article, story, write_world


def long_row(title: str, number: int, words: int = GRADER_WORDS + 20) -> dict[str, str]:
    text = " ".join(f"word{number}x{n}" for n in range(words)) + "."
    return {"title": title, "question": f"is this passage number {number}", "passage": text}


LONG = [long_row(f"Long {n}", n) for n in range(5)]
SHORT_SIBLING = [long_row("Mixed", 10), long_row("Mixed", 11, words=GRADER_WORDS)]
OF_DEV = [long_row(article(0)[0]["title"], 12)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    paths = write_world(tmp_path / "artifacts", [*LONG, *SHORT_SIBLING, *OF_DEV])
    monkeypatch.setattr(datasets, "fetch", paths.__getitem__)
    return paths


@pytest.mark.real
def test_sizes_of_the_real_data() -> None:
    sizes = {name: (len(load(name).documents), len(load(name).questions)) for name in datasets.DATASETS}
    assert sizes == {
        "boolq": (2938, 3270),
        "narrativeqa": (35, 1041),
        "unsolvable": (299, 300),
        "calibration": (811, 1191),
    }


def test_calibration_takes_long_passages_of_articles_that_nothing_else_has(world: dict[str, Path]) -> None:
    documents = [text for text in load("calibration").documents.values() if text.startswith("# ")]
    assert sorted(text[2:].split("\n")[0] for text in documents) == [row["title"] for row in LONG]


def test_calibration_and_evaluation_share_no_document_and_no_question(world: dict[str, Path]) -> None:
    calibration = load("calibration")
    for name in ("boolq", "narrativeqa", "unsolvable"):
        other = load(name)
        assert not set(calibration.documents.values()) & set(other.documents.values())
        assert not {q.text for q in calibration.questions} & {q.text for q in other.questions}


def test_stories_are_split_in_three_by_their_text(world: dict[str, Path]) -> None:
    ours = {name: {f for f in load(name).documents if f.startswith("story")} for name in ("narrativeqa", "calibration")}
    assert not ours["narrativeqa"] & ours["calibration"]
    assert 0 < len(ours["narrativeqa"]) < STORIES - len(ours["calibration"])


def test_boolq_questions_are_asked_as_people_ask_and_answered_yes_or_no(world: dict[str, Path]) -> None:
    dataset = load("boolq")
    assert {q.answers for q in dataset.questions} == {("yes",)}  # the small world's are all true
    for question in dataset.questions:
        assert question.text[0].isupper()
        assert question.text.endswith("?")
        assert question.source in dataset.documents


def test_a_false_answer_is_no(world: dict[str, Path]) -> None:
    path = world["boolq"] / "dev.jsonl"
    row = json.loads(path.read_text().split("\n")[0]) | {"answer": "False"}
    path.write_text(json.dumps(row) + "\n")
    assert [q.answers for q in load("boolq").questions] == [("no",)]


def test_the_order_is_fixed_and_any_beginning_is_balanced() -> None:
    questions = [Question(str(n), "", (), "", answerable=n % 3 == 0) for n in range(30)]
    order = shuffled(questions)
    assert order == shuffled(questions)
    assert sorted(order, key=lambda q: int(q.id)) == questions
    assert [q.answerable for q in order[:20]] == [True, False] * 10
    assert [q.id for q in order[::2]][:10] != sorted((q.id for q in order[::2][:10]), key=int)


def test_what_is_relevant() -> None:
    question = Question("1", "Who?", ("The old king.",), "story-001.txt")

    def passage(source: str, text: str) -> Passage:
        return Passage("0" * 32, f"/somewhere/{source}", (), 0, len(text), text)

    assert relevant(question, passage("story-001.txt", "It was the OLD king, they say."))
    assert not relevant(question, passage("story-001.txt", "It was a king that was old."))
    assert not relevant(question, passage("story-002.txt", "It was the old king."))
    fact = Question("2", "Is it?", ("yes",), "boolq-0001.md")
    assert relevant(fact, passage("boolq-0001.md", "Whatever."))
    assert not states("anything", "?!")


def test_a_collection_is_made_once_and_again_when_a_document_changes(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    encoder = FakeEncoder(max_tokens=256)
    dataset = load("narrativeqa")
    first = datasets.build_collection(dataset, encoder, lambda *_: None)
    embedded = encoder.texts_encoded
    again = datasets.build_collection(dataset, encoder, lambda *_: None)
    assert encoder.texts_encoded == embedded > 0
    assert {Path(path).name for path in again.store.digests()} == set(dataset.documents)
    text = first.store.source_text(next(iter(first.store.digests())))
    assert text in dataset.documents.values()
    changed = datasets.Dataset(dataset.name, {"story-000.txt": story(1)[0]["passage"]}, ())
    other = datasets.build_collection(changed, encoder, lambda *_: None)
    assert len(other.store.digests()) == 1
    for index in (first, again, other):
        index.close()


@pytest.mark.parametrize(
    ("artifact", "file", "name", "content"),
    [
        ("boolq", "dev.jsonl", "boolq", '{"question": "q"}\n'),
        ("boolq", "dev.jsonl", "boolq", "not JSON\n"),
        ("boolq", "dev.jsonl", "boolq", "[1]\n"),
        ("unsolvable-questions", "", "unsolvable", '{"input": [], "ideal": "Solveable"}\n'),
        (
            "unsolvable-questions",
            "",
            "unsolvable",
            '{"input": [{"content": "Question: a\\n Context: b"}], "ideal": 3}\n',
        ),
    ],
)
def test_an_artifact_of_another_shape_is_named(
    world: dict[str, Path], artifact: str, file: str, name: str, content: str
) -> None:
    (world[artifact] / file).write_text(content)
    with pytest.raises(UserError, match="is not in the form that step 3 knows"):
        load(name)
