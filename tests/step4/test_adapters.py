"""What becomes of an adapter: merged it says the same, published it says where it comes from.

python -m pytest tests/step4/test_adapters.py
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harness_world import install, served_models, write_adapter, write_lora, write_training
from safetensors.torch import load_file

from shared.errors import UserError
from step4_finetune import adapters
from step4_finetune.adapters import merge, publish
from step4_finetune.card import card_of
from step4_finetune.cli import main
from step4_finetune.columns import adapter_column, base_columns, measure
from step4_finetune.record import record, record_regressions

# -- merging -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "adapter", str(tiny_llama))


@pytest.fixture(scope="module")
def merged(lora: Path) -> Path:
    return merge(lora, lora.parent / "merged")


def logits(model: str, adapter: Path | None) -> torch.Tensor:
    """What the embedded engine's model says after a sentence."""
    from shared.models import load

    loaded = load(model, adapter=adapter, dtype="float32", quiet=True)
    ids = torch.tensor(loaded.tokenizer.encode("The capital of Japan is"))
    lora = next(iter(loaded.adapters.values()), None)
    hidden = loaded.transformer.forward(ids, [loaded.transformer.new_cache()], [len(ids)], lora)
    return loaded.transformer.logits(hidden)


def test_a_merged_model_is_the_base_with_the_adapter(merged: Path, lora: Path, tiny_llama: Path) -> None:
    expected, plain = logits(str(tiny_llama), lora), logits(str(tiny_llama), None)
    error = (logits(str(merged), None) - expected).abs().mean()
    assert error < 0.02 * (expected - plain).abs().mean()  # rounded to bfloat16, once
    assert (merged / "chat_template.jinja").read_text() == (tiny_llama / "chat_template.jinja").read_text()
    assert (merged / "tokenizer.json").read_bytes() == (tiny_llama / "tokenizer.json").read_bytes()
    assert {tensor.dtype for tensor in load_file(merged / "model.safetensors").values()} == {torch.bfloat16}


def test_merging_over_something_and_of_nothing_is_refused(merged: Path, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists; choose another directory"):
        merge(lora, merged)
    with pytest.raises(UserError, match="is not an adapter: adapter_config.json is missing"):
        merge(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -- publishing --------------------------------------------------------------------------------------------------------


def test_publishing_copies_and_replaces_in_whole(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    (adapter / "optimizer.pt").touch()
    target = publish(adapter, "tools", "# card\n", tmp_path / "published")
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    publish(write_adapter(tmp_path / "b", "others"), "tools", "# new\n", tmp_path / "published")
    assert (target / "README.md").read_text() == "# new\n"
    assert (target / "adapter_model.safetensors").read_text() == "others"
    assert [path.name for path in target.parent.iterdir()] == ["tools"]


def test_what_is_too_large_or_none_is_refused_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = publish(write_adapter(tmp_path / "a"), "tools", "# card\n", tmp_path / "published")
    monkeypatch.setattr(adapters, "MAX_BYTES", 3)
    with pytest.raises(UserError, match="train with a smaller lora_r"):
        publish(tmp_path / "a", "tools", "", tmp_path / "published")
    (tmp_path / "a/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"):
        publish(tmp_path / "a", "tools", "", tmp_path / "published")
    assert (target / "README.md").read_text() == "# card\n"


# -- the card ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """out/step4 after data, SFT, DPO and an evaluation of both."""
    import shared.endpoint

    folder = tmp_path_factory.mktemp("step4")
    (folder / "tools").mkdir()
    for name in ("train.jsonl", "pairs.jsonl"):
        (folder / "tools" / name).write_text(f"{name}\n")
    report = {
        "files": {"train.jsonl": {}},
        "refused": {"synthetic": {"a value is not in the question": 11}},
        "removed": {"bfcl-live": {"name": 44}},
    }
    (folder / "tools/report.json").write_text(json.dumps(report))
    sft = write_training(folder / "tools_sft", folder / "tools/train.jsonl")
    dpo = write_training(folder / "tools_dpo", folder / "tools/pairs.jsonl", sft)
    with pytest.MonkeyPatch.context() as patch, served_models() as served:
        install(patch, served, folder)
        with shared.endpoint.connect() as endpoint:
            columns = base_columns(endpoint, "bfcl", ["none", "best"], "base")
            columns += [adapter_column(endpoint, sft, "SFT"), adapter_column(endpoint, dpo, "SFT + DPO")]
            record(folder / "eval", "bfcl", [measure(endpoint, c, "bfcl", folder / "eval") for c in columns])
        yield folder


def test_a_card_says_data_recipe_hardware_time_figures_and_limits(work: Path) -> None:
    from step4_finetune.evaluation.regressions import Change
    from step4_finetune.evaluation.runner import weights_digest

    adapter = work / "tools_dpo/adapter"
    lost = Change("piqa", 100, 60.0, 55.0, -5.0, (-9.0, -1.0), 0.02)
    record_regressions(work / "eval", "tools_dpo", str(adapter), weights_digest(adapter), [lost])
    card = card_of(adapter, "tools", work / "eval")
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["base_model"], front["library_name"]) == ("smollm2-135m", "peft")
    assert "| SFT + DPO | 87.5 [" in card
    assert "| base, best prompt | 25.0 [" in card
    assert "| SFT |" not in card  # another adapter's figures
    assert "- simple_python: +62.5 points" in card
    assert "Against base, best prompt:" in card
    assert card.index("### tools_sft") < card.index("### tools_dpo")  # in the order of training
    assert "12 conversations (1 left out as too long)" in card
    assert "7 pairs" in card
    assert "30 steps in 1.5 minutes, 270 tok/s (of the last part; resumed from step 12)" in card
    assert "hardware: Test CPU, 2 cores" in card
    assert "learning_rate: 0.0006" in card
    assert "seed 0" in card
    assert "Berkeley Function Calling Leaderboard" in card
    assert "- refused (synthetic): a value is not in the question 11" in card
    assert "- removed (bfcl-live): name 44" in card
    assert "The live categories of BFCL are training data here" in card
    assert "Fell by more than 2 points: piqa." in card
    assert str(work) not in card  # no paths of this machine


def test_no_card_without_figures_or_training(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no evaluation"):
        card_of(work / "tools_sft/adapter", "tools", tmp_path)
    with pytest.raises(UserError, match="holds no finished training"):
        card_of(write_adapter(tmp_path / "run/adapter"), "tools", work / "eval")
    # Trained again since: the figures are of another model.
    later = write_training(tmp_path / "tools_sft", work / "tools/train.jsonl")
    (later / "adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="is not measured in"):
        card_of(later, "tools", work / "eval")


# -- from the command line ---------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["step4", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_publish_and_merge_are_verbs(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adapters, "PUBLISHED", tmp_path / "published")
    words: list[Any] = ["publish", work / "tools_sft/adapter", "--evaluation", work / "eval"]
    assert run(monkeypatch, *words, "--name", "tools") == 0
    assert f"adapter: {tmp_path}/published/tools" in capsys.readouterr().out
    assert "# tools" in (tmp_path / "published/tools/README.md").read_text()
    for name in ("../tools", "", "a b", ".hidden"):  # the name becomes a directory that is replaced
        assert run(monkeypatch, *words, "--name", name) == 2
    assert "use small letters" in capsys.readouterr().err
    monkeypatch.setattr("step4_finetune.adapters.merge", lambda adapter, to, model: to)
    assert run(monkeypatch, "merge", "tools", "--to", tmp_path / "m", "--json") == 0  # a published name
    assert json.loads(capsys.readouterr().out) == {"model": str(tmp_path / "m")}
    assert run(monkeypatch, "merge", "nothing", "--to", tmp_path / "m") == 2
    assert "shared/adapters holds tools" in capsys.readouterr().err
