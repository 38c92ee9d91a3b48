"""Real conversations in the mixture, and the whole build with the pinned artifacts."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared import bfcl
from step4_finetune import data_build, real_data
from step4_finetune.decontaminate import evaluation
from step4_finetune.examples import Example, problem, write_jsonl

FUNCTION = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "day": {"type": "string"}},
        "required": ["city"],
    },
}


def conversation(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"tools": json.dumps([FUNCTION]), "conversations": [{"from": who, "value": text} for who, text in turns]}


def test_a_glaive_call_becomes_a_call_with_arguments_in_schema_order() -> None:
    call = json.dumps({"name": "get_weather", "arguments": {"day": "Monday", "city": "Oslo"}})
    found = real_data._glaive_example(7, conversation(("human", "Weather in Oslo on Monday?"), ("function_call", call)))
    assert found is not None
    assert (found.id, found.kind, problem(found)) == ("glaive-7", "single", None)
    assert list(found.calls()[0][1]) == ["city", "day"]


def test_a_glaive_text_is_a_question_back_or_a_refusal_and_long_ones_are_left_out() -> None:
    asks = real_data._glaive_example(1, conversation(("human", "What's the weather?"), ("gpt", "In which city?")))
    refuses = real_data._glaive_example(2, conversation(("human", "Order a pizza"), ("gpt", "I cannot order food.")))
    chats = real_data._glaive_example(3, conversation(("human", "Tell me a story"), ("gpt", "Once upon a time " * 30)))
    assert asks is not None
    assert refuses is not None
    assert (asks.kind, refuses.kind, chats) == ("missing", "no_tool", None)


def test_live_items_become_examples_and_long_or_foreign_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    function = FUNCTION | {"parameters": FUNCTION["parameters"] | {"type": "dict"}}
    texts = ["Weather in Oslo please", "天气 怎么样 奥斯陆", "Weather in Oslo " * 60]
    gold = {"ground_truth": [{"get_weather": {"city": ["Oslo", "oslo"], "day": ["", "today"]}}]}
    items = [
        bfcl.make_item(
            "live_simple",
            {"id": f"l{n}", "question": [[{"role": "user", "content": text}]], "function": [function]},
            gold,
        )
        for n, text in enumerate(texts)
    ]
    monkeypatch.setattr(real_data.bfcl, "load", lambda category: items if category == "live_simple" else [])
    [found] = real_data.bfcl_live()
    assert found.id == "bfcl-l0"
    assert found.calls() == [("get_weather", {"city": "Oslo"})]


@pytest.fixture(scope="module")
def default_build() -> tuple[list[Example], data_build.Report]:
    """Takes half a minute."""
    return data_build.build(1)


@pytest.mark.real
def test_the_default_build_is_clean_mixed_short_and_reproducible(
    default_build: tuple[list[Example], data_build.Report], tmp_path: Path
) -> None:
    from shared.models import resolve
    from shared.tokenizer import ChatTokenizer

    built, report = default_build
    counted = data_build.stats(built, ChatTokenizer(resolve("smollm2-135m")))
    assert 3500 < counted["examples"] < 4200
    assert 0.25 <= counted["no_call_share"] <= 0.32
    assert counted["tokens"]["computed"] / counted["examples"] < 400
    assert counted["tokens"]["computed"] < 1_550_000
    assert counted["sources"]["bfcl-live"] > 300
    assert counted["sources"]["glaive"] > 90
    against = evaluation()
    assert not any(against.overlap(example) for example in built)
    assert all(problem(example) is None for example in built)
    # Function names that live and evaluation share are the known leak: they must have been found.
    assert report.removed["bfcl-live"]["name"] > 50
    write_jsonl(built, tmp_path / "a")
    write_jsonl(data_build.build(1)[0], tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.real
def test_the_unseen_tool_split_shares_no_tool_with_the_training_set(
    default_build: tuple[list[Example], data_build.Report],
) -> None:
    unseen = data_build.held_out(1)
    trained = {tool["function"]["name"] for example in default_build[0] for tool in example.tools}
    assert 280 <= len(unseen) <= 330
    assert not {tool["function"]["name"] for example in unseen for tool in example.tools} & trained
