"""The verbs `eval`, `calibrate` and `compare`, on three items.

python -m pytest tests/step2/test_eval_verbs.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from eval_items import ITEMS, RIGHT, WRONG, Counting, item, measure

from shared.bfcl import Item
from shared.errors import UserError
from step2_tool_calling.evaluate import read_outcomes
from tests.shared.fake_endpoint import call, decide, refuse, say


@pytest.fixture
def bfcl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-made items in place of the downloaded ones."""

    def load(category: str, limit: int | None = None) -> list[Item]:
        return [item(number, category) for number in range(3)][:limit]

    monkeypatch.setattr("shared.bfcl.load", load)


def test_eval_writes_rows_that_compare_and_calibrate_read(step2: Any, endpoint: Any, bfcl: None) -> None:
    irrelevant = [decide(0.1), call(RIGHT)] * 3
    options = ["--categories", "simple_python,irrelevance", "--concurrency", 1]
    endpoint([decide(0.9), call(RIGHT), decide(0.9), call(WRONG), decide(0.9), call(RIGHT), *irrelevant])
    command = ["eval", "-s", "constrained", "--threshold", 0.5, "--results", "rows.json", *options]
    done = step2(*command, "--json")
    assert done.code == 0, done.err
    always, limited = json.loads(done.out)
    assert always["metrics"]["irrelevance"]["value"] == 0
    assert limited["metrics"]["irrelevance"]["value"] == 100
    assert limited["metrics"]["simple_python"]["value"] == pytest.approx(200 / 3)
    assert limited["metrics"]["USD/1,000"]["value"] == 0
    assert json.loads(Path("rows.json").read_text())["n"] == 6

    fake = endpoint([])
    assert fake.base_url != ""
    (constrained,) = Path("out/step2/eval").glob("*.jsonl")
    found = json.loads(step2("calibrate", constrained, "--json").out)
    assert (found["threshold"], found["balanced_accuracy"], found["auroc"]) == (pytest.approx(0.9), 1, 1)
    assert "--call-threshold 0.9 " in step2("calibrate", constrained).out

    endpoint([*[call(RIGHT)] * 3, *[say("No.")] * 3])
    table = step2("eval", "-s", "native", *options)
    assert table.code == 0
    assert "fake-model, native, plain" in table.out
    assert "100 [" in table.out
    endpoint([*[call(RIGHT)] * 3, *[say("No.")] * 3])
    named = step2("eval", "-p", "plain:native", "-s", "constrained", *options, "--output", "other")
    assert named.out.splitlines()[:5] == table.out.splitlines()[:5]
    other = endpoint([*[call(RIGHT)] * 3, *[say("No.")] * 3])
    tuned = step2("eval", "-p", "plain:native@tuned", *options)
    assert "tuned, native, plain" in tuned.out
    assert {request["model"] for request in other.requests} == {"tuned"}
    native = next(path for path in Path("out/step2/eval").glob("*.jsonl") if "native" in path.name)
    compared = step2("compare", constrained, native)
    assert "B - A: +66.7 points" in compared.out
    assert "only B right 4, only A right 0, exact p = 0.12" in " ".join(compared.out.split())
    assert "fixed: simple_python_1  Is it cold in Oslo?" in compared.out
    document = json.loads(step2("compare", constrained, native, "--json").out)
    assert (document["n"], document["only_a_right"], document["only_b_right"]) == (6, 0, 4)


def test_eval_says_what_it_does_not_know(step2: Any, endpoint: Any, bfcl: None) -> None:
    fake = endpoint([])
    for options, words in [
        (["-s", "magic"], "--strategy 'magic': use native, constrained, text"),
        (["--categories", "java"], "--categories 'java': use simple_python"),
        (["--prompts", "nonsense", "--limit", 1, "--categories", "parallel"], "no prompt 'nonsense'"),
        (["--prompts", "plain,nonsense"], "no prompt 'nonsense'"),  # before the first one is measured
        (["--categories", ","], "--categories ',' names nothing: use simple_python"),
        (["-s", ""], "--strategy '' names nothing: use native"),
        (["--prompts", " , "], "--prompts ' , ' names nothing"),
    ]:
        done = step2("eval", *options)
        assert done.code == 2
        assert words in done.err
        assert fake.requests == []
    done = step2("compare", "a.jsonl", "b.jsonl")
    assert (done.code, done.err) == (2, "error: a.jsonl: no such run; `eval` writes them\n")
    done = step2("compare", ".", "b.jsonl")
    assert (done.code, done.err) == (2, "error: . cannot be read: Is a directory\n")


@pytest.mark.parametrize("text", [b"thesis", b"chapter 1\nchapter 2", b'{"label": "x"}\n{"id": "a", "cat'])
def test_reading_a_file_never_changes_it(step2: Any, endpoint: Any, tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(text)
    for command in (["compare", path, path], ["calibrate", path]):
        assert step2(*command).code == 2
        assert path.read_bytes() == text
    with pytest.raises(UserError, match="is not a file of `eval`|holds another measurement"):
        measure(ITEMS, Counting(), path)
    assert path.read_bytes() == text


def test_a_failing_endpoint_ends_eval_with_one_sentence(step2: Any, endpoint: Any, bfcl: None) -> None:
    endpoint([call(RIGHT), refuse(401), refuse(401)])
    done = step2("eval", "-s", "native", "--categories", "simple_python", "--concurrency", 1)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "error: the endpoint refuses the key: set OPENAI_API_KEY"
    (path,) = Path("out/step2/eval").glob("*.jsonl")
    assert len(read_outcomes(path)) == 1
    fake = endpoint([call(RIGHT), call(WRONG)])  # another port is another endpoint, and so another measurement
    assert "holds another measurement" in step2("eval", "-s", "native", "--categories", "simple_python").err
    assert fake.requests == []
