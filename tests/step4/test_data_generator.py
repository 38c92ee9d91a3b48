"""The synthetic data: right by construction, checked all the same, the same bytes every time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from shared.errors import UserError
from step4_finetune import data_build, examples
from step4_finetune.decontaminate import Evaluation, plain_name, remove, spans
from step4_finetune.examples import CALLS, NO_CALLS, Example, answer_with_calls, problem, read_jsonl, write_jsonl
from step4_finetune.function_specs import HELD_OUT, functions, read_functions
from step4_finetune.generator import Generator
from step4_finetune.questions import Questions
from step4_finetune.schema_variants import dress
from step4_finetune.value_pools import FORMS, draw, parse_pool

NOTHING = Evaluation(frozenset(), frozenset(), frozenset())
FEW = dict.fromkeys(data_build.MIXTURE, 12)

LAMP = """# lamps
switch_lamp/set_lamp : Switch a lamp
  room room : Room
  level/brightness percent 10..90 : Brightness
  color? color : Color
  on_time? clock : When to switch
  fade? bool = false : Fade slowly
  > Set <the lamp in the {room} to {level}>[ in {color}][ at {on_time}][+fade  slowly].
"""


def made(seed: int = 1, held: bool = False) -> list[Example]:
    groups = data_build.synthesize(seed, FEW, NOTHING, data_build.Report(), held=held)
    return [example for group in groups for example in group]


def test_every_generated_example_passes_the_check_and_every_kind_is_there() -> None:
    found = made()
    assert {example.kind for example in found} == set(CALLS) | set(NO_CALLS)
    assert all(problem(example) is None for example in found)
    assert len({example.id for example in found}) == len(found)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_jsonl(made(seed), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    assert read_jsonl(tmp_path / "a") == made(1)


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    """Texts hash differently in each process, so a set's order must decide nothing."""
    program = (
        "from step4_finetune import data_build as d; from step4_finetune.decontaminate import Evaluation as E;"
        "nothing = E(frozenset(), frozenset(), frozenset());"
        "print(d.synthesize(1, dict.fromkeys(d.MIXTURE, 12), nothing, d.Report()))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_the_calls_are_of_the_number_and_choice_that_the_kind_says() -> None:
    for example in made():
        calls = [name for name, _ in example.calls()]
        if example.kind == "single":
            assert len(calls) == 1
            assert len(example.tools) == 1
        elif example.kind == "multiple":
            assert len(calls) == 1
            assert len(example.tools) >= 2
        elif example.kind == "parallel":
            assert len(calls) >= 2
            assert len(set(calls)) == 1
        elif example.kind == "parallel_multiple":
            assert len(set(calls)) >= 2
        else:
            assert calls == []
            assert all(len(line.split()) <= 25 for line in example.messages[-1]["content"].splitlines())


def test_an_answer_says_the_figures_of_every_result_and_no_other() -> None:
    answers = [example for example in made() if example.kind == "answer"]
    assert len(answers) >= 12
    for example in answers:
        turn = max(place for place, message in enumerate(example.messages) if message["role"] == "user")
        results = [message["content"] for message in example.messages[turn:] if message["role"] == "tool"]
        calls = next(m["tool_calls"] for m in example.messages[turn:] if m.get("tool_calls"))
        told = example.messages[-1]["content"].splitlines()
        assert len(results) == len(calls) == len(told)
        for result, sentence in zip(results, told, strict=True):
            assert set(re.findall(r"\d+\.\d+", sentence)) <= set(re.findall(r"\d+\.\d+", result + example.question))


def test_a_crowd_has_many_tools_and_every_sort_of_question() -> None:
    groups = data_build.synthesize(1, {"crowd": 12}, NOTHING, data_build.Report())
    found = [example for group in groups for example in group]
    assert all(6 <= len(example.tools) <= 9 for example in found)
    assert {example.kind for example in found} == {"multiple", "parallel", "parallel_multiple", "no_tool", "answer"}
    assert all(len({json.dumps(e.tools) for e in group}) == 1 for group in groups)
    assert any(message["role"] == "tool" for e in found if e.kind in CALLS for message in e.messages)  # later turns


def test_arguments_stand_in_the_order_of_the_schema() -> None:
    for example in made():
        for name, arguments in example.calls():
            tool = next(t["function"] for t in example.tools if t["function"]["name"] == name)
            order = [key for key in tool["parameters"]["properties"] if key in arguments]
            assert list(arguments) == order


def test_no_domain_and_no_function_of_the_held_out_split_is_trained_on() -> None:
    seen, unseen = functions(False), functions(True)
    assert {f.domain for f in unseen} == HELD_OUT
    assert not {f.domain for f in seen} & HELD_OUT
    assert not {n for f in seen for n in f.names} & {n for f in unseen for n in f.names}
    assert len({f.domain for f in seen}) >= 60
    assert len(seen) >= 400


def test_siblings_show_the_same_tools() -> None:
    generator = Generator(functions(False), Random(3))
    groups = [generator.group("multiple", n) for n in range(20)]
    assert any(len(group) > 2 for group in groups)
    for group in groups:
        assert all(example.tools == group[0].tools for example in group)


def test_no_tool_questions_never_name_a_tool_that_is_shown() -> None:
    for example in made():
        if example.kind == "no_tool":
            assert not any(t["function"]["description"].lower() in example.question.lower() for t in example.tools)


def test_an_optional_argument_is_given_exactly_when_the_question_says_it() -> None:
    [lamp] = read_functions(LAMP)
    asker = Questions(Random(5))
    for _ in range(200):
        dressed, question, [(_, arguments)] = asker.ask(lamp, 1)
        if question.startswith("Set the lamp"):
            by_key = {key: arguments.get(name) for key, name in dressed.names.items()}
            color = by_key.get("color")
            assert (color is not None) == bool(re.search(r"(%|percent) in ", question))
            assert bool(by_key.get("fade")) == ("slowly" in question)


def test_a_schema_is_dressed_in_many_ways_and_always_valid() -> None:
    [lamp] = read_functions(LAMP)
    rng = Random(1)
    tools = [dress(lamp, rng).tool["function"] for _ in range(60)]
    assert len({tool["name"] for tool in tools}) >= 4
    assert len({json.dumps(tool) for tool in tools}) >= 40
    for tool in tools:
        assert examples.NAME.fullmatch(tool["name"])
        assert {"room"} <= set(tool["parameters"]["required"]) <= set(tool["parameters"]["properties"])


@pytest.mark.parametrize(
    ("pool", "form", "said", "value"),
    [
        ("percent 5..5", "decimal", r"5(%| percent)", 0.05),
        ("percent 5..5", "percent", r"5(%| percent)", 5),
        ("money 2000..2000", "", r"\$2,?000|2,?000 dollars", 2000),
        ("enum (fahrenheit~degrees Fahrenheit)", "", "degrees Fahrenheit", "fahrenheit"),
    ],
)
def test_values_are_normalised_as_their_form_says(pool: str, form: str, said: str, value: object) -> None:
    for seed in range(20):
        drawn = draw(parse_pool(pool), Random(seed), form)
        assert re.fullmatch(said, drawn.surface)
        assert drawn.value == value


def test_dates_times_places_currencies_and_formulas_take_the_form_asked_for() -> None:
    shapes = {
        ("date", "iso"): r"\d{4}-\d\d-\d\d",
        ("date", "us"): r"\d\d/\d\d/\d{4}",
        ("clock", "24h"): r"\d\d:\d\d",
        ("citystate", "state"): r".+, [A-Z]{2}",
        ("currency", "code"): r"[A-Z]{3}",
        ("expr", "python"): r"[^\^]+",
    }
    for (kind, form), shape in shapes.items():
        assert form in FORMS[kind]
        for seed in range(30):
            assert re.fullmatch(shape, draw(parse_pool(kind), Random(seed), form).value)


def test_a_bad_line_of_a_domain_file_is_refused_with_the_line() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        read_functions(LAMP.replace("{color}", "{nowhere}"))
    with pytest.raises(ValueError, match="unknown pool"):
        read_functions(LAMP.replace("color? color", "color? colour"))
    with pytest.raises(ValueError, match="cannot read"):
        read_functions(LAMP.replace(" : Room", ""))


TOOL = {
    "type": "function",
    "function": {
        "name": "area",
        "description": "Area of a field",
        "parameters": {"type": "object", "properties": {"side": {"type": "integer"}}, "required": ["side"]},
    },
}


def example(arguments: dict[str, object], *, name: str = "area", question: str = "Area of side 4?") -> Example:
    messages = [{"role": "user", "content": question}, answer_with_calls([(name, arguments)])]
    return Example("x", "synthetic", "single", messages, [TOOL])


def test_a_planted_broken_item_is_refused_with_its_reason() -> None:
    assert problem(example({"side": 4})) is None
    assert problem(example({"side": 5})) == "side = 5 of area is not in the question"
    assert "is not of type 'integer'" in str(problem(example({"side": "4"})))
    assert "'side' is a required property" in str(problem(example({})))
    assert problem(example({"side": 4, "top": 4})) == "area has no parameter top"
    assert problem(example({"side": 4}, name="volume")) == "volume is not among the tools"
    twice = [{"role": "user", "content": "4?"}, answer_with_calls([("area", {"side": 4})] * 2)]
    assert problem(Example("x", "synthetic", "parallel", twice, [TOOL])) == "two of its calls are the same"
    silent = [{"role": "user", "content": "4?"}, {"role": "assistant", "content": ""}]
    assert problem(Example("x", "synthetic", "no_tool", silent, [TOOL])) == (
        "its last message is not an assistant's call or text"
    )
    assert {"single", "multiple"} <= set(CALLS)


def test_a_planted_leak_is_removed_and_counted() -> None:
    asked = "Please tell me how large the square field behind our old house with a side of 4 meters really is"
    against = Evaluation(frozenset(spans(asked)), frozenset({plain_name("fields.get")}), frozenset())
    whole = example({"side": 4}, question=f"Hello! {asked}, thank you")
    short = example({"side": 4}, question="How large is a square with side 4?")
    named = Example(
        "y", "synthetic", "single", short.messages, [{"function": TOOL["function"] | {"name": "fieldsGet"}}]
    )
    kept, removed = remove([whole, short, named], against)
    assert kept == [short]
    assert removed == {"question": 1, "name": 1}


def test_generated_examples_that_overlap_are_replaced_so_that_the_counts_hold() -> None:
    names = frozenset(plain_name(e.tools[0]["function"]["name"]) for e in made() if e.kind == "single")
    report = data_build.Report()
    groups = data_build.synthesize(1, {"single": 12}, Evaluation(frozenset(), names, frozenset()), report)
    assert len(groups) == 12
    assert report.removed["synthetic"]["name"] > 0


def test_unknown_kinds_and_unreadable_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no kind 'double'"):
        data_build.synthesize(1, {"double": 3}, NOTHING, data_build.Report())
    with pytest.raises(UserError, match="run the data build first"):
        read_jsonl(tmp_path / "absent.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(UserError, match="line 1 is not an example"):
        read_jsonl(tmp_path / "bad.jsonl")


def test_tokens_that_neighbours_share_are_counted_once() -> None:
    # a b c x, a b c y, a b d: six distinct positions in one batch; two batches share nothing.
    sequences = [[1, 2, 3, 8], [1, 2, 3, 9], [1, 2, 4]]
    assert data_build.distinct_tokens(sequences, batch=3) == 6
    assert data_build.distinct_tokens(sequences, batch=1) == 11
    assert data_build.distinct_tokens([[1, 2], [1, 2]], batch=2) == 2


def test_stats_count_kinds_and_shares() -> None:
    found = made()
    counted = data_build.stats(found)
    assert counted["examples"] == len(found) == sum(counted["kinds"].values())
    calls = sum(e.kind in CALLS for e in found)
    assert counted["no_call_share"] == pytest.approx(1 - calls / len(found), abs=0.001)
