"""Questions and how they are judged: function calls, and the yes and no of a grader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import bfcl
from shared.errors import UserError
from step4_finetune import data_build, grader_data
from step4_finetune.decontaminate import Evaluation
from step4_finetune.evaluation.comparison import judge
from step4_finetune.evaluation.prompt import FOLDER, load_prompt
from step4_finetune.evaluation.task import Answer, Item, Score, Task, spread
from step4_finetune.evaluation.tasks import NAMES, load_task, unseen_tools, unsolvable
from step4_finetune.evaluation.tasks.bfcl import of_items
from step4_finetune.evaluation.tasks.graded import graded
from step4_finetune.evaluation.tasks.relevant import by_similarity
from step4_finetune.examples import Example, answer_with_calls
from step4_finetune.grader_data import GraderItem

TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a room",
        "parameters": {
            "type": "object",
            "properties": {
                "guest": {"type": "object", "properties": {"name": {"type": "string"}}},
                "price": {"type": "number"},
                "nights": {"type": "integer", "default": 1},
                "rooms": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["guest", "price"],
        },
    },
}
RIGHT = {"guest": {"name": "Ada"}, "price": 80, "rooms": [1, 2]}


def example(kind: str = "single", arguments: dict[str, Any] | None = None) -> Example:
    answer = answer_with_calls([("book", arguments)]) if arguments else {"role": "assistant", "content": "I cannot."}
    return Example("e1", "synthetic", kind, [{"role": "user", "content": "Book it"}, answer], [TOOL])


def scored(found: Example, *calls: tuple[str, Any], probability: float | None = None) -> Score:
    task = of_items("t", [unseen_tools.as_question(found)])
    texts = [{"name": name, "arguments": a if isinstance(a, str) else json.dumps(a)} for name, a in calls]
    return task.score(task.items[0], Answer("e1", "", calls=texts, probability=probability), 0.5)


def test_an_unseen_tool_is_judged_as_the_leaderboard_judges_its_own() -> None:
    right = example(arguments=RIGHT)
    assert scored(right, ("book", RIGHT)).correct
    assert scored(right, ("book", RIGHT | {"price": 80.0, "guest": {"name": "ada"}})).correct
    assert scored(right, ("book", RIGHT | {"nights": 1})).correct  # the default may be said
    assert scored(right, ("book", RIGHT | {"nights": 2})).kind == "wrong value"
    assert scored(right, ("book", RIGHT | {"guest": {"name": "Bob"}})).kind == "wrong value"
    assert scored(right, ("book", {"guest": {"name": "Ada"}, "price": 80})).kind == "missing argument"
    assert scored(right, ("book", "{")).kind == "invalid JSON"
    assert scored(right, ("book", "[1]")).kind == "invalid JSON"
    assert scored(right).kind == "no call"


def test_below_the_threshold_no_call_was_made() -> None:
    right, none = example(arguments=RIGHT), example("no_tool")
    assert scored(right, ("book", RIGHT), probability=0.5).correct
    assert scored(right, ("book", RIGHT), probability=0.49).kind == "no call"
    assert scored(none, ("book", RIGHT), probability=0.49).correct
    assert scored(none, ("book", RIGHT), probability=0.9).kind == "unexpected call"


def test_every_generated_answer_is_right_by_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Evaluation(frozenset(), frozenset(), frozenset())
    monkeypatch.setattr(data_build, "evaluation", lambda: nothing)
    task = load_task("unseen_tools")
    assert {item.group for item in task.items} == {"single", "multiple", "parallel", "parallel_multiple", "irrelevance"}
    for item in task.items:
        calls = [{"name": name, "arguments": json.dumps(a)} for name, a in bfcl.gold_calls(item.gold)]
        assert task.score(item, Answer(item.id, item.digest, calls=calls), 0.5).correct, item.id
        assert task.positive(item) == (item.group != "irrelevance")
        assert item.messages[-1]["role"] == "user"
    few = load_task("unseen_tools", 3)
    assert len(few.items) == 15
    assert {item.id for item in few.items} <= {item.id for item in task.items}


def test_a_grader_is_judged_by_its_probability_or_its_first_word() -> None:
    yes = GraderItem("y", "Who?", "Ada did.", "", True, "own")
    task = graded("relevant", "relevant", [yes, GraderItem("n", "Who?", "Cats purr.", "", False, "bm25")], None)
    first, second = task.items

    def kind(item: Item, **answer: Any) -> str:
        return task.score(item, Answer(item.id, "", **answer), 0.5).kind

    assert [task.positive(item) for item in task.items] == [True, False]
    assert (kind(first, probability=0.5), kind(second, probability=0.5)) == ("", "wrong yes")
    assert (kind(first, probability=0.4), kind(second, probability=0.4)) == ("wrong no", "")
    assert (kind(first, text="Yes, it does."), kind(first, text="**No**")) == ("", "wrong no")
    assert (kind(first, text="Yesterday"), kind(first, text="")) == ("neither yes nor no", "neither yes nor no")
    assert task.score(first, Answer("y", "", probability=0.4), 0.3).correct
    assert first.messages == grader_data.messages("relevant", yes)


def test_unsolvable_questions_are_read_and_another_shape_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(question: str, ideal: str) -> str:
        return json.dumps({"input": [{"role": "system", "content": "x"}, {"content": question}], "ideal": ideal})

    path = tmp_path / "samples.jsonl"
    monkeypatch.setattr(unsolvable, "fetch", lambda _: path)
    path.write_text(
        row("Question: Who won?\n Context: Ada won. Context: none", "Solveable")
        + "\n"
        + row("Question: Why?\n Context: It rains.", "Unsolveable")
        + "\n"
    )
    task = load_task("unsolvable")
    assert [(i.gold.question, i.gold.passage, i.gold.label) for i in task.items] == [
        ("Who won?", "Ada won. Context: none", True),
        ("Why?", "It rains.", False),
    ]
    assert "Can the question be answered" in task.items[0].messages[0]["content"]
    path.write_text(row("Question: Why?", "Unsolveable"))
    with pytest.raises(UserError, match="not in the form"):
        load_task("unsolvable")


def test_unknown_tasks_and_limits_are_refused() -> None:
    with pytest.raises(UserError, match="there are bfcl, unseen_tools, relevant"):
        load_task("mmlu")
    with pytest.raises(UserError, match="at least 1 item"):
        load_task("bfcl", 0)


def test_a_limit_takes_items_evenly_from_each_group() -> None:
    items = [Item(f"{group}{i}", group, [], None) for group, n in (("a", 10), ("b", 3)) for i in range(n)]
    assert [item.id for item in spread(items, 4)] == ["a0", "a2", "a5", "a7", "b0", "b1", "b2"]
    assert spread(items, None) == items


def test_prompts_are_messages_and_an_example_call_becomes_a_call(tmp_path: Path) -> None:
    path = tmp_path / "p.md"
    path.write_text(
        "---\ntries: one example\n---\n# system\nCall.\n\n# user\nBook it\n# assistant\n"
        '<tool_call>\n{"name": "book", "arguments": {"price": 8}}\n</tool_call>\n'
    )
    prompt = load_prompt(str(path))
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant"]
    [call] = prompt.messages[2]["tool_calls"]
    assert call["function"] == {"name": "book", "arguments": '{"price": 8}'}
    assert call["id"] == "example_0"
    assert prompt.label == load_prompt(str(path)).label
    path.write_text("Just text")
    with pytest.raises(UserError, match="under `# system`"):
        load_prompt(str(path))
    path.write_text("# assistant\n<tool_call>{broken</tool_call>")
    with pytest.raises(UserError, match="not valid JSON"):
        load_prompt(str(path))
    with pytest.raises(UserError, match="no prompt 'nothing'; there are .*tools"):
        load_prompt("nothing")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.md")))
def test_the_prompts_that_come_along_can_be_read(name: str) -> None:
    assert load_prompt(name).messages[0]["role"] == "system"


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_the_real_tasks_have_items_of_both_kinds_and_their_gold_is_right(name: str) -> None:
    task: Task = load_task(name)
    assert 250 <= len(task.items) <= 1300
    assert len({item.id for item in task.items}) == len(task.items)
    positive = sum(task.positive(item) for item in task.items)
    assert 0.15 <= positive / len(task.items) <= 0.85
    for item in task.items:
        if isinstance(item.gold, bfcl.Item):
            calls = [{"name": n, "arguments": json.dumps(a)} for n, a in bfcl.gold_calls(item.gold)]
            answer = Answer(item.id, item.digest, calls=calls)
        else:
            answer = Answer(item.id, item.digest, probability=1.0 if item.gold.label else 0.0)
        assert task.score(item, answer, 0.5).correct, item.id


def test_similarity_grades_without_a_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Letters:
        """A text's vector says with which letter it begins."""

        def encode(self, texts: list[str]) -> Any:
            return np.eye(26)[[ord(text[0].lower()) - ord("a") for text in texts]]

    monkeypatch.setattr("shared.embeddings.load_embedder", Letters)
    items = [GraderItem("y", "Ada?", "Ada did.", "", True), GraderItem("n", "Ada?", "Cats purr.", "", False)]
    task = graded("relevant", "relevant", items, None)
    answers = by_similarity(task.items)
    assert [answer.probability for answer in answers] == [1.0, 0.5]
    assert judge(task, {answer.id: answer for answer in answers})[0].score.correct
