"""The program `step4`: every verb as a person uses it, and what it says about mistakes.

python -m pytest tests/step4/test_step4_cli.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from step4_finetune import data_build, data_files, grader_data, grader_sources, pipeline
from step4_finetune.decontaminate import Evaluation, spans
from step4_finetune.dpo import Preferred
from step4_finetune.examples import Example, answer_with_calls, read_jsonl
from step4_finetune.train import Training
from tests.shared.grader_world import write_world

ROOT = Path(__file__).parents[2]
VERBS = ["train", "eval", "compare", "merge", "publish", "report", "demo", "data build", "data show", "data stats"]
LEAK = "Please tell me how many old red boats were lying in the harbour of Bergen on that cold morning"
TOOL = {
    "type": "function",
    "function": {
        "name": "count_boats",
        "description": "Count boats",
        "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}, "required": ["harbour"]},
    },
}


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(step4: Any, verb: str) -> None:
    done = step4(*verb.split(), "--help")
    assert done.code == 0
    assert f"Example: step4 {verb}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert verb.split()[-1] in step4(*verb.split()[:-1], "--help").out


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from step4_finetune import cli; print(' '.join(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {"openai", "torch", "httpx", "jsonschema", "transformers", "trl", "peft", "datasets", "numpy", "yaml"}
    assert heavy & set(loaded.stdout.split()) == set()


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tenth of the mixture; as real data one good conversation and one planted evaluation question."""
    known = Evaluation(frozenset(spans(LEAK)), frozenset(), frozenset())
    monkeypatch.setattr(data_build, "evaluation", lambda: known)
    monkeypatch.setattr(data_build, "MIXTURE", {kind: count // 30 + 1 for kind, count in data_build.MIXTURE.items()})
    monkeypatch.setattr(data_files, "QUICK_EXAMPLES", 10)

    def real() -> Iterator[Example]:
        for number, text in enumerate((f"{LEAK} in March", "How many boats are in Bergen?")):
            calls = answer_with_calls([("count_boats", {"harbour": "Bergen"})])
            yield Example(f"real-{number}", "bfcl-live", "single", [{"role": "user", "content": text}, calls], [TOOL])

    monkeypatch.setattr(data_build, "bfcl_live", real)
    monkeypatch.setattr(data_build, "glaive", lambda: iter(()))
    (tmp_path / "world").mkdir()
    monkeypatch.setattr(grader_sources, "fetch", write_world(tmp_path / "world").__getitem__)
    monkeypatch.setattr(grader_data, "FULL", {"relevant": 40, "grounded": 40})
    monkeypatch.setattr(grader_data, "QUICK", {"relevant": 10, "grounded": 10})


@pytest.mark.usefixtures("small_sources")
def test_data_build_writes_the_files_and_says_what_was_left_out(step4: Any) -> None:
    done = step4("data", "build")
    assert done.code == 0, done.err
    assert "removed, since an evaluation text has it too: bfcl-live: question 1" in done.out
    folder = Path("out/step4")
    examples, quick = read_jsonl(folder / "tools/train.jsonl"), read_jsonl(folder / "tools/train_quick.jsonl")
    assert [e.id for e in quick] == [e.id for e in examples[:10]]
    assert "real-1" in {e.id for e in examples}
    assert not any(LEAK in e.question for e in examples)
    prompts = {e.question for e in read_jsonl(folder / "tools/prompts.jsonl")}
    assert len(prompts & {e.question for e in examples if e.kind != "small_talk"}) < len(prompts) / 10
    report = json.loads((folder / "tools/report.json").read_text())
    assert report["files"]["train.jsonl"]["rows"] == len(examples)
    assert set(report["refused"]) == {"synthetic"}
    assert report["removed"]["bfcl-live"] == {"question": 1}
    grades = [json.loads(line) for line in (folder / "grader/train.jsonl").read_text().splitlines()]
    assert (len(grades), len((folder / "grader/train_quick.jsonl").read_text().splitlines())) == (80, 20)


@pytest.mark.usefixtures("small_sources")
def test_the_same_seed_gives_the_same_bytes(step4: Any) -> None:
    hashes = []
    for seed in (3, 3, 4):
        report = json.loads(step4("data", "build", "tools", "--seed", seed, "--json").out)["tools"]
        hashes.append({name: file["sha256"] for name, file in report["files"].items()})
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.usefixtures("small_sources")
def test_data_show_and_stats_are_for_eyes(step4: Any, tmp_path: Path) -> None:
    step4("data", "build")
    done = step4("data", "show", "tools", "--source", "bfcl-live")
    assert "count_boats(harbour: string)" in done.out
    assert "How many boats are in Bergen?" in done.out
    assert 'answer  count_boats({"harbour": "Bergen"})' in done.out
    assert len(json.loads(step4("data", "show", "grader", "-n", 3, "--json").out)) == 3
    assert "Is the passage relevant" in step4("data", "show", "grader", "--source", "relevant", "-n", 1).out
    counted = json.loads(step4("data", "stats", "--json").out)
    assert counted["sources"]["bfcl-live"] == 1
    assert "yes share: 0.5" in step4("data", "stats", "grader").out
    pair = read_jsonl(Path("out/step4/tools/train_quick.jsonl"))[0]
    answers = {side: {"role": "assistant", "content": f"\x1b[31m{side}"} for side in ("chosen", "rejected")}
    row = {"id": "p", "kind": "single", "messages": pair.messages[:1], "tools": pair.tools} | answers
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    shown = step4("data", "show", "pairs.jsonl").out
    assert "rejected" in shown
    assert "\x1b" not in shown  # a model's words do not command the terminal


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "build", "poems"], "there is no data set 'poems': choose tools or grader"),
        (["data", "show"], "make it with: step4 data build"),
        (["data", "show", "broken.jsonl"], "not a data file that `data build` writes"),
        (["data", "stats", "empty.jsonl"], "not a data file that `data build` writes"),
        (["data", "show", "one.jsonl", "--kind", "odd"], "the kinds are single, the sources glaive"),
    ],
)
def test_data_mistakes_are_one_line(step4: Any, arguments: list[str], message: str) -> None:
    Path("broken.jsonl").write_text('{"id": 1}\n')
    Path("empty.jsonl").touch()
    row = {"id": "x", "kind": "single", "source": "glaive", "messages": [{"role": "user", "content": "x"}]}
    Path("one.jsonl").write_text(json.dumps(row) + "\n")
    done = step4(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


# -- train -------------------------------------------------------------------------------------------------------------


TRAINED = Training("out/x/adapter", 12, 0, 620, 94, 6, 2.5, 1.5, 30.0, 270.0, 0)
PREFERRED = Preferred("out/y/adapter", 7, 0, 4, 0.69, 0.6, 0.8, 0.2, 20.0, 250.0, 0)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, list[str]]]:
    """Training without training: what would have been trained, by which module."""
    calls: list[tuple[str, Path, list[str]]] = []

    def load(kind: str) -> Any:
        return lambda path, overrides: calls.append((kind, path, overrides)) or kind

    monkeypatch.setattr("step4_finetune.recipe.load_recipe", load("sft"))
    monkeypatch.setattr("step4_finetune.dpo_recipe.load_dpo_recipe", load("dpo"))
    monkeypatch.setattr("step4_finetune.train.train", lambda recipe: TRAINED)
    monkeypatch.setattr("step4_finetune.dpo.train", lambda recipe: PREFERRED)
    return calls


def test_train_takes_a_recipe_by_name_or_file_and_knows_dpo_from_sft(
    step4: Any, trained: list[tuple[str, Path, list[str]]]
) -> None:
    done = step4("train", "tools_sft_quick", "--set", "seed=1", "--set", "num_train_epochs=1")
    assert "loss 2.500 → 1.500 in 6 steps, 30 s, 270 tok/s" in done.out
    Path("mine.yaml").write_text("adapter: out/x/adapter\ndata: pairs.jsonl\nbeta: 0.1\n")
    assert json.loads(step4("train", "mine.yaml", "--json").out)["pairs"] == 7
    step4("train", pipeline.RECIPES / "tools_dpo_full.yaml")
    step4("train", "tools_sft_second")  # starts from an adapter, but has no pairs
    kinds = [(kind, path.name, overrides) for kind, path, overrides in trained]
    assert kinds == [
        ("sft", "tools_sft_quick.yaml", ["seed=1", "num_train_epochs=1"]),
        ("dpo", "mine.yaml", []),
        ("dpo", "tools_dpo_full.yaml", []),
        ("sft", "tools_sft_second.yaml", []),
    ]


def test_a_recipe_that_is_not_there_is_named(step4: Any) -> None:
    done = step4("train", "nothing.yaml")
    assert done.code == 2
    assert "recipe nothing.yaml: cannot be read" in done.err
    assert "Traceback" not in done.err
