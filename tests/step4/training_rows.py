"""A few conversations for training tests, and a recipe for the tiny model that learns them in a second."""

import json
from pathlib import Path
from typing import Any

WORDS = ["capital", "France", "Japan", "Egypt", "warm", "cold", "door", "hello", "numbers", "café", "emoji 🙂"]


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Conversations of different lengths, pairs of which begin alike; numbers 2 and 3 have equal prompts."""
    result = []
    for i in range(count):
        question = "What is the capital of " + " ".join(WORDS[(i // 2 + k) % len(WORDS)] for k in range(1 + i // 4))
        if i not in (2, 3):
            question += f" {WORDS[i % len(WORDS)]}?"
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"the {WORDS[(3 * i) % len(WORDS)]} is {i}"},
        ]
        result.append({"id": f"row-{i}", "messages": messages})
    return result


def write_run(folder: Path, model: Path, **values: Any) -> Path:
    """Write data and a recipe into `folder`; return the recipe's path. Its output_dir is folder/out."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    recipe = {
        "model_name_or_path": str(model),
        "data": str(folder / "data.jsonl"),
        "output_dir": str(folder / "out"),
        "dtype": "float32",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target_modules": "all-linear",
        "learning_rate": 0.005,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "max_length": 128,
        "seed": 3,
        "checkpoint_minutes": 0,
    } | values
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    return path
