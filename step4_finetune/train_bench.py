"""Training speed: this trainer beside a plain SFTTrainer, same model, data, batches, dtype and start, step by step.

    python -m step4_finetune.train_bench RECIPE.yaml --steps 8

The two take turns at every batch, so that whatever else the machine does hits both; the ratio is what counts. Speed is
tokens of the conversations per second (padding and shared beginnings are not counted twice), one optimiser step in all.
`trl defaults` has gradient checkpointing on, as trl does; `trl` has it off, which is the fairer opponent.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.terminal import print_json, run, say


@dataclass
class Row:
    """One trainer: its loss and tokens per second at every step, and the median speed relative to `trl`."""

    name: str
    losses: list[float]
    tokens_per_second: list[float]
    ratio: float = 1.0

    @property
    def best(self) -> float:
        return max(self.tokens_per_second)


def measure(recipe_path: Path, overrides: list[str], steps: int, defaults: bool = False) -> list[Row]:
    """Train `steps` batches with each trainer in turn; return a row per trainer, `trl` first.

    defaults: also measure trl as it comes, with gradient checkpointing.
    """
    from shared.models import resolve
    from shared.tokenizer import ChatTokenizer
    from step4_finetune.collate import read_examples
    from step4_finetune.recipe import load_recipe
    from step4_finetune.trainer import CompletionTrainer, FamilySampler

    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(recipe_path, [*overrides, f"output_dir={folder}", "report_to=none"])
        directory = resolve(str(recipe.model.model_name_or_path))
        examples, _ = read_examples(Path(recipe.extra.data), ChatTokenizer(directory), int(recipe.training.max_length))
        trainers: dict[str, Any] = {"trl": _plain(recipe, directory, examples, checkpointing=False)}
        if defaults:
            trainers["trl defaults"] = _plain(recipe, directory, examples, checkpointing=True)
        ours = load_recipe(recipe_path, [*overrides, f"output_dir={folder}", "report_to=none"])
        trainers["this trainer"] = CompletionTrainer(ours, directory, examples)
        order = list(FamilySampler(trainers["this trainer"]))
        size = recipe.training.per_device_train_batch_size
        batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)][:steps]
        rows = {name: Row(name, [], []) for name in trainers}
        for trainer in trainers.values():
            trainer.create_optimizer()
        for number, batch in enumerate(batches, start=1):
            tokens = sum(len(examples[i]) for i in batch)
            for name, trainer in trainers.items():
                start = time.perf_counter()
                loss = _step(trainer, batch)
                rows[name].tokens_per_second.append(tokens / (time.perf_counter() - start))
                rows[name].losses.append(loss)
            say(f"{number}/{len(batches)}  {tokens} tokens  " + "  ".join(
                f"{r.name}: {r.tokens_per_second[-1]:.0f} tok/s, loss {r.losses[-1]:.4f}" for r in rows.values()
            ))  # fmt: skip
        for row in rows.values():
            pairs = zip(row.tokens_per_second, rows["trl"].tokens_per_second, strict=True)
            row.ratio = statistics.median(a / b for a, b in pairs)
    return list(rows.values())


def _plain(recipe: Any, directory: Path, examples: list[Any], *, checkpointing: bool) -> Any:
    """SFTTrainer as its documentation has it, on the same token ids: random order, padded, its own loss."""
    import copy

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, set_seed
    from trl import SFTTrainer

    from step4_finetune.trainer import choose_dtype, load_tokenizer

    args = copy.deepcopy(recipe.training)
    args.gradient_checkpointing, args.dataset_kwargs = checkpointing, None
    args.bf16 = choose_dtype(recipe.model.dtype) == "bfloat16"
    set_seed(args.seed)
    rows = [{"input_ids": e.prompt + e.completion, "labels": [-100] * len(e.prompt) + e.completion} for e in examples]
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(directory),
        peft_config=recipe.lora(),
    )


def _step(trainer: Any, batch: list[int]) -> float:
    """One optimiser step on these rows (constant learning rate); return the loss."""
    trainer.model.train()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in batch])
    count = (inputs["labels"] != -100).sum()
    loss = float(trainer.training_step(trainer.model, inputs, count))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return loss


def _write_results(path: Path, rows: list[Row], recipe: str) -> None:
    from shared.results import metric, write_results

    table: list[Any] = [
        {
            "name": row.name,
            "metrics": {
                "tok/s": metric(statistics.median(row.tokens_per_second), unit="tok/s"),
                "× trl": metric(row.ratio),
                "mean loss": metric(statistics.mean(row.losses)),
            },
        }
        for row in rows
    ]
    write_results(
        path,
        command=shlex.join(["python", "-m", "step4_finetune.train_bench", *sys.argv[1:]]),
        rows=table,
        n=len(rows[0].losses),
        notes=f"batches of {recipe}, each trainer in turn; tok/s and ratio are medians over the batches",
        packages=("torch", "transformers", "peft", "trl"),
    )


def main() -> None:
    """Run from the command line; --json prints the rows as one document."""
    parser = argparse.ArgumentParser(description="Measure training speed beside a plain SFTTrainer.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--defaults", action="store_true", help="also trl with gradient checkpointing, as it comes")
    parser.add_argument("--output", type=Path, help="also write them as results JSON")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.recipe, options.overrides, options.steps, options.defaults)
    for row in rows:
        say(f"{row.name:14} median {statistics.median(row.tokens_per_second):5.0f} tok/s, best {row.best:5.0f}, "
            f"{row.ratio:.2f} × trl, mean loss {statistics.mean(row.losses):.4f}")  # fmt: skip
    if options.output:
        _write_results(options.output, rows, options.recipe.name)
    if options.json:
        print_json({"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    run(main)
