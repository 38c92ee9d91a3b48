"""`eval` without its data: files that continue, items that score, rows, thresholds and paired comparison.

python -m pytest tests/step2/test_evaluate.py
"""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from shared.bfcl import Item, make_item
from shared.errors import UserError
from step2_tool_calling.conversation import Turn, Usage
from step2_tool_calling.evaluate import (
    Outcome,
    answer_item,
    as_tools,
    at_threshold,
    evaluate,
    header_of,
    read_outcomes,
    schema_valid,
    verdict,
    with_prompt,
)
from step2_tool_calling.prompts import load_prompt
from step2_tool_calling.scoreboard import FAILURES, calibrate, compare, describe, row, thresholded
from step2_tool_calling.strategies import Model, Name
from tests.shared.fake_endpoint import MODEL, FakeEndpoint, call, decide, fake_endpoint, refuse, say

HEADER: dict[str, Any] = {"label": "fake native plain", "model": MODEL, "seed": None}


def item(number: int, category: str = "simple_python", city: str = "Oslo") -> Item:
    """A BFCL item that wants weather.now(city), or nothing."""
    properties = {
        "city": {"type": "string", "description": "The city."},
        "days": {"type": "integer", "description": "How many."},
    }
    function = {
        "name": "weather.now",
        "description": "The weather.",
        "parameters": {"type": "dict", "properties": properties, "required": ["city"]},
    }
    question = {
        "id": f"{category}_{number}",
        "question": [[{"role": "user", "content": f"Is it cold in {city}?"}]],
        "function": [function],
    }
    gold = {"ground_truth": [{"weather.now": {"city": [city], "days": ["", 1]}}]}
    return make_item(category, question, None if category == "irrelevance" else gold)


def outcome(of: Item, *calls: tuple[str, str], probability: float | None = None, seconds: float = 1.0) -> Outcome:
    made = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return Outcome(of.id, of.category, made, "", Usage(100, 0, 10, 1), seconds, probability)


RIGHT = ("weather_now", '{"city": "Oslo"}')
WRONG = ("weather_now", '{"city": "Rome"}')


# -- files that continue -----------------------------------------------------------------------------------------------


class Counting:
    """Answers items, and notes which; can fail at one."""

    def __init__(self, fail_at: str = "", error: BaseException | None = None) -> None:
        self.asked: list[str] = []
        self.fail_at, self.error = fail_at, error

    async def __call__(self, of: Item) -> Outcome:
        await asyncio.sleep(0)
        self.asked.append(of.id)
        if of.id == self.fail_at and self.error:
            raise self.error
        return outcome(of, RIGHT)


def measure(items: list[Item], answer: Any, path: Path, header: dict[str, Any] = HEADER) -> list[Outcome]:
    return asyncio.run(evaluate(items, answer, path, header=header, concurrency=2))


ITEMS = [item(number) for number in range(6)]


def test_every_item_is_a_line_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    path, answer = tmp_path / "deep" / "run.jsonl", Counting()
    first = measure(ITEMS[:4], answer, path)
    assert [one.id for one in first] == [one.id for one in ITEMS[:4]]
    header, *lines = path.read_text().splitlines()
    assert json.loads(header) == HEADER
    assert len(lines) == 4
    whole = measure(ITEMS[::-1], answer, path)
    assert [one.id for one in whole] == [one.id for one in ITEMS[::-1]]  # the items' order, not the file's
    assert sorted(answer.asked) == sorted(one.id for one in ITEMS)


def test_a_last_line_that_was_cut_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    measure(ITEMS, Counting(), path)
    whole = path.read_bytes()
    for cut in (1, 30, 120):
        path.write_bytes(whole[:-cut])
        answer = Counting()
        assert len(measure(ITEMS, answer, path)) == 6
        assert len(answer.asked) == 1
        assert read_outcomes(path).keys() == {one.id for one in ITEMS}
    path.write_bytes(whole[:10])  # not even the header is whole
    answer = Counting()
    measure(ITEMS, answer, path)
    assert len(answer.asked) == 6
    assert json.loads(path.read_text().splitlines()[0]) == HEADER


def test_another_setting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    measure(ITEMS[:1], Counting(), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="holds another measurement \\(fake native plain\\): remove it"):
        measure(ITEMS, Counting(), path, HEADER | {"seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{}\n[]\n", "no json\n", '{"label": "x"}\n{"id": "a"}\n', "[1]\n{}\n", "\xff\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is not a file of `eval`"):
        read_outcomes(path)


def test_a_failing_endpoint_leaves_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(UserError, match="over its rate limit"):
        measure(ITEMS, Counting(ITEMS[4].id, UserError("the endpoint is over its rate limit", exit_code=1)), path)
    assert {one.id for one in ITEMS[:4]} <= read_outcomes(path).keys()
    assert len(measure(ITEMS, Counting(), path)) == 6


def test_ctrl_c_leaves_a_file_that_the_next_run_continues(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(ITEMS, Counting(ITEMS[3].id, KeyboardInterrupt()), path)
    answer = Counting()
    done = len(read_outcomes(path))
    assert 0 < done < 6
    measure(ITEMS, answer, path)
    assert len(answer.asked) == 6 - done


def refusing(*which: int) -> Any:
    """An endpoint that refuses these of ITEMS, each time."""

    async def answer(of: Item) -> Outcome:
        await asyncio.sleep(0)
        if of in [ITEMS[number] for number in which]:
            return replace(outcome(of), error="the endpoint refuses the request (400): too long")
        return outcome(of, RIGHT)

    return answer


@pytest.mark.parametrize("which", [(4,), (0, 1), (1, 2, 3, 4, 5)])
def test_an_item_that_the_endpoint_refuses_is_wrong_and_not_asked_again(tmp_path: Path, which: tuple[int, ...]) -> None:
    path, again = tmp_path / "run.jsonl", Counting()
    made = measure(ITEMS, refusing(*which), path)
    assert [one.id for one in made if one.error] == [ITEMS[number].id for number in which]
    assert measure(ITEMS, again, path) == made
    assert again.asked == []
    irrelevant = item(0, "irrelevance")  # where saying nothing is right
    assert verdict(irrelevant, replace(outcome(irrelevant), error="too long")).kind == "refused"  # type: ignore[comparison-overlap]
    value = row("a", ITEMS, made, None)["metrics"]
    assert (value["refused"]["value"], value["no call"]["value"]) == (len(which), 0)
    assert describe(ITEMS[which[0]], made[which[0]])[1] == "the endpoint refuses the request (400): too long"


def test_an_endpoint_that_refuses_the_first_three_is_the_problem(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(UserError, match="refuses the request \\(400\\)"):
        measure(ITEMS, refusing(0, 1, 2, 3, 4, 5), path)
    assert read_outcomes(path) == {}
    assert [bool(one.error) for one in measure(ITEMS, refusing(0, 3), path)] == [True, False, False, True, False, False]


def test_a_run_of_an_older_version_is_read(tmp_path: Path) -> None:
    """The lines that were written before `error` was there."""
    path = tmp_path / "run.jsonl"
    old = {key: value for key, value in asdict(outcome(ITEMS[0], RIGHT)).items() if key != "error"}
    path.write_text(json.dumps(HEADER) + "\n" + json.dumps(old) + "\n")
    assert read_outcomes(path) == {ITEMS[0].id: outcome(ITEMS[0], RIGHT)}
    assert len(measure(ITEMS, Counting(), path)) == 6


# -- asking ------------------------------------------------------------------------------------------------------------


def ask(script: list[Any], strategy: Name, of: Item = ITEMS[0]) -> tuple[Outcome, FakeEndpoint]:
    from openai import AsyncOpenAI

    async def once(fake: FakeEndpoint) -> Outcome:
        async with AsyncOpenAI(base_url=fake.base_url, api_key="unused", max_retries=0) as client:
            return await answer_item(of, Model(client, MODEL), strategy, load_prompt("plain"))

    with fake_endpoint(script) as fake:
        return asyncio.run(once(fake)), fake


def test_an_answer_is_kept_as_it_came() -> None:
    kept, fake = ask([call(RIGHT, text="Looking.")], "native")
    assert (kept.calls, kept.content, kept.probability) == (
        [{"name": "weather_now", "arguments": '{"city": "Oslo"}'}],
        "Looking.",
        None,
    )
    assert kept.usage == Usage(100, 0, 10, 1)
    assert [message["role"] for message in fake.messages[0]] == ["system", "user"]
    assert verdict(ITEMS[0], kept).correct


def test_constrained_calls_whatever_the_probability_and_keeps_it() -> None:
    kept, fake = ask([decide(0.01), call(RIGHT)], "constrained")
    assert kept.probability == pytest.approx(0.01)
    assert fake.requests[1]["tool_choice"] == "required"
    assert verdict(ITEMS[0], kept).correct
    assert verdict(ITEMS[0], at_threshold(kept, 0.5)).kind == "no call"
    assert at_threshold(kept, 0.005) is kept
    assert kept.usage.requests == 2


def test_seconds_are_those_of_both_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: Any) -> tuple[float, Turn]:
        return 0.5, Turn("", usage=Usage(100, 0, 1, 1), seconds=1000.0)

    monkeypatch.setattr("step2_tool_calling.evaluate.call_probability", slow)
    kept, _ = ask([call(RIGHT)], "constrained")
    assert 1000 < kept.seconds < 1100


def test_a_refused_request_is_an_outcome_and_a_failing_endpoint_is_not() -> None:
    kept, _ = ask([refuse(400, "context length exceeded")], "native")
    assert kept.error == "the endpoint refuses the request (400): context length exceeded"
    kept, _ = ask([decide(0.3), refuse(422)], "constrained")
    assert (kept.error != "", kept.calls, kept.usage.requests) == (True, [], 1)
    for status in (401, 404, 500):
        with pytest.raises(UserError):
            ask([refuse(status)], "native")


def test_an_items_system_message_joins_the_prompts() -> None:
    prompt = load_prompt("plain")
    messages = with_prompt(prompt, [{"role": "system", "content": "It is Monday."}, {"role": "user", "content": "?"}])
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"].endswith("\n\nIt is Monday.")
    assert "Monday" not in prompt.messages[0]["content"]


# -- scoring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "kind", "valid"),
    [
        ([RIGHT], "", True),
        ([], "no call", None),
        ([("weather_now", '{"city": ')], "invalid JSON", False),
        ([("weather_now", "[]")], "invalid JSON", False),
        ([("weather", "{}")], "wrong function", False),
        ([RIGHT, RIGHT], "wrong count", True),
        ([("weather_now", "{}")], "missing argument", False),
        ([("weather_now", '{"city": "Oslo", "unit": "C"}')], "invented argument", True),
        ([("weather_now", '{"city": 7}')], "wrong type", False),
        ([WRONG], "wrong value", True),
    ],
)
def test_kinds_of_failure(calls: list[tuple[str, str]], kind: str, valid: bool | None) -> None:
    made = outcome(ITEMS[0], *calls)
    assert verdict(ITEMS[0], made).kind == kind
    assert schema_valid(ITEMS[0], made) is valid


def test_tools_of_an_item_cannot_be_run() -> None:
    (tool,) = as_tools(ITEMS[0])
    assert tool.name == "weather_now"
    with pytest.raises(AssertionError):
        asyncio.run(tool.run({}))


def test_a_row_counts_by_category_and_kind() -> None:
    items = [item(0), item(1), item(2), item(0, "irrelevance"), item(1, "irrelevance")]
    made = [
        outcome(items[0], RIGHT, seconds=1.0),
        outcome(items[1], WRONG, seconds=2.0),
        outcome(items[2], seconds=9.0),
        outcome(items[3]),
        outcome(items[4], RIGHT),
    ]
    metrics = row("a", items, made, 0.5)["metrics"]
    value = {name: metric["value"] for name, metric in metrics.items()}
    assert value["simple_python"] == pytest.approx(100 / 3)
    assert (value["irrelevance"], value["all"], value["schema-valid"]) == (50, 40, 100)
    assert (value["prompt tokens"], value["answer tokens"], value["s/item"]) == (100, 10, 1)
    assert value["USD/1,000"] == 100
    assert {kind: value[kind] for kind in FAILURES if value[kind]} == {
        "no call": 1,
        "unexpected call": 1,
        "wrong value": 1,
    }
    low, high = metrics["all"]["ci95"] or (0, 0)
    assert 0 < low < 40 < high < 100
    assert row("b", items[2:4], made[2:4], None)["metrics"]["schema-valid"]["value"] is None


def test_calibration_finds_the_threshold_that_separates() -> None:
    needed = [item(n) for n in range(4)]
    other = [item(n, "irrelevance") for n in range(4)]
    made = [outcome(i, RIGHT, probability=p) for i, p in zip(needed, (0.9, 0.8, 0.3, 0.2), strict=True)]
    made += [outcome(i, RIGHT, probability=p) for i, p in zip(other, (0.25, 0.1, 0.05, 0.01), strict=True)]
    found = calibrate([*needed, *other], made)
    assert found.threshold in (0.2, 0.3)  # both make one mistake in eight
    assert found.balanced_accuracy == pytest.approx(7 / 8)
    assert found.auroc == pytest.approx(15 / 16)
    assert found.n == 8
    refused = replace(outcome(needed[0]), error="too long")
    assert calibrate([*needed, *other, needed[0]], [*made, refused]) == found
    limited = thresholded(made, 0.3)
    assert [bool(one.calls) for one in limited] == [True, True, True, False, False, False, False, False]


@pytest.mark.parametrize("probability", [None, 0.5])
def test_calibration_needs_probabilities_and_both_kinds(probability: float | None) -> None:
    with pytest.raises(UserError, match="calibration needs a constrained run"):
        calibrate(ITEMS, [outcome(one, probability=probability) for one in ITEMS])


def test_comparison_pairs_items_by_id() -> None:
    a = {one.id: outcome(one, RIGHT if n < 2 else WRONG) for n, one in enumerate(ITEMS)}
    b = {one.id: outcome(one, RIGHT if n > 0 else WRONG) for n, one in enumerate(ITEMS[:5])}
    found = compare(ITEMS, a, b)
    assert (found.n, found.a, found.b) == (5, 40, 80)
    assert found.difference == pytest.approx(40)
    assert found.ci95[0] <= 40 <= found.ci95[1]
    assert (found.fixed, found.broken) == ([one.id for one in ITEMS[2:5]], [ITEMS[0].id])
    assert (found.only_a_right, found.only_b_right) == (1, 3)
    assert found.p == pytest.approx(0.625)
    with pytest.raises(UserError, match="no item in common"):
        compare(ITEMS, a, {})


def test_describe_says_what_was_said() -> None:
    score, said = describe(ITEMS[0], outcome(ITEMS[0], WRONG))
    assert (score.kind, said) == ("wrong value", 'weather_now({"city": "Rome"})')
    assert describe(ITEMS[0], outcome(ITEMS[0]))[1] == "(nothing)"


# -- the verbs, on three items -----------------------------------------------------------------------------------------


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


def test_an_outcome_survives_the_file(tmp_path: Path) -> None:
    made = replace(outcome(ITEMS[0], RIGHT, probability=0.25), content="°\u2028\n{")
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(HEADER) + "\n" + json.dumps(asdict(made), ensure_ascii=False) + "\n")
    assert read_outcomes(path) == {made.id: made}


def test_the_header_says_what_was_measured() -> None:
    header = header_of(Model(None, "m", seed=3), "embedded", "native", load_prompt("plain"))  # type: ignore[arg-type]
    assert header["label"] == "m native plain"
    assert (header["seed"], header["endpoint"], header["prompt"]) == (3, "embedded", load_prompt("plain").label)
