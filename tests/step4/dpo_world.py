"""Pairs of answers that the tiny model learns in a few steps, an adapter to start from, and a recipe for both."""

import json
from pathlib import Path
from typing import Any

from step4_finetune.dpo_recipe import DpoRecipe, load_dpo_recipe
from tests.step4.training_rows import rows


def pair_rows(count: int = 10) -> list[dict[str, Any]]:
    """Right answers begin with "the", wrong ones do not: something that can be learnt in a few steps."""
    result = []
    for row in rows(count):
        *prompt, answer = row["messages"]
        wrong = {"role": "assistant", "content": f"a {answer['content'].removeprefix('the ')} or so"}
        pair = {"id": row["id"], "messages": prompt, "tools": None, "chosen": answer, "rejected": wrong}
        result.append(pair)
    return result


def write_adapter(folder: Path, model: Path, rank: int = 4, seed: int = 5) -> Path:
    """A LoRA directory as training leaves it, with small random matrices."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from step4_finetune.trainer import save_adapter

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    save_adapter(adapted, folder, str(model))
    return folder


def write_run(folder: Path, model: Path, adapter: Path, **values: Any) -> Path:
    """Write pairs and a recipe into `folder`; return the recipe's path. Its output_dir is folder/out."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
    recipe = {
        "model_name_or_path": str(model),
        "adapter": str(adapter),
        "data": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / "out"),
        "dtype": "float32",
        "beta": 0.3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "max_length": 128,
        "seed": 3,
        "checkpoint_minutes": 0,
    } | values
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    return path


def read(path: Path) -> DpoRecipe:
    return load_dpo_recipe(path, [])
