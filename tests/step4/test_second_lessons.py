"""The later hours' questions: right like the first one's, of the kinds that adapters got wrong, over more functions.

python -m pytest tests/step4/test_second_lessons.py
"""

import re
from random import Random

from step4_finetune import data_build
from step4_finetune.decontaminate import Evaluation
from step4_finetune.examples import CALLS, NO_CALLS, Example, answer_with_calls, problem
from step4_finetune.function_specs import HELD_OUT, functions, later_functions
from step4_finetune.generator import Generator
from step4_finetune.second_lessons import SecondGenerator
from step4_finetune.value_pools import WORDS

NOTHING = Evaluation(frozenset(), frozenset(), frozenset())


def made(maker: type[Generator] = SecondGenerator, **counts: int) -> list[Example]:
    wanted = counts or dict.fromkeys(data_build.MIXTURE, 12)
    groups = data_build.synthesize(1, wanted, NOTHING, data_build.Report(), maker=maker)
    return [example for group in groups for example in group]


def test_every_example_passes_the_check_and_every_kind_is_there() -> None:
    found = made()
    assert {example.kind for example in found} == set(CALLS) | set(NO_CALLS)
    assert all(problem(example) is None for example in found)
    assert [example.messages for example in found] == [example.messages for example in made()]


def test_more_calls_are_wanted_than_in_the_first_hour() -> None:
    counts = {"parallel": 80, "parallel_multiple": 80}
    first, second = (
        [len(example.calls()) for example in made(maker, **counts) if example.kind.startswith("parallel")]
        for maker in (Generator, SecondGenerator)
    )
    assert sum(number > 2 for number in second) / len(second) > 0.6
    assert sum(number > 2 for number in first) / len(first) < 0.5


def test_the_same_but_one_argument() -> None:
    """What a question does not say again is in every call, as it was said first."""
    asked = [
        e for e in made(parallel=80) if re.search(r"(the same|do it|do it once more) (but |for |with )", e.question)
    ]
    assert len(asked) >= 5
    for example in asked:
        (name, first), *others = example.calls()
        assert others
        for other, arguments in others:
            changed = [key for key in first if arguments[key] != first[key]]
            assert (other, arguments.keys(), len(changed)) == (name, first.keys(), 1)


def test_a_story_of_several_cases_speaks_of_optional_arguments_too() -> None:
    stories = [e for e in made(parallel=120) if re.search(r"\bthe first (has|comes with)", e.question, re.IGNORECASE)]
    assert len(stories) >= 5
    optional = 0
    for example in stories:
        parameters = example.tools[0]["function"]["parameters"]
        for _, arguments in example.calls():
            optional += len(arguments.keys() - set(parameters["required"]))
    assert optional > 0


def test_values_between_quotes_come_without_them() -> None:
    found = made(single=120)
    quoted = [e for e in found if any(f"'{v}'" in e.question for _, a in e.calls() for v in a.values())]
    assert 0.05 < len(quoted) / len(found) < 0.4
    assert not [e for e in found for _, a in e.calls() for v in a.values() if str(v).startswith("'")]


def test_some_names_are_in_no_word_list() -> None:
    """They can only have been copied. The first hour's countries are all in the list."""
    assert unknown_countries(Generator) == 0
    assert 0.05 < unknown_countries(SecondGenerator) < 0.6


def unknown_countries(maker: type[Generator]) -> float:
    """The share of countries in calls that are not in the word lists."""
    known = WORDS.read_text(encoding="utf-8").lower()
    calls = [arguments for example in made(maker, single=300) for _, arguments in example.calls()]
    names = [arguments["country"] for arguments in calls if "country" in arguments]
    return sum(name.lower() not in known for name in names) / len(names)


def test_the_third_hour_asks_about_more_functions_and_none_of_the_unseen_ones() -> None:
    later = later_functions()
    assert len(later) > 2 * len(functions(held_out=False))
    names = [name for function in later for name in function.names]
    assert len(names) == len(set(names))
    known = {name for held in (False, True) for function in functions(held) for name in function.names}
    assert not known & set(names)
    assert not HELD_OUT & {function.domain for function in later}
    # Two tools of one purpose would make a question that "no tool fits" a lie.
    known = {function.does.lower() for held in (False, True) for function in functions(held)}
    purposes = [function.does.lower() for function in later]
    assert len(purposes) == len(set(purposes))
    assert not known & set(purposes)


def test_every_later_function_can_be_asked_for() -> None:
    """Once, and three times at once; nearly every question has the values that its call needs."""
    refused: list[str] = []
    for function in later_functions():
        generator = SecondGenerator([function], Random(0))
        for times in (1, 1, 3, 3):
            generator.questions.begin()
            dressed, question, calls = generator.questions.ask(function, times)
            assert len(calls) == 1 if times == 1 else len(calls) > 1, question
        answer = answer_with_calls(calls)
        messages = [{"role": "user", "content": question}, answer]
        example = Example("x", "synthetic", "parallel", messages, [dressed.tool], generator.questions.normalised)
        if found := problem(example):
            refused.append(f"{function.names[0]}: {found}")
    assert len(refused) < 0.05 * len(later_functions()), refused
