"""`eval` without its data: files that continue, items that are asked.

Scores: test_scoreboard.py, the verbs: test_eval_verbs.py.

python -m pytest tests/step2/test_evaluate.py
"""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from eval_items import HEADER, ITEMS, RIGHT, Counting, item, measure, outcome

from shared.bfcl import Item
from shared.errors import UserError
from step2_tool_calling.conversation import Turn, Usage
from step2_tool_calling.evaluate import (
    Outcome,
    answer_item,
    at_threshold,
    header_of,
    read_outcomes,
    verdict,
    with_prompt,
)
from step2_tool_calling.prompts import load_prompt
from step2_tool_calling.scoreboard import describe, row
from step2_tool_calling.strategies import Model, Name
from tests.shared.fake_endpoint import MODEL, FakeEndpoint, call, decide, fake_endpoint, refuse

# -- files that continue -----------------------------------------------------------------------------------------------


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


def test_an_outcome_survives_the_file(tmp_path: Path) -> None:
    made = replace(outcome(ITEMS[0], RIGHT, probability=0.25), content="°\u2028\n{")
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(HEADER) + "\n" + json.dumps(asdict(made), ensure_ascii=False) + "\n")
    assert read_outcomes(path) == {made.id: made}


def test_the_header_says_what_was_measured() -> None:
    header = header_of(Model(None, "m", seed=3), "embedded", "native", load_prompt("plain"))  # type: ignore[arg-type]
    assert header["label"] == "m native plain"
    assert (header["seed"], header["endpoint"], header["prompt"]) == (3, "embedded", load_prompt("plain").label)


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
