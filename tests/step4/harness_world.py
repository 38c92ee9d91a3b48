"""A small evaluation: toy tasks of 16 items, and an endpoint whose models differ in what they know.

with served_models() as served:                # over HTTP, as any endpoint
    install(monkeypatch, served, tmp_path)     # and as if it were the embedded engine
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared import bfcl
from shared.endpoint import Endpoint
from shared.errors import UserError
from step4_finetune import columns
from step4_finetune.evaluation.task import Answer, Item, Score, Task, spread
from step4_finetune.evaluation.tasks.bfcl import of_items
from step4_finetune.evaluation.tasks.graded import graded
from step4_finetune.grader_data import GraderItem
from tests.shared.scripted_endpoint import Said, Served, question, scripted_endpoint

CITIES = ["Oslo", "Lima", "Rome", "Cairo", "Quito", "Bern", "Accra", "Delhi"]
SONGS = ["rain", "snow", "wind", "sun", "moon", "stars", "hail", "fog"]
# How many of the eight cities each model says rightly, and how likely it begins a call where none is right.
KNOWS = {"base": (1, 0.2), "prompt": (2, 0.2), "tuned": (6, 0.3), "SFT": (6, 0.3), "SFT + DPO": (7, 0.3)}
# Of the tiny Llama that carry its LoRA; (inputs, outputs).
MATRICES = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 32), "mlp.down_proj": (96, 64)}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def tools_task(limit: int | None = None) -> Task:
    """Eight questions with a call and eight without, in the leaderboard's form."""

    def line(name: str, text: str) -> dict[str, Any]:
        return {"id": name, "question": [[{"role": "user", "content": text}]], "function": [WEATHER]}

    items = [
        bfcl.make_item(
            "simple_python",
            line(f"simple_{n}", f"How is the weather in {city} </script><img src=x> today?"),
            {"ground_truth": [{"get_weather": {"city": [city]}}]},
        )
        for n, city in enumerate(CITIES)
    ]
    items += [
        bfcl.make_item("irrelevance", line(f"none_{n}", f"Sing about the {song}"), None) for n, song in enumerate(SONGS)
    ]
    task = of_items("bfcl", items)
    return Task(task.name, spread(task.items, limit), task.strategies, task.score, task.positive)


def grades_task(limit: int | None = None) -> Task:
    items = [
        GraderItem(f"g{n}", f"Who rules {c}?", f"{c} is far.", "", n % 2 == 0, "own") for n, c in enumerate(CITIES)
    ]
    return graded("relevant", "relevant", items, limit)


def short_task(limit: int | None = None) -> Task:
    """Questions that fit the tiny models' 128 tokens."""
    items = [Item(f"s{n}", "short", [{"role": "user", "content": f"{c}?"}], n % 2 == 0) for n, c in enumerate(CITIES)]

    def score(item: Item, answer: Any, threshold: float) -> Score:
        right = (answer.probability >= threshold) == item.gold
        return Score(right, "" if right else "wrong")

    return Task("answerable", spread(items, limit), ("choice",), score, lambda item: bool(item.gold))


TASKS = {"bfcl": tools_task, "relevant": grades_task, "answerable": short_task}


def load(name: str, limit: int | None = None) -> Task:
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}")
    return TASKS[name](limit)


def said(request: dict[str, Any]) -> Said:
    """What a model says: it depends on its name, on whether a prompt stands before the question, and on the item."""
    model = request["model"]
    if model not in KNOWS:
        model = "base" if len(request["messages"]) == 1 else "prompt"
    known, false_call = KNOWS[model]
    asked = question(request)
    number = next(i for i, word in enumerate(CITIES + SONGS) if word in asked)
    if "Passage:" in asked:
        yes = 0.6 + 0.3 * (number % 2 == 0) if number < known else 0.5 + 0.02 * number
        return Said(first={"yes": yes, "no": 1 - yes})
    if not request.get("stream"):
        call = 0.9 if number < 8 else false_call
        return Said(first={"<tool_call>": call, "I": 1 - call})
    right = number < known
    city = CITIES[number % 8] if right else "Paris \x1b[31m<b>&amp;"
    return Said(calls=(("get_weather", {"city": city}),))


def served_models() -> AbstractContextManager[Served]:
    return scripted_endpoint(said)


def fake_similarity(items: Sequence[Item]) -> list[Answer]:
    """Cosines without an embedding model: they rank a little."""
    return [Answer(i.id, i.digest, probability=0.5 + 0.1 * i.gold.label - 0.03 * (n % 5)) for n, i in enumerate(items)]


def use_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the toy tasks in the place of the real ones."""
    monkeypatch.setattr("step4_finetune.evaluation.tasks.load_task", load)
    monkeypatch.setattr("step4_finetune.evaluation.tasks.relevant.by_similarity", fake_similarity)
    columns.task_of.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, served: Served, folder: Path) -> list[str]:
    """Answer as the embedded engine does; return the list of adapters, as they get loaded."""
    use_tasks(monkeypatch)
    loaded: list[str] = []
    directory = folder / "smollm2-135m"
    directory.mkdir(exist_ok=True)

    def add_adapter(path: Path, name: str | None = None) -> str:
        loaded.append(name or path.name)
        return loaded[-1]

    @contextmanager
    def connect(model: str | None = None, adapters: Any = (), *, quiet: bool = False) -> Iterator[Endpoint]:
        loaded.extend(path.name for path in adapters)
        engine: Any = SimpleNamespace(
            model=SimpleNamespace(name="smollm2-135m", directory=directory, add_adapter=add_adapter)
        )
        yield Endpoint(served.base_url, "unused", "smollm2-135m", "", engine)

    monkeypatch.setattr("shared.endpoint.connect", connect)
    monkeypatch.setattr("shared.models.resolve", lambda spec: directory)
    return loaded


def write_adapter(folder: Path, words: str = "weights") -> Path:
    """A directory that counts as an adapter wherever its matrices are not looked at."""
    folder.mkdir(parents=True)
    configuration = {"peft_type": "LORA", "base_model_name_or_path": "smollm2-135m", "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    (folder / "adapter_model.safetensors").write_bytes(words.encode())
    return folder


def write_training(run: Path, data: Path, start: Path | None = None) -> Path:
    """A finished training run: adapter, recipe.json, training.json. start: the adapter that DPO began with."""
    import hashlib

    adapter = write_adapter(run / "adapter", f"weights of {run.name}")
    sha = hashlib.sha256(data.read_bytes()).hexdigest()
    recipe = {"model_name_or_path": "smollm2-135m", "learning_rate": 6e-4, "seed": 0, "data_sha256": sha}
    history: list[dict[str, Any]] = [
        {"step": step, "loss": 2.0 / step, "grad_norm": 1.5 / step**0.5, "learning_rate": 1e-4} for step in range(1, 31)
    ]
    numbers: dict[str, Any] = {
        "adapter": str(adapter), "left_out": 1, "steps": 30, "first_loss": 2.0, "last_loss": 0.07, "seconds": 90.0,
        "tokens_per_second": 270.0, "resumed_from": 12, "hardware": {"cpu": "Test CPU", "cores": 2},
        "versions": {"python": "3.11", "torch": "2.13.0"},
    }  # fmt: skip
    if start is None:
        numbers |= {"examples": 12, "tokens": 620, "trained_tokens": 94}
    else:
        recipe["adapter_sha256"] = hashlib.sha256((start / "adapter_model.safetensors").read_bytes()).hexdigest()
        numbers |= {"pairs": 7, "accuracy": 0.8, "margin": 0.3}
        history = [
            row | {"rewards/chosen": 0.1 * row["step"], "rewards/rejected": -0.1 * row["step"]} for row in history
        ]
    (run / "recipe.json").write_text(json.dumps(recipe))
    (run / "training.json").write_text(json.dumps(numbers | {"history": [*history, {"step": 30, "train_loss": 1.0}]}))
    return adapter


def write_lora(folder: Path, base: str) -> Path:
    """A LoRA directory for the tiny Llama as peft writes it, with matrices that matter."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    configuration = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 4, "lora_alpha": 8,
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "target_modules": [name.split(".")[1] for name in MATRICES],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    noise = torch.Generator().manual_seed(4)
    tensors = {}
    for layer in range(3):
        for name, (inputs, outputs) in MATRICES.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, inputs, generator=noise) / inputs**0.5
            tensors[f"{prefix}.lora_B.weight"] = 0.2 * torch.randn(outputs, 4, generator=noise)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
