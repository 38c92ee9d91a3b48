"""step3_rag/demo.py: each ending is shown, by another question where the first one ends otherwise.

python -m pytest tests/step3/test_demo.py
python -m pytest tests/step3/test_demo.py -m real     # `make step3` as it is
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_index import passage

from step3_rag import demo
from step3_rag.answers import Answer, Citation, Sentence, Step

ROOT = Path(__file__).parents[2]
RESOURCES: Any = SimpleNamespace(graders={"overlap": None})


def answer(question: str, *, abstained: bool = False, cited: bool = True, rewrites: tuple[str, ...] = ()) -> Answer:
    found = passage("a", "Salmon live in the Amber river.")
    sentences = (Sentence("Salmon.", (Citation(found, 0, 6, 0.9),)),) if cited and not abstained else ()
    reason = "" if sentences else "a reason"
    return Answer(question, "Salmon.", sentences, abstained, reason, (), 0, "collection", rewrites, 1, 0.1)


def test_what_an_answer_is_an_example_of() -> None:
    assert demo.shows(answer("q")) == {"answered"}
    assert demo.shows(answer("q", rewrites=("r",))) == {"answered", "rewritten"}
    assert demo.shows(answer("q", abstained=True, rewrites=("r",))) == {"declined"}
    assert demo.shows(answer("q", cited=False)) == set()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Question → how it ends; what is not in it is declined."""
    found: dict[str, dict[str, Any]] = {}

    def run(question: str, resources: Any, settings: Any) -> Iterator[Step | Answer]:
        yield Step("route", "collection", {"similarity": 0.5})
        yield answer(question, **found.get(question, {"abstained": True}))

    monkeypatch.setattr(demo, "run", run)
    return found


def test_each_ending_takes_one_question_where_all_goes_well(ends: dict[str, dict[str, Any]]) -> None:
    answered, rewritten, declined = (questions[0] for questions in demo.QUESTIONS.values())
    ends |= {answered: {}, rewritten: {"rewrites": ("r",)}}
    documents = demo.perform(RESOURCES, quiet=True)
    assert [(document["question"], document["shows"]) for document in documents] == [
        (answered, "answered"),
        (rewritten, "rewritten"),
        (declined, "declined"),
    ]
    assert documents[0]["steps"][0]["node"] == "route"


def test_what_ends_otherwise_is_shown_and_another_is_asked(
    ends: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    answered, rewritten, declined = demo.QUESTIONS.values()
    ends |= {answered[1]: {}, rewritten[0]: {}, rewritten[1]: {"rewrites": ("r",)}, declined[0]: {}}
    documents = demo.perform(RESOURCES)
    assert [document["question"] for document in documents] == [*answered[:2], *rewritten[:2], *declined[:2]]
    assert [document["shows"] for document in documents] == [None, "answered", None, "rewritten", None, "declined"]
    err = " ".join(capsys.readouterr().err.split())
    assert all(f"you> {document['question']}" in err for document in documents)
    assert err.count("and was not)") == 3


def test_an_ending_that_none_has_does_not_go_on_for_ever(ends: dict[str, dict[str, Any]]) -> None:
    documents = demo.perform(RESOURCES, quiet=True)
    assert len(documents) == len(demo.QUESTIONS["answered"]) + len(demo.QUESTIONS["rewritten"]) + 1
    assert [document["shows"] for document in documents if document["shows"]] == ["declined"]


@pytest.mark.real
def test_the_demo_answers_rewrites_and_declines() -> None:
    """Needs the embedding and the chat model, and some minutes the first time.

    Whatever adapter, grader or processor there is: each ending is shown by one of its questions.
    """
    done = subprocess.run(
        [sys.executable, "-m", "step3_rag", "demo", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = {document["shows"]: document for document in json.loads(done.stdout)}
    assert set(shown) >= {"answered", "rewritten", "declined"}, done.stdout
    for ending in ("answered", "rewritten"):
        assert not shown[ending]["abstained"]
        assert all(sentence["citations"] for sentence in shown[ending]["sentences"])
    assert shown["rewritten"]["rewrites"]
    assert shown["declined"]["abstained"]
    assert shown["declined"]["reason"]
