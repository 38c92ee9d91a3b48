"""The ablation: arms that differ in one thing, outcomes that say what happened, runs that continue, tables."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import collection, facts, fake_resources, gaps
from fake_chat_model import FakeChat

from step3_rag.evaluation import answering_eval, tables
from step3_rag.evaluation.answering_eval import (
    BASELINE,
    FULL,
    ablation,
    answer_one,
    arms_for,
    estimate,
    header_of,
    measure_answers,
    warm_up,
)
from step3_rag.evaluation.datasets import Question
from step3_rag.evaluation.journal import Outcome, path_of
from step3_rag.graders import DEFAULT_GRADER, WITHOUT_ADAPTER, Thresholds
from step3_rag.index import Index
from step3_rag.reflection import NAIVE, Reflection
from step3_rag.resources import Resources

FACTS = facts()
GRADERS = ["llm", "embedding", "overlap"]
NEVER = Thresholds(relevant=2.0, answerable=2.0, grounded=2.0, answers=2.0)
ALWAYS = Thresholds(relevant=0.0, answerable=0.0, grounded=0.0, answers=0.0)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with collection(FACTS, tmp_path_factory.mktemp("home")) as index:
        yield index


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat(say=lambda prompt: "Yes, it eats at 0.", yes=lambda prompt: 0.9)


@pytest.fixture
def resources(index: Index, chat: FakeChat) -> Resources:
    return fake_resources(index, chat)


def test_arms_have_one_k_and_no_two_are_the_same() -> None:
    arms = ablation(GRADERS)
    assert next(iter(arms)) == BASELINE
    assert {arm.k for arm in arms.values()} == {Reflection().k}
    assert arms[BASELINE] == replace(NAIVE, retrievers=("dense",))
    assert arms[FULL] == Reflection(grader=WITHOUT_ADAPTER)
    assert ablation([*GRADERS, DEFAULT_GRADER])[FULL] == Reflection()
    assert {arm.grader for arm in arms.values()} == {None, *GRADERS}
    described = [json.dumps(vars(arm), default=str) for arm in arms.values()]
    assert len(set(described)) == len(arms) == 4 + len(GRADERS) + 2


def test_where_abstaining_is_asked_for_only_arms_that_can_are_run() -> None:
    arms = arms_for(gaps(), GRADERS)
    assert set(ablation(GRADERS)) - set(arms) == {"lexical", "fused", "fused + late"}
    assert arms_for(FACTS, GRADERS) == ablation(GRADERS)


def test_a_yes_no_question_is_answered_and_forced_to_choose(resources: Resources, chat: FakeChat) -> None:
    outcome = answer_one(FACTS.questions[0], resources, NAIVE)
    assert outcome["text"] == "Yes, it eats at 0."
    assert outcome["yes"] == pytest.approx(0.9)
    assert (outcome["abstained"], outcome["answerable"], outcome["route"]) == (False, None, "collection")
    assert "boolq-0000.md" in outcome["passages"]
    assert len(outcome["passages"]) == NAIVE.k
    (written, _), (chosen, arguments) = chat.requests
    assert chosen == written  # the choice is made after exactly what the answer was written from
    assert arguments["max_tokens"] == 1
    json.dumps(outcome)


def test_an_abstention_still_chooses_from_what_was_nearest(resources: Resources, chat: FakeChat) -> None:
    settings = replace(NAIVE, grader="overlap", thresholds=NEVER)
    outcome = answer_one(FACTS.questions[0], resources, settings)
    assert outcome["abstained"]
    assert outcome["text"].startswith("I don't know")
    assert outcome["yes"] == pytest.approx(0.9)
    assert outcome["answerable"] is not None
    assert len(chat.requests) == 1


def test_a_question_with_a_written_answer_has_no_choice(resources: Resources) -> None:
    asked = Question("n1", "What does the heron eat?", ("moss", "yes"), "boolq-0000.md")
    assert "yes" not in answer_one(asked, resources, NAIVE)
    assert "yes" not in answer_one(replace(asked, answers=()), resources, NAIVE)


def test_the_last_grade_before_the_answer_counts(resources: Resources, chat: FakeChat) -> None:
    """After rewriting, `answerable` is that of the passages that were answered from."""
    settings = replace(NAIVE, grader="overlap", max_rewrites=2, thresholds=replace(ALWAYS, answerable=2.0))
    outcome = answer_one(FACTS.questions[0], resources, settings)
    assert outcome["abstained"]
    assert outcome["rewrites"]


def test_a_stopped_run_continues(resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {name: arm for name, arm in ablation(GRADERS).items() if name in (BASELINE, "fused + late + overlap grader")}
    questions = FACTS.questions[:4]
    asked: list[str] = []

    def counted(question: Question, *rest: Any) -> Outcome:
        if len(asked) == 5:
            asked.append("stopped")
            raise KeyboardInterrupt
        asked.append(question.id)
        return answer_one(question, *rest)

    monkeypatch.setattr(answering_eval, "answer_one", counted)
    with pytest.raises(KeyboardInterrupt):
        measure_answers(FACTS, questions, resources, arms, tmp_path / "out")
    before = estimate(FACTS, questions, resources, arms, tmp_path / "out")
    found = measure_answers(FACTS, questions, resources, arms, tmp_path / "out")
    everything = [question.id for question in questions]
    assert asked == [*everything, everything[0], "stopped", *everything[1:]]
    assert measure_answers(FACTS, questions, resources, arms, tmp_path / "out") == found
    assert len(asked) == 9
    assert before > estimate(FACTS, questions, resources, arms, tmp_path / "out") == 0
    assert [len(outcomes) for outcomes in found.values()] == [4, 4]


def test_other_settings_are_another_measurement(resources: Resources, tmp_path: Path) -> None:
    arm = replace(NAIVE, grader="overlap")
    headers = [
        header_of(FACTS, "x", arm, resources),
        header_of(FACTS, "x", replace(arm, thresholds=NEVER), resources),
        header_of(FACTS, "x", replace(arm, k=3), resources),
        header_of(gaps(), "x", arm, resources),
    ]
    assert len({path_of(tmp_path, header) for header in headers}) == 4
    assert path_of(tmp_path, headers[0]) == path_of(tmp_path, header_of(FACTS, "x", arm, resources))
    for header in headers:
        assert json.loads(json.dumps(header))


def test_the_estimate_grows_with_what_is_asked(resources: Resources, tmp_path: Path) -> None:
    def seconds(names: list[str], questions: int) -> float:
        arms = {name: arm for name, arm in ablation(GRADERS).items() if name in names}
        return estimate(FACTS, FACTS.questions[:questions], resources, arms, tmp_path / "out")

    assert seconds([BASELINE], 10) == pytest.approx(10 * seconds([BASELINE], 1))
    assert seconds(["fused + late + llm grader"], 5) > 1.3 * seconds(["fused + late + overlap grader"], 5) > 0


def test_warming_up_asks_and_keeps_nothing(resources: Resources, chat: FakeChat) -> None:
    warm_up(FACTS.questions[0], resources, ablation(GRADERS))
    assert chat.requests


# -- tables ----------------------------------------------------------------------------------------------------------


def outcome(text: str = "Yes.", **changes: Any) -> Outcome:
    return {
        "text": text, "abstained": False, "rewrites": [], "dropped": 0, "answerable": None, "seconds": 1.0, "yes": 0.9
    } | changes  # fmt: skip


def test_yes_no_rows_by_hand() -> None:
    questions = [Question(str(n), "Is it?", ("yes" if n < 6 else "no",), "a") for n in range(10)]
    naive = [outcome("Yes, it is.", yes=0.9) for _ in range(10)]  # right on 6, as text and by choice
    better = [outcome("Yes." if n < 6 else "No.", yes=0.9 if n < 3 else 0.1, seconds=1.5) for n in range(10)]
    better[0] = outcome("I don't know: nothing was found.", abstained=True, yes=0.9, seconds=1.5)
    rows = tables.answer_rows(questions, {BASELINE: naive, FULL: better})
    base, full = (row["metrics"] for row in rows)
    assert base["accuracy as text"]["value"] == pytest.approx(60)
    assert base["Δ text"]["value"] is None
    assert full["accuracy as text"]["value"] == pytest.approx(90)
    assert full["Δ text"]["value"] == pytest.approx(30)
    assert full["p (text)"]["value"] == pytest.approx(2 * (1 + 5) / 2**5)  # 4 gained, 1 lost
    assert full["forced-choice accuracy"]["value"] == pytest.approx(70)  # 3 of 6 yes, 4 of 4 no
    assert full["right where answered"]["value"] == pytest.approx(100)
    assert full["abstained %"]["value"] == pytest.approx(10)
    assert full["× naive"]["value"] == pytest.approx(1.5)
    assert full["Δ forced"]["value"] == pytest.approx(10)


def test_written_answers_by_hand() -> None:
    questions = [Question(str(n), "Who?", ("the old king", "Ann"), "a") for n in range(4)]
    naive = [outcome("An old king reigned.") for _ in range(4)]
    other = [outcome("Ann"), outcome("Bob"), outcome("I don't know: Ann.", abstained=True), outcome("It was Ann.")]
    base, row = (row["metrics"] for row in tables.answer_rows(questions, {BASELINE: naive, "x": other}))
    assert base["token F1"]["value"] == pytest.approx(100 * 2 * 2 / (3 + 2))
    assert row["token F1"]["value"] == pytest.approx(100 * (1 + 0 + 0 + 2 / 4) / 4)
    assert row["F1 where answered"]["value"] == pytest.approx(100 * (1 + 0 + 2 / 4) / 3)
    assert row["states the answer %"]["value"] == pytest.approx(50)
    assert row["Δ F1"]["value"] == pytest.approx(37.5 - 80)
    assert 0 < (row["p (F1)"]["value"] or 0) <= 1


def test_abstention_behind_retrieval_by_hand() -> None:
    questions = [Question(str(n), "Who?", (), "a", answerable=n < 3) for n in range(6)]
    naive = [outcome("Ann.") for _ in range(6)]
    naive[5] = outcome("The passage does not mention who it was.")  # a refusal in words is one
    graded = [outcome("Ann.", abstained=n in (2, 3, 4), answerable=1 - n / 10, rewrites=["x"]) for n in range(6)]
    base, row = (row["metrics"] for row in tables.answer_rows(questions, {BASELINE: naive, "x": graded}))
    assert base["decided right"]["value"] == pytest.approx(100 * 4 / 6)
    assert base["abstained %"]["value"] == pytest.approx(100 / 6)
    assert base["AUROC"]["value"] is None
    assert row["decided right"]["value"] == pytest.approx(100 * 4 / 6)
    assert row["answered of answerable"]["value"] == pytest.approx(100 * 2 / 3)
    assert row["abstained of unanswerable"]["value"] == pytest.approx(100 * 2 / 3)
    assert row["AUROC"]["value"] == 1
    assert row["rewritten %"]["value"] == 100


def test_graders_alone_by_hand() -> None:
    questions = [Question(str(n), "Who?", (), "a", answerable=n < 2) for n in range(4)]
    found = {
        "no grader": [{"score": score, "seconds": 0.1} for score in (0.9, 0.2, 0.8, 0.1)],
        "good": [{"score": score, "seconds": 0.3} for score in (0.4, 0.3, 0.2, 0.1)],
    }
    base, good = (r["metrics"] for r in tables.abstention_rows(questions, found, {"no grader": 0.5, "good": 0.3}))
    assert base["AUROC"]["value"] == pytest.approx(3 / 4)
    assert base["accuracy"]["value"] == pytest.approx(50)
    assert (good["AUROC"]["value"], good["accuracy"]["value"]) == (1, 100)
    assert good["Δ accuracy"]["value"] == pytest.approx(50)
    assert good["p (accuracy)"]["value"] == pytest.approx(0.5)
    assert good["s/question"]["value"] == pytest.approx(0.3)


def test_tables_can_be_written_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.results import read_results, results_table

    questions = [Question(str(n), "Is it?", ("yes",), "a") for n in range(3)]
    rows = tables.answer_rows(questions, {BASELINE: [outcome()] * 3, FULL: [outcome("No.")] * 3})
    tables.write(tmp_path / "answers.json", rows, command="step3 eval answers", n=3, notes="three questions")
    document = read_results(tmp_path / "answers.json")
    assert document["n"] == 3
    assert "three questions" in document["notes"]
    assert "points against the baseline" in document["notes"]
    assert FULL in results_table(document)
    monkeypatch.setenv("COLUMNS", "80")
    tables.show("answers", rows, 3, "three questions")
    shown = capsys.readouterr().out
    assert "answers, n = 3" in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count(FULL) > 1  # ten columns do not fit beside each other
    assert "[44, 100]" in shown  # of three right out of three, in one piece


def test_differences_too_small_to_count_have_a_floor() -> None:
    cells = tables.change("x", [1.0] * 400, [0.0] * 400)
    assert cells["p (x)"]["value"] == tables.P_SHOWN
