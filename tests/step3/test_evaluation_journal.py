"""A measurement that is killed goes on; one with other settings is refused; what is measured is not measured again."""

import json
from pathlib import Path

import pytest

from shared.errors import UserError
from step3_rag.evaluation.datasets import Question
from step3_rag.evaluation.journal import Outcome, measure, missing

QUESTIONS = [Question(f"q{n}", f"Question {n}?", (), "") for n in range(5)]
HEADER = {"arm": "dense", "k": 5}


class Counting:
    """Answers with the question's number, and can be killed on the way."""

    def __init__(self, killed_at: int = -1) -> None:
        self.asked: list[str] = []
        self._killed_at = killed_at

    def __call__(self, question: Question) -> Outcome:
        if len(self.asked) == self._killed_at:
            raise KeyboardInterrupt
        self.asked.append(question.id)
        return {"number": int(question.id[1:])}


def test_it_resumes_where_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(QUESTIONS, Counting(killed_at=2), path, HEADER)
    assert missing(QUESTIONS, path, HEADER) == 3
    with path.open("ab") as file:
        file.write(b'{"id": "q2", "num')  # what a kill in the middle of a write leaves
    second, advanced = Counting(), []
    outcomes = measure(QUESTIONS, second, path, HEADER, lambda: advanced.append(1))
    assert second.asked == ["q2", "q3", "q4"]
    assert [outcome["number"] for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert len(advanced) == 5
    assert [json.loads(line).get("id", "header") for line in path.read_text().splitlines()] == [
        "header", "q0", "q1", "q2", "q3", "q4",
    ]  # fmt: skip
    assert missing(QUESTIONS, path, HEADER) == 0


def test_a_longer_run_asks_only_what_is_new_and_a_shorter_one_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    measure(QUESTIONS[:3], Counting(), path, HEADER)
    longer = Counting()
    measure(QUESTIONS, longer, path, HEADER)
    assert longer.asked == ["q3", "q4"]
    shorter = Counting()
    assert len(measure(QUESTIONS[:2], shorter, path, HEADER)) == 2
    assert shorter.asked == []


def test_a_kill_in_the_first_line_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(HEADER)[:7])
    assert len(measure(QUESTIONS, Counting(), path, HEADER)) == 5


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"arm": "dense", "k": 6}) + "\n",
        json.dumps(HEADER) + '\n{"number": 1}\n',
        "[1]\n[2]\n",
        "a letter\nto nobody\n",
        "half a letter",
        b"\xff\xfe\n",
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.jsonl"
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw)
    with pytest.raises(UserError, match="holds another measurement: delete it, or use --output"):
        measure(QUESTIONS, Counting(), path, HEADER)
    assert path.read_bytes() == raw
