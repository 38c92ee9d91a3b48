"""General ability before and after: the data in one form, figures by hand, and lm-eval itself on a tiny model."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from step4_finetune.evaluation import regression_data, regressions
from step4_finetune.evaluation.regression_data import CHOICE_TASKS, choice_rows, evenly, pieces, prepare
from step4_finetune.evaluation.regression_worker import TASKS, sample_of
from step4_finetune.evaluation.regressions import Samples, changes, measure, row, run_worker
from step4_finetune.grader_sources import Passage


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_choices_lose_their_letters_and_broken_questions_are_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        {"question": "To save money is to ", "options": "A. phone\nB. eat in", "answer": "B. eat in"},
        {"question": "Which boat", "options": "\nA. row boat\nB. sail boat?", "answer": "B. sail boat"},
        {"question": "Twice the same", "options": "A. bar\nB. bar", "answer": "B. bar"},
        {"question": "One line lost", "options": "A. bar", "answer": "A. bar"},
    )
    assert choice_rows(path, 2) == [
        {"question": "To save money is to", "choices": ["phone", "eat in"], "gold": 1},
        {"question": "Which boat", "choices": ["row boat", "sail boat"], "gold": 1},
    ]
    with pytest.raises(UserError, match="no question has 5 choices"):
        choice_rows(path, 5)


def test_questions_without_an_answer_keep_their_choices(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"question": "A man runs. he", "answer": ["stops.", "flies.", "sings.", "is."]})
    assert choice_rows(path, 4)[0] == {
        "question": "A man runs. he",
        "choices": ["stops.", "flies.", "sings.", "is."],
        "gold": 0,
    }


def test_prose_is_cut_into_pieces_of_equal_length_within_a_story(monkeypatch: pytest.MonkeyPatch) -> None:
    def story(name: str, *lengths: int) -> list[Passage]:
        return [Passage(f"{name}{i}", name, f"{name} " * n, ()) for i, n in enumerate(lengths)]

    monkeypatch.setattr(regression_data, "narrative", lambda side: [*story("a", 150, 300), *story("b", 199)])
    assert [len(text.split()) for text in pieces()] == [200, 200]
    assert {word for text in pieces() for word in text.split()} == {"a"}


def test_the_same_items_make_the_same_digest_and_a_limit_spreads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_small(tmp_path / "source", monkeypatch)
    one, two = prepare(tmp_path / "one", None), prepare(tmp_path / "two", None)
    assert one == two != prepare(tmp_path / "three", 2)
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == sorted(
        f"{path.stem}.jsonl" for path in TASKS.glob("*.yaml")
    )
    assert len((tmp_path / "three" / "piqa.jsonl").read_text().splitlines()) == 2
    assert evenly([{"i": i} for i in range(10)], 4) == [{"i": i} for i in (0, 2, 5, 7)]


def prepare_small(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six questions for each task, and four pieces of prose."""
    for name, (path, count) in CHOICE_TASKS.items():
        letters = "ABCDE"[:count]
        options = "\n".join(f"{letter}. the {letter} {name}" for letter in letters)
        rows = [{"question": f"Question {i} of", "options": options, "answer": f"A. the A {name}"} for i in range(6)]
        if name == "hellaswag":
            rows = [{"question": f"{i} men ran. they", "answer": [f"ran {c}." for c in letters]} for i in range(6)]
        write(source / path, *rows)
    monkeypatch.setattr(regression_data, "fetch", lambda _: source)
    prose = [Passage("p", "s", "the cat sat on the mat because it was warm " * 80, ())]
    monkeypatch.setattr(regression_data, "narrative", lambda side: prose)


def samples(right: str, chosen: str, nats: list[float]) -> Samples:
    """right: one letter per item, r or w, for each labelled task; chosen: HellaSwag's choices; nats per word."""
    labelled = [{"id": i, "chosen": 0, "correct": letter == "r"} for i, letter in enumerate(right)]
    return {
        "openbookqa": labelled,
        "piqa": labelled,
        "commonsenseqa": labelled,
        "hellaswag": [{"id": i, "chosen": int(c), "correct": False} for i, c in enumerate(chosen)],
        "perplexity": [{"id": i, "loglikelihood": -200 * n, "words": 200} for i, n in enumerate(nats)],
    }


def test_changes_by_hand() -> None:
    base = samples("rrrrrrrrww", "0123", [3.0, 4.0])
    tuned = samples("rrrrrrwwrw", "0121", [3.1, 4.1])
    found = {change.task: change for change in changes(base, tuned)}
    piqa = found["piqa"]
    assert (piqa.n, piqa.base, piqa.tuned) == (10, 80.0, 70.0)
    assert piqa.difference == pytest.approx(-10.0)
    assert piqa.p == 1.0  # two lost, one won: 2 · P(at most 1 of 3) = 1
    assert piqa.ci95[0] < 0 < piqa.ci95[1]
    assert piqa.fell
    same = found["hellaswag"]
    assert (same.base, same.tuned, same.difference, same.p, same.fell) == (100.0, 75.0, -25.0, None, False)
    prose = found["perplexity"]
    assert prose.base == pytest.approx(math.exp(3.5))
    assert prose.tuned == pytest.approx(math.exp(3.6))
    assert prose.difference == pytest.approx(100 * (math.exp(0.1) - 1))
    assert prose.ci95 == pytest.approx((prose.difference, prose.difference))  # both pieces changed alike
    assert not prose.fell


def test_two_points_are_tolerated() -> None:
    base, tuned = samples("r" * 100, "0", [3.0]), samples("r" * 98 + "ww", "0", [3.0])
    assert not any(change.fell for change in changes(base, tuned))
    assert all(c.fell == (c.task in ("openbookqa", "piqa", "commonsenseqa")) for c in changes(base, lost(base, 3)))


def lost(base: Samples, count: int) -> Samples:
    return {
        name: [s | {"correct": False} if "correct" in s and s["id"] < count else s for s in entries]
        for name, entries in base.items()
    }


def test_other_items_are_not_compared() -> None:
    with pytest.raises(UserError, match="different items"):
        changes(samples("rr", "0", [3.0]), samples("rrr", "0", [3.0]))


def test_a_row_holds_every_task_with_its_interval() -> None:
    base, tuned = samples("rrrw", "0123", [3.0, 4.0]), samples("rrww", "0122", [3.0, 4.5])
    metrics = row("SFT", base, tuned)["metrics"]
    assert metrics["PIQA"]["value"] == 50.0
    assert metrics["HellaSwag, same choice as base"]["value"] == 75.0
    assert metrics["word perplexity"]["value"] == pytest.approx(math.exp(3.75))
    assert metrics["word perplexity"]["ci95"] == pytest.approx([math.exp(3.0), math.exp(4.5)])
    assert row("base", base, base)["metrics"]["HellaSwag, same choice as base"]["value"] == 100.0


def test_a_sample_keeps_the_choice_that_is_likeliest_per_character() -> None:
    sample = {
        "doc_id": 3,
        "doc": {"choices": ["no", "a long choice"]},
        "filtered_resps": [(-4.0, False), (-13.0, False)],  # -2 and -1 per character
        "acc_norm": 1.0,
    }
    assert sample_of(sample) == {"id": 3, "chosen": 1, "correct": True}
    prose = {"doc_id": 0, "doc": {"text": "…"}, "word_perplexity": (-900.0, 200)}
    assert sample_of(prose) == {"id": 0, "loglikelihood": -900.0, "words": 200}


def test_a_failing_worker_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="need lm-eval"):
        run_worker(tmp_path, tmp_path / "out.json", tmp_path, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="lm-eval failed on .*exit code 1"):
        run_worker(tmp_path, tmp_path / "out.json", tmp_path, None)


@pytest.mark.real  # a tiny model, but two processes that import lm-eval: 20 s each on a busy core
def test_lm_eval_measures_a_model_and_its_adapter_offline_and_once(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_small(tmp_path / "source", monkeypatch)
    base = measure(str(tiny_llama), None, tmp_path / "out", limit=4)
    assert {len(entries) for entries in base.values()} == {4}
    assert all(s["correct"] == (s["chosen"] == 0) for name in ("piqa", "openbookqa") for s in base[name])
    assert all(s["words"] == 200 and s["loglikelihood"] < -200 for s in base["perplexity"])
    tuned = measure(str(tiny_llama), adapter(tiny_llama, tmp_path / "adapter"), tmp_path / "out", limit=4)
    assert {change.task for change in changes(base, tuned)} == set(base)
    assert base["perplexity"] != tuned["perplexity"]
    monkeypatch.setattr(regressions, "run_worker", lambda *_: pytest.fail("measured twice"))
    assert measure(str(tiny_llama), None, tmp_path / "out", limit=4) == base


def adapter(model: Path, target: Path) -> Path:
    """A random LoRA adapter, as peft writes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, local_files_only=True),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    wrapped.save_pretrained(target)
    return target
