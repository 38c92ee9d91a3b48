"""Train one adapter from a recipe; kill it at any time and the same command goes on where it was.

    python -m step4_finetune.train step4_finetune/recipes/tools_sft_quick.yaml
    python -m step4_finetune.train RECIPE.yaml --set num_train_epochs=1 --set output_dir=out/try

Leaves in output_dir: adapter/ (a peft LoRA directory: what the engine and vLLM load), training.png, training.json,
runs/ (TensorBoard), checkpoint-N/ (the last two).
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.files import atomic_write
from shared.provenance import hardware, versions
from shared.terminal import print_json, run, say

if TYPE_CHECKING:
    from trl import SFTConfig

    from step4_finetune.recipe import Recipe


@dataclass(frozen=True)
class Training:
    """A finished run. seconds and tokens_per_second are of the last process only, when it was resumed."""

    adapter: str
    examples: int
    left_out: int
    tokens: int
    trained_tokens: int
    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens_per_second: float
    resumed_from: int


def train(recipe: "Recipe") -> Training:
    """Train, or go on training, what the recipe says; return the figures (also in output_dir/training.json).

    Raises UserError for bad data, for an output_dir that holds another run or a finished one, and for too little
    memory; KeyboardInterrupt after Ctrl-C, with a checkpoint written.
    """
    from shared.models import choose_threads, resolve
    from shared.tokenizer import ChatTokenizer
    from step4_finetune.collate import read_examples

    adapter = recipe.output / "adapter"
    if adapter.exists():
        raise UserError(f"{adapter} is trained already; delete {recipe.output} to train again, or set output_dir")
    _check_same_run(recipe)
    directory = resolve(str(recipe.model.model_name_or_path))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(recipe.output / "runs")  # one folder, also when resumed
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries below are imported: the model is here, nothing to ask
    import torch

    from shared.config import settings
    from step4_finetune.progress import Progress, estimate, plot_training, tokens_of
    from step4_finetune.trainer import CompletionTrainer, last_checkpoint, save_adapter

    torch.set_num_threads(int(choose_threads(settings().threads).value))
    _quiet()
    examples, left_out = read_examples(
        Path(recipe.extra.data), ChatTokenizer(directory), int(recipe.training.max_length or 1 << 30)
    )
    tokens, trained = tokens_of(examples)
    say(f"{len(examples)} conversations, {tokens} tokens, {trained} of them trained on; "
        f"{left_out} left out as longer than max_length {recipe.training.max_length}")  # fmt: skip
    trainer = CompletionTrainer(recipe, directory, examples)
    checkpoint = last_checkpoint(recipe.output)
    if checkpoint is None:
        say(f"{estimate(trainer, _steps(recipe, len(examples)))}")
    else:
        say(f"going on from {checkpoint}")
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
    history = trainer.state.log_history
    losses = [float(row["loss"]) for row in history if "loss" in row]
    ends = max(1, len(losses) // 10)  # one batch says little: the first had 0.060, the first tenth of that run 0.08
    result = Training(
        adapter=str(adapter),
        examples=len(examples),
        left_out=left_out,
        tokens=tokens,
        trained_tokens=trained,
        steps=trainer.state.global_step,
        first_loss=sum(losses[:ends]) / ends,
        last_loss=sum(losses[-ends:]) / ends,
        seconds=seconds,
        tokens_per_second=trainer.throughput.sequence / seconds,
        resumed_from=0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-")),
    )
    if trainer.is_world_process_zero():
        plot_training(history, recipe.output / "training.png")
        made = {"hardware": hardware(), "versions": versions("torch", "transformers", "peft", "trl")}
        atomic_write(
            recipe.output / "training.json", json.dumps(asdict(result) | made | {"history": history}, indent=1)
        )
        save_adapter(trainer.model, adapter, str(recipe.model.model_name_or_path))
    return result


def _check_same_run(recipe: "Recipe") -> None:
    """Write down what this run is, or raise UserError when output_dir holds the beginning of another one."""
    path, now = recipe.output / "recipe.json", recipe.fingerprint()
    if path.exists():
        before: dict[str, Any] = json.loads(path.read_text())
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise UserError(
                f"{recipe.output} holds a run with another {', '.join(changed)}; delete it, or set another output_dir"
            )
    atomic_write(path, json.dumps(now, indent=1))


def _steps(recipe: "Recipe", examples: int) -> int:
    args = recipe.training
    if args.max_steps > 0:
        return int(args.max_steps)
    return int(-(-examples // per_step(args)) * args.num_train_epochs)


def per_step(args: "SFTConfig") -> int:
    """How many examples, or pairs, one optimiser step sees in all processes together."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def _quiet() -> None:
    """One voice on the terminal: ours. The libraries' own bars and advice go."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def main() -> None:
    """Run from the command line; --json prints the figures as one document on stdout."""
    parser = argparse.ArgumentParser(prog="python -m step4_finetune.train", description="Train one adapter.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a recipe's value"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from step4_finetune.recipe import load_recipe

    result = train(load_recipe(options.recipe, options.overrides))
    if options.json:
        print_json(asdict(result))
    else:
        say(f"loss {result.first_loss:.3f} → {result.last_loss:.3f} in {result.steps} steps, "
            f"{result.tokens_per_second:.0f} tok/s; adapter: {result.adapter}")  # fmt: skip


if __name__ == "__main__":
    run(main)
