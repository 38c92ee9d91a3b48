"""The grader's data: balanced, reproducible, hard in the way it says, and nothing of the held-out side in training."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer
from step4_finetune import grader_data, grader_sources
from step4_finetune.bm25 import BM25, K1, B
from step4_finetune.collate import encode
from step4_finetune.decontaminate import spans, words
from step4_finetune.grader_data import TASKS, GraderItem, build, held_out, messages, stats, write
from step4_finetune.grader_sources import Passage, Question, content, cut, place_of, sentences
from step4_finetune.grader_statements import statements, supported, unsupported
from tests.shared.grader_world import article, write_world

COUNTS = {"relevant": 40, "grounded": 40, "answerable": 40}
LEAK = "The lamp of the seven sleepy sailors was found on a cold morning by a man with nothing but time on his hands."


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    paths = write_world(tmp_path)
    monkeypatch.setattr(grader_sources, "fetch", paths.__getitem__)
    return paths


def question_of(row: dict[str, Any]) -> str:
    text: str = row["messages"][0]["content"]
    return text.split("\nQuestion: ")[1].split("\n")[0]


def passage_of(row: dict[str, Any]) -> str:
    text: str = row["messages"][0]["content"]
    return text.removeprefix("Passage: ").split("\n\nQuestion: ")[0]


def test_the_build_is_balanced_unique_and_keeps_passages_together(world: dict[str, Path]) -> None:
    rows, _ = build(1, COUNTS)
    for task in TASKS:
        answers = [row["messages"][-1]["content"] for row in rows if row["task"] == task]
        assert (len(answers), answers.count("yes")) == (40, 20)
    assert len({row["id"] for row in rows}) == len(rows)
    families = [row["family"] for row in rows]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(families))
    assert runs == len(set(families)) == len({passage_of(row) for row in rows})
    # The point of families: most passages are asked about more than once.
    assert len(rows) > 2 * runs
    assert stats(rows)["tasks"] == COUNTS
    assert stats(rows)["yes_share"] == 0.5


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(world: dict[str, Path], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(build(seed, COUNTS)[0], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_rows_are_what_the_trainer_reads(world: dict[str, Path], tiny_llama: Path) -> None:
    tokenizer = ChatTokenizer(tiny_llama)
    rows, _ = build(1, COUNTS)
    for row in rows[:10]:
        example = encode(row, tokenizer)
        assert tokenizer.decode(example.completion) in ("yes<|im_end|>", "no<|im_end|>")
    counted = stats(rows, tokenizer)["tokens"]
    assert counted["computed"] < 0.7 * counted["all"]


def test_a_question_ends_the_prompt_and_the_passage_begins_it() -> None:
    item = GraderItem("1", "Who won?", "Ann won.", "Ann.", True)
    assert messages("grounded", item)[0]["content"] == (
        "Passage: Ann won.\n\nQuestion: Who won?\nAnswer: Ann.\nDoes the passage support the answer? Answer yes or no."
    )
    others = [messages(task, GraderItem("1", "Who won?", "Ann won.", "", True))[0]["content"] for task in TASKS]
    assert len({text[:30] for text in others}) == 1
    assert len(set(others)) == 3
    with pytest.raises(UserError, match="no task 'nice'; choose one of relevant, grounded, answerable"):
        messages("nice", item)


def test_nothing_of_the_held_out_side_is_in_training(world: dict[str, Path]) -> None:
    rows, _ = build(1, {"relevant": 60, "grounded": 60, "answerable": 60})
    trained = {passage_of(row).split("\n")[-1] for row in rows}
    asked = {question_of(row) for row in rows}
    for task in TASKS:
        items = held_out(task, 1)
        assert len(items) >= 16
        assert not {item.passage for item in items} & trained
        assert not {item.question for item in items} & asked
    evaluated = [item.passage for task in TASKS for item in held_out(task, 1)]
    assert not set().union(*map(spans, trained)) & set().union(*map(spans, evaluated))


def test_a_planted_leak_is_removed_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = article(0)[0]["passage"]
    planted = [
        {"title": "Lamps", "question": "is the lamp found", "passage": LEAK},
        {"title": "Copies", "question": "is this a copy", "passage": f"As others have said long ago: {own}"},
        {
            "title": "Asks",
            "question": "Who found the lamp",
            "passage": LEAK.replace("seven", "nine").replace("cold", "hot"),
        },
    ]
    paths = write_world(tmp_path, planted)
    monkeypatch.setattr(grader_sources, "fetch", paths.__getitem__)
    rows, removed = build(1, COUNTS)
    assert removed == {"boolq passages": 2, "boolq questions": 1}
    assert not any("sleepy sailors" in passage_of(row) or "long ago" in passage_of(row) for row in rows)


def test_held_out_pairs_alternate_and_their_no_is_of_another_article(world: dict[str, Path]) -> None:
    items = held_out("relevant", 1)
    assert [item.label for item in items] == [True, False] * (len(items) // 2)
    titles = {grader_sources.tidy(row["passage"]): row["title"] for n in range(40) for row in article(n)}
    for yes, no in zip(items[::2], items[1::2], strict=True):
        assert yes.question == no.question
        assert titles[yes.passage] != titles[no.passage]
    assert items == held_out("relevant", 1)
    assert items != held_out("relevant", 2)
    assert all(bool(item.answer) == (task == "grounded") for task in TASKS for item in held_out(task, 1))


def test_answerable_asks_within_the_article_or_story(world: dict[str, Path]) -> None:
    rows, _ = build(1, {"answerable": 60})
    assert {row["kind"] for row in rows} == {"own", "same article", "same story"}
    for row in rows:
        shared = content(question_of(row)) & content(passage_of(row))
        assert shared or row["kind"] == "same story"


def test_too_many_rows_and_unknown_tasks_are_refused(world: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="relevant rows, not 10000; ask for fewer"):
        build(1, {"relevant": 10_000})
    with pytest.raises(UserError, match="no task 'fluent'"):
        build(1, {"fluent": 10})


def test_a_file_of_another_shape_is_named(world: dict[str, Path]) -> None:
    (world["boolq"] / "dev.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(UserError, match="dev.jsonl is not in the form this step knows"):
        build(1, COUNTS)
    (world["boolq"] / "dev.jsonl").write_text("{")
    with pytest.raises(UserError, match="dev.jsonl is not JSON lines"):
        build(1, COUNTS)


# -- statements -----------------------------------------------------------------------------------------------------

TOWER = "In 1889, the tower (by Gustave Eiffel) was opened to visitors from Japan."
PASSAGE = (
    f"{TOWER} It has 3 floors and 1665 steps. The mayor came from Lyon. Dinner was served at 20 tables in the hall."
)


def test_changed_statements_are_changed_in_one_thing_that_the_passage_does_not_say() -> None:
    kinds = Counter[str]()
    for seed in range(200):
        made = unsupported(TOWER, PASSAGE, "Trains from Norway go to Spain every day of the week.", Random(seed))
        assert made is not None
        statement, kind = made
        kinds[kind] += 1
        before, after = set(words(TOWER)), set(words(statement))
        if kind == "number":
            [new] = after - before
            assert new.isdigit()
        elif kind == "name":
            assert after & {"lyon", "norway", "spain"}
        else:
            assert after - before == {"not"}
            assert "was not opened" in statement
    assert min(kinds[kind] for kind in ("number", "name", "negation")) > 20


def test_supported_statements_say_the_same() -> None:
    said = {supported(TOWER, Random(seed)) for seed in range(20)}
    assert said == {TOWER, "The tower was opened to visitors from Japan in 1889."}
    plain = "The mayor came from Lyon."
    assert {supported(plain, Random(seed)) for seed in range(20)} == {plain}


def test_a_negation_is_taken_out_where_there_is_one_and_nothing_is_said_of_nothing() -> None:
    found = {unsupported("the bridge was not finished in time.", "", "", Random(seed)) for seed in range(5)}
    assert found == {("the bridge was finished in time.", "negation")}
    assert unsupported("the people came here to look at birds.", "", "", Random(0)) is None


def test_statements_are_whole_sentences() -> None:
    found = statements(f"A title\n{PASSAGE} And (this one is broken.")
    assert found == [TOWER, "It has 3 floors and 1665 steps.", "Dinner was served at 20 tables in the hall."]
    assert sentences("Mrs. Lee met Dr. No at 5 p.m. on Monday. They left.") == [
        "Mrs. Lee met Dr. No at 5 p.m. on Monday.", "They left."
    ]  # fmt: skip


def test_windows_hold_whole_sentences_and_the_right_one_is_found() -> None:
    text = " ".join(
        f"On day {n} the sailor number {n} found a {name} under the bed." for n, name in enumerate("ABCDEFGHIJ")
    )
    windows = cut(text)
    assert all(len(window.split()) <= grader_sources.WINDOW_WORDS for window in windows)
    assert " ".join(windows) == text
    assert place_of(Question("What did sailor number 8 find?", ("h", "I")), windows) == len(windows) - 1
    assert place_of(Question("What did sailor number 8 find?", ("nothing",)), windows) is None


def test_bm25_is_the_formula() -> None:
    texts = ["red apple red", "green apple tree in a green garden", "the blue car"]
    scores = BM25(texts).scores("Is the apple red?")
    lengths = [3, 5, 2]  # without function words
    expected = [0.0, 0.0, 0.0]
    for counts in ([1, 1, 0], [2, 0, 0]):  # apple, red
        idf = math.log(1 + (3 - sum(c > 0 for c in counts) + 0.5) / (sum(c > 0 for c in counts) + 0.5))
        for i, count in enumerate(counts):
            discount = K1 * (1 - B + B * lengths[i] / (sum(lengths) / 3))
            expected[i] += idf * count * (K1 + 1) / (count + discount)
    assert scores.tolist() == pytest.approx(expected)
    assert BM25(texts).top("Is the apple red?", 5) == [0, 1]


def test_overlapping_parts_of_an_article_are_not_hard_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    from step4_finetune.grader_pairs import pairs_of

    same = "the old mill by the river was rebuilt after the great fire of the year 1850 by the town"
    facts = [
        Passage("boolq-a", "Mill", f"First, {same}. It has two wheels.", (Question("Is the mill old?"),)),
        Passage("boolq-b", "Mill", f"Then {same}. It has no roof.", (Question("Does the river have a roof?"),)),
    ]
    assert pairs_of("answerable", facts, [], Random(0)) == []


@pytest.mark.real
def test_the_default_build_is_short_clean_and_answers_in_one_token() -> None:
    from shared.models import resolve

    tokenizer = ChatTokenizer(resolve("smollm2-135m"))
    rows, removed = build(0)
    counted = stats(rows, tokenizer)
    assert counted["tasks"] == grader_data.FULL
    assert counted["yes_share"] == 0.5
    assert counted["tokens"]["mean"] < 180
    assert counted["tokens"]["computed"] < 0.5 * counted["tokens"]["all"]
    assert removed["boolq passages"] > 0
    for row in rows[:50]:
        assert len(encode(row, tokenizer).completion) == 2  # the word, and the end of the turn
    evaluation = {span for task in TASKS for item in held_out(task, 0) for span in spans(item.passage)}
    evaluation |= {span for text in grader_sources.unsolvable() for span in spans(text)}
    assert not any(spans(passage_of(row)) & evaluation for row in rows)
    assert json.dumps(rows) == json.dumps(build(0)[0])
    for task in TASKS:
        assert len(held_out(task, 0)) == grader_data.HELD_OUT
