"""The verbs eval and compare: columns, changes, resuming, any endpoint, the embedded engine, and mistakes.

python -m pytest tests/step4/test_step4_eval.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_world import CITIES, use_tasks
from safetensors.torch import save_file

from tests.shared.scripted_endpoint import Served


@pytest.fixture
def endpoint(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """An endpoint elsewhere, as OPENAI_BASE_URL names it."""
    from shared.config import settings

    use_tasks(monkeypatch)
    monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
    settings.cache_clear()
    return served


def test_eval_of_an_endpoint_makes_the_columns_and_their_changes(step4: Any, endpoint: Served) -> None:
    arguments = ("eval", "bfcl", "--model", "base", "--adapter", "tuned", "--results", "r.json")
    done = step4(*arguments)
    assert done.code == 0, done.err
    table = {entry["label"]: entry for entry in json.loads(step4(*arguments, "--json").out)["bfcl"]}
    assert list(table) == ["base, zero-shot", "base, best prompt", "tuned"]
    shares = {label: entry["row"]["simple_python"]["value"] for label, entry in table.items()}
    assert shares == {"base, zero-shot": 12.5, "base, best prompt": 12.5, "tuned": 75.0}
    assert table["tuned"]["threshold"] == 0.5
    assert table["tuned"]["baseline"] == "base, best prompt"
    change = table["tuned"]["changes"][0]
    assert (change["group"], change["n"], change["difference"]) == ("simple_python", 8, 62.5)
    assert change["ci95"][0] > 0
    assert "tuned against base, best prompt" in done.out
    assert "simple_python: +62.5 points" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    rows = json.loads(Path("r.json").read_text())
    assert [row["name"] for row in rows["rows"]] == list(table)
    assert rows["n"] == 16


def test_eval_again_asks_nothing_and_another_adapter_joins_the_table(step4: Any, endpoint: Served) -> None:
    step4("eval", "bfcl", "relevant", "--model", "base", "--adapter", "SFT")
    asked = len(endpoint.requests)
    step4("eval", "bfcl", "relevant", "--model", "base", "--adapter", "SFT")
    assert len(endpoint.requests) == asked  # and similarity, which was there, is still no baseline
    document = json.loads(step4("eval", "bfcl", "--model", "base", "--adapter", "SFT + DPO", "--json").out)
    assert [entry["label"] for entry in document["bfcl"]][2:] == ["SFT", "SFT + DPO"]
    # Another limit is another table: columns of other items leave it.
    few = json.loads(step4("eval", "bfcl", "--model", "base", "--limit", 2, "--json").out)["bfcl"]
    assert [(entry["label"], entry["n"]) for entry in few] == [("base, zero-shot", 4), ("base, best prompt", 4)]
    record = json.loads(Path("out/step4/eval/evaluation.json").read_text())
    assert list(record["tasks"]) == ["bfcl", "relevant"]
    relevant = record["tasks"]["relevant"]
    assert [entry["label"] for entry in relevant][::3] == ["embedding similarity", "SFT"]
    assert list(relevant[0]["row"]) == ["AUROC"]  # a cosine ranks, and is no probability
    groups = [change["group"] for change in relevant[-1]["changes"]]
    assert groups[-1] == "AUROC"
    assert relevant[-1]["baseline"] == "base, best prompt"
    assert "AUROC, against embedding similarity" in groups


def test_strategy_prompt_and_threshold_are_passed_on(step4: Any, endpoint: Served) -> None:
    Path("mine.md").write_text("# system\nBe brief.\n")
    base = ("eval", "bfcl", "--model", "base", "--json")
    [native] = json.loads(step4(*base, "--strategy", "native", "--prompt", "mine.md").out)["bfcl"]
    assert (native["strategy"], native["label"]) == ("native", "base, prompt mine")
    assert endpoint.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    strict = json.loads(step4(*base, "--threshold", 0.95, "--prompt", "none").out)["bfcl"][0]
    assert strict["row"]["irrelevance"]["value"] == 100  # nobody calls with 0.95


def test_compare_shows_changes_and_items(step4: Any, endpoint: Served) -> None:
    step4("eval", "bfcl", "--model", "base", "--adapter", "tuned", "--prompt", "none")
    a, b = (next(Path("out/step4/eval").glob(f"bfcl-{name}-*.jsonl")) for name in ("base-zero-shot", "tuned"))
    done = step4("compare", a, b)
    assert done.code == 0, done.err
    assert "simple_python       12.5 →  75.0 %  +62.5" in done.out
    assert "fixed 5, broke 0" in done.out
    assert f"fixed: simple_1  How is the weather in {CITIES[1]}" in done.out
    assert "A wrong value: get_weather" in done.out
    assert "\x1b" not in done.out
    document = json.loads(step4("compare", b, a, "--json").out)
    assert len(document["broken"]) == 5
    assert document["a"]["label"] == "tuned"
    assert document["auroc"]["value"] if isinstance(document["auroc"], dict) else document["auroc"][0] <= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "poems"], "TASK 'poems': use bfcl, unseen_tools"),
        (["eval", "bfcl", "--prompt", ","], "--prompt names nothing"),
        (["eval", "bfcl", "--prompt", "nowhere"], "no prompt 'nowhere'"),
        (["eval", "bfcl", "--strategy", "choice"], "bfcl cannot be asked as choice: use constrained or native"),
        (["eval", "regressions", "--adapter", "x"], "regressions needs the weights: unset OPENAI_BASE_URL"),
        (["compare", "a.jsonl", "b.jsonl"], "a.jsonl is not a file of answers"),
        (["report"], "out/step4/eval holds no evaluation"),
    ],
)
def test_eval_mistakes_are_one_line(step4: Any, endpoint: Served, arguments: list[str], message: str) -> None:
    done = step4(*arguments, *(["--model", "base"] if arguments[0] == "eval" else []))
    assert (done.code, done.out) == (2, "")
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]


def test_two_tasks_are_not_compared(step4: Any, endpoint: Served) -> None:
    step4("eval", "bfcl", "relevant", "--model", "base", "--prompt", "none")
    files = sorted(Path("out/step4/eval").glob("*zero-shot*.jsonl"))
    done = step4("compare", *files)
    assert done.code == 2
    assert "compare one task" in done.err


def lora(folder: Path, scale: float) -> Path:
    """A LoRA on the tiny Llama's query matrices."""
    folder.mkdir(parents=True)
    configuration = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    noise = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, 64, generator=noise)
        tensors[f"{name}.lora_B.weight"] = scale * torch.randn(64, 2, generator=noise)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_the_embedded_engine_serves_two_adapters_that_are_called_alike(
    step4: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tasks(monkeypatch)
    first, second = lora(tmp_path / "one/adapter", 0.02), lora(tmp_path / "two/adapter", 0.1)
    arguments = ("eval", "answerable", "--model", tiny_llama, "-a", first, "-a", second, "--prompt", "none", "--json")
    done = step4(*arguments)
    assert done.code == 0, done.err
    table = {entry["label"]: entry for entry in json.loads(done.out)["answerable"]}
    assert list(table)[1:] == ["one", "two"]
    assert len({entry["weights"] for entry in table.values()}) == 3  # the model directory's, and the adapters'
    brier = {label: entry["row"]["Brier"]["value"] for label, entry in table.items()}
    assert len(set(brier.values())) == 3  # each column is another model
    # Trained again, the same directory is another column of answers.
    (second / "adapter_model.safetensors").unlink()
    (second / "adapter_config.json").unlink()
    second.rmdir()
    lora(second, 0.05)
    again = {entry["label"]: entry for entry in json.loads(step4(*arguments).out)["answerable"]}
    assert again["one"]["file"] == table["one"]["file"]
    assert again["two"]["file"] != table["two"]["file"]


def test_an_adapter_that_is_not_there_is_named(step4: Any, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tasks(monkeypatch)
    done = step4("eval", "answerable", "--model", tiny_llama, "--adapter", "nothing")
    assert done.code == 2
    assert "adapter nothing: neither a directory nor a published one" in done.err


def test_regressions_are_measured_per_adapter(step4: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness_world import write_adapter

    from step4_finetune.evaluation import regressions

    def measure(model: str, adapter: Path | None, folder: Path, *, limit: int) -> regressions.Samples:
        right = 6 if adapter is None else 3
        samples: regressions.Samples = {
            name: [{"id": i, "chosen": i % 2, "correct": i < right} for i in range(10)] for name in regressions.TITLES
        }
        samples["perplexity"] = [{"id": i, "loglikelihood": -100.0 - i, "words": 20} for i in range(10)]
        return samples

    monkeypatch.setattr(regressions, "measure", measure)
    adapter = write_adapter(tmp_path / "tools/adapter")
    done = step4("eval", "regressions", "--adapter", adapter, "--results", "r.json")
    assert done.code == 0, done.err
    assert "tools, general ability against the base" in done.out
    assert "FELL" in done.out
    assert [row["name"] for row in json.loads(Path("r.json").read_text())["rows"]] == ["base", "tools"]
    assert "name at least one --adapter" in step4("eval", "regressions").err
