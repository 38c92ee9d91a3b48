"""Train an adapter further on pairs of a right and a wrong answer (DPO); kill it and the same command goes on.

    python -m step4_finetune.dpo step4_finetune/recipes/tools_dpo_quick.yaml
    python -m step4_finetune.dpo RECIPE.yaml --set beta=0.2 --set output_dir=out/try

Starts from the adapter that the recipe names, which is the reference too, and leaves in output_dir what train.py does:
adapter/, training.png, training.json, runs/ (TensorBoard), checkpoint-N/ (the last two); and reference.json.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.files import atomic_write
from shared.provenance import hardware, versions
from shared.terminal import PALETTE, print_json, run, say
from step4_finetune.train import _check_same_run, _quiet, _steps, per_step

if TYPE_CHECKING:
    from trl import SFTConfig

    from step4_finetune.dpo_recipe import DpoRecipe
    from step4_finetune.preference_trainer import PreferenceTrainer
    from step4_finetune.progress import Estimate


@dataclass(frozen=True)
class Preferred:
    """A finished run. accuracy: share of pairs whose chosen answer gained more than the rejected one.

    margin: by how much, times beta. Both, and last_loss, are means of the last ten whole steps. seconds,
    tokens_per_second: of the last process only, when it was resumed.
    """

    adapter: str
    pairs: int
    left_out: int
    steps: int
    first_loss: float
    last_loss: float
    accuracy: float
    margin: float
    seconds: float
    tokens_per_second: float
    resumed_from: int


def train(recipe: "DpoRecipe") -> Preferred:
    """Train, or go on training, what the recipe says; return the figures (also in output_dir/training.json).

    Raises UserError for bad data, for an output_dir that holds another run or a finished one, for an adapter that does
    not fit, and for too little memory; KeyboardInterrupt after Ctrl-C, with a checkpoint written.
    """
    from shared.models import choose_threads, resolve
    from shared.tokenizer import ChatTokenizer

    adapter = recipe.output / "adapter"
    if adapter.exists():
        raise UserError(f"{adapter} is trained already; delete {recipe.output} to train again, or set output_dir")
    recipe.lora()
    _check_same_run(recipe)
    directory = resolve(str(recipe.model.model_name_or_path))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(recipe.output / "runs")  # one folder, also when resumed
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries below are imported: the model is here, nothing to ask
    import torch

    from shared.config import settings
    from step4_finetune.preference_trainer import PreferenceTrainer, read_pairs
    from step4_finetune.progress import Progress
    from step4_finetune.qlora import quantization
    from step4_finetune.trainer import last_checkpoint, save_adapter

    quantization(recipe.model)
    torch.set_num_threads(int(choose_threads(settings().threads).value))
    _quiet()
    pairs, left_out = read_pairs(
        Path(recipe.extra.data), ChatTokenizer(directory), int(recipe.training.max_length or 1 << 30)
    )
    say(f"{len(pairs)} pairs; {left_out} left out as longer than max_length {recipe.training.max_length}")
    trainer = PreferenceTrainer(recipe, directory, pairs)
    checkpoint = last_checkpoint(recipe.output)
    if checkpoint is None:
        say(f"{estimate(trainer, _steps(recipe, len(pairs)))}")
    else:
        say(f"going on from {checkpoint}")
    trainer.compute_reference()
    progress = Progress(trainer, recipe.extra.checkpoint_minutes)
    trainer.add_callback(progress)
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        progress.close()
    seconds = time.perf_counter() - start
    if progress.interrupted:
        say(f"stopped at step {trainer.state.global_step}; the same command goes on from there")
        raise KeyboardInterrupt
    history = [row for row in trainer.state.log_history if "loss" in row]
    last = whole_steps(history, len(pairs), recipe.training)[-10:]
    result = Preferred(
        adapter=str(adapter),
        pairs=len(pairs),
        left_out=left_out,
        steps=trainer.state.global_step,
        first_loss=float(history[0]["loss"]),
        last_loss=statistics.mean(float(row["loss"]) for row in last),
        accuracy=statistics.mean(row["rewards/accuracies"] for row in last),
        margin=statistics.mean(row["rewards/margins"] for row in last),
        seconds=seconds,
        tokens_per_second=trainer.throughput.sequence / seconds,
        resumed_from=0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-")),
    )
    if trainer.is_world_process_zero():
        plot(history, recipe.output / "training.png")
        made = {"hardware": hardware(), "versions": versions("torch", "transformers", "peft", "trl")}
        atomic_write(
            recipe.output / "training.json", json.dumps(asdict(result) | made | {"history": history}, indent=1)
        )
        save_adapter(trainer.model, adapter, str(recipe.model.model_name_or_path))
    return result


def whole_steps(history: list[dict[str, Any]], pairs: int, training: "SFTConfig") -> list[dict[str, Any]]:
    """The history without the last step of each epoch where it had fewer pairs than the others; all, if none is left.

    One pair alone may read 1.5 where whole steps read 0.6, and would be a tenth of the mean that is reported.
    """
    size = per_step(training)
    if pairs % size == 0:
        return history
    per_epoch = pairs // size + 1
    return [row for row in history if row["step"] % per_epoch] or history


def estimate(trainer: "PreferenceTrainer", steps: int) -> "Estimate":
    """Run forward and backward through the longest batch (no update), and extrapolate to the reference and all steps.

    The order of training is another one, so the batches are only alike. Raises UserError when that batch needs more
    memory than this machine has free.
    """
    import torch

    from shared.weights import available_memory
    from step4_finetune.preference_trainer import collate_pairs
    from step4_finetune.progress import Estimate, _KeptBytes

    pairs, size = trainer.pairs, trainer.args.per_device_train_batch_size
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    computed = [collate_pairs(group)["input_ids"].shape[1] for group in groups]
    order = sorted(range(len(groups)), key=computed.__getitem__)
    kept = seconds = 0.0
    trainer.model.train()
    for place in (order[len(order) // 2], order[-1]):  # the first warms up
        batch = trainer._prepare_inputs(
            collate_pairs(groups[place]) | {"sequence_tokens": 0, "reference": torch.zeros(len(groups[place]), 2)}
        )
        start = time.perf_counter()
        with _KeptBytes(trainer.model) as counter:
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        seconds, kept = (time.perf_counter() - start) / computed[place], float(counter.bytes)
    trainer.model.zero_grad()
    trainer.throughput.computed = 0
    trainer._metrics["train"].clear()
    if trainer.args.device.type == "cpu" and kept > available_memory():
        raise UserError(
            f"the longest batch needs {kept / 1e9:.1f} GB, {available_memory() / 1e9:.1f} GB are free; "
            "lower per_device_train_batch_size (and raise gradient_accumulation_steps) or max_length"
        )
    parameters = sum(p.nbytes + (3 * p.nbytes if p.requires_grad else 0) for p in trainer.model.parameters())
    batches = steps * trainer.args.gradient_accumulation_steps
    whole = statistics.mean(computed) * batches + sum(computed) / 3  # a forward pass is a third
    shared = 1 - sum(computed) / sum(map(len, pairs))
    return Estimate(steps, seconds * whole, parameters + int(kept), shared)


def plot(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and rewards over the steps as a PNG."""
    from matplotlib.figure import Figure

    steps = [row["step"] for row in history]
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(steps, [float(row["loss"]) for row in history], color=PALETTE["blue"], linewidth=0.8)
    upper.axhline(0.6931, color=PALETTE["grey"], linewidth=0.8, linestyle="--")
    upper.set(ylabel="DPO loss per pair (dashed: log 2,\nno preference yet)", ylim=(0, None))
    for name, colour in (("chosen", "green"), ("rejected", "vermilion")):
        lower.plot(steps, [row[f"rewards/{name}"] for row in history], color=PALETTE[colour], linewidth=0.8, label=name)
    lower.set(ylabel="β · change of log-probability", xlabel="optimiser step")
    lower.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run from the command line; --json prints the figures as one document on stdout."""
    parser = argparse.ArgumentParser(prog="python -m step4_finetune.dpo", description="Train an adapter on pairs.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a recipe's value"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from step4_finetune.dpo_recipe import load_dpo_recipe

    result = train(load_dpo_recipe(options.recipe, options.overrides))
    if options.json:
        print_json(asdict(result))
    else:
        say(f"loss {result.first_loss:.3f} → {result.last_loss:.3f} in {result.steps} steps, {result.accuracy:.0%} of "
            f"pairs the right way round; adapter: {result.adapter}")  # fmt: skip


if __name__ == "__main__":
    run(main)
