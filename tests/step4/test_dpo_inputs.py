"""What goes into a DPO run: recipes, pairs, adapters and a machine; what does not fit is named before training.

python -m pytest tests/step4/test_dpo_inputs.py
"""

import json
from pathlib import Path

import pytest
import torch
from dpo_world import pair_rows, read, write_adapter, write_run
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer
from step4_finetune.collate import encode
from step4_finetune.dpo import train
from step4_finetune.dpo_recipe import load_dpo_recipe
from step4_finetune.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "step4_finetune/recipes"


def test_an_adapter_that_does_not_fit_is_refused(tiny_llama: Path, sft: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LoRA adapter is there; train it first"):
        train(load_dpo_recipe(write_run(tmp_path, tiny_llama, sft), ["adapter=out/none"]))
    for name, change in (("shapes", lambda w: {k: v[:2].contiguous() for k, v in w.items()}), ("part", first)):
        folder = write_adapter(tmp_path / name, tiny_llama)
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        with pytest.raises(UserError, match="is not an adapter of this model"):
            train(load_dpo_recipe(write_run(tmp_path, tiny_llama, sft), [f"adapter={folder}"]))
        (tmp_path / "out/recipe.json").unlink()


def first(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(weights.items())[:2])


def test_too_little_memory_is_said_before_training(
    tiny_llama: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.weights.available_memory", lambda: 1000)
    with pytest.raises(UserError, match="lower per_device_train_batch_size"):
        train(read(write_run(tmp_path, tiny_llama, sft)))


def test_pairs_that_are_none_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    from step4_finetune.preference_trainer import read_pairs

    tokenizer, path = ChatTokenizer(tiny_llama), tmp_path / "pairs.jsonl"
    good = pair_rows(2)[1]
    for row, reason in [
        (good | {"rejected": good["chosen"]}, "line 1: the chosen and the rejected answer are the same"),
        ({"id": "1"}, "line 1: not a pair: 'messages' is missing"),
        (good | {"chosen": good["messages"][-1]}, "the last message must be the assistant's"),
    ]:
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=reason):
            read_pairs(path, tokenizer, 128)
    path.write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    longest = max(len(encode({"id": 0, "messages": [*r["messages"], r["rejected"]]}, tokenizer)) for r in pair_rows())
    kept, left_out = read_pairs(path, tokenizer, longest - 1)
    assert (len(kept) + left_out, left_out > 0) == (10, True)
    with pytest.raises(UserError, match="no pair of at most 5 tokens"):
        read_pairs(path, tokenizer, 5)
    with pytest.raises(UserError, match="--set data=FILE"):
        read_pairs(tmp_path / "none", tokenizer, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("beta=0", "beta is 0.0; it must be above 0"),
        ("bet=1", "unknown key 'bet'; did you mean beta?"),
        ("lora_r=8", "unknown key 'lora_r'"),
        ("adapter=", "adapter is missing"),
        ("model_name_or_path=", "model_name_or_path is missing"),
        ("seed=abc", "invalid int value: 'abc'"),
        ("beta", "write --set key=value"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_dpo_recipe(write_run(tmp_path, tmp_path, tmp_path), [override])


@pytest.mark.parametrize(
    ("name", "adapter", "rate"),
    [("quick", "out/step4/tools_sft_quick/adapter", 5e-5), ("full", "shared/adapters/tools", 2e-4)],
)
def test_committed_recipes_parse(name: str, adapter: str, rate: float) -> None:
    dpo = read(RECIPES / f"tools_dpo_{name}.yaml")
    assert dpo.extra.adapter == adapter
    assert dpo.output == Path(f"out/step4/tools_dpo_{name}")
    assert (dpo.extra.beta, dpo.training.learning_rate) == (0.1, rate)
    grader = load_recipe(RECIPES / f"grader_sft_{name}.yaml", [])
    assert grader.output == Path(f"out/step4/grader_sft_{name}")
    assert (grader.lora().r, grader.lora().target_modules) == (16, "all-linear")


def test_qlora_is_refused_without_cuda_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from step4_finetune.qlora import quantization

    recipe = load_recipe(RECIPES / "qlora.yaml", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="load_in_4bit needs an NVIDIA GPU, and none is here"):
        quantization(recipe.model)
    assert quantization(load_recipe(RECIPES / "tools_sft_full.yaml", []).model) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        quantization(recipe.model)
