"""What a person sees of a training run: an estimate before it, one live line during it, a picture after it.

The live line goes to stderr (a bar on a terminal, one line every half minute elsewhere). The same numbers go to
TensorBoard's format in OUTPUT/runs:    tensorboard --logdir out/step4
"""

import contextlib
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from shared.errors import UserError
from shared.terminal import PALETTE, console, say
from shared.weights import available_memory
from step4_finetune.collate import Example, collate
from step4_finetune.trainer import CompletionTrainer

LINE_SECONDS = 30.0


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from a few of its own batches. seconds, bytes."""

    steps: int
    seconds: float
    memory: int
    shared: float

    def __str__(self) -> str:
        return (
            f"{self.steps} steps, about {duration(self.seconds)}, at most {self.memory / 1e9:.1f} GB of memory; "
            f"{self.shared:.0%} of all tokens need no computing (shared beginnings)"
        )


def estimate(trainer: CompletionTrainer, steps: int, batches: int = 3) -> Estimate:
    """Run forward and backward passes on `batches` real batches (no update), evenly spaced, and extrapolate.

    steps: optimiser steps of the whole run. The first batch is run twice, to warm up. Memory is for the longest
    batch of the first epoch (later ones are put together anew, of the same families): weights, and what the backward
    pass keeps per token.
    Raises UserError when that is more than this machine has free.
    """
    size = trainer.args.per_device_train_batch_size
    order = list(trainer._get_train_sampler())  # families together: other batches would share less, and take longer
    groups = [[trainer.examples[i] for i in order[k : k + size]] for k in range(0, len(order), size)]
    tokens = [collate(group)["input_ids"].shape[1] for group in groups]
    speeds, kept = [], 0.0
    trainer.model.train()
    probed = [groups[i * len(groups) // batches] for i in range(batches)]
    for group in [probed[0], *probed]:
        batch = trainer._prepare_inputs(collate(group) | {"sequence_tokens": 0})
        start, computed = time.perf_counter(), batch["input_ids"].shape[1]
        with _KeptBytes(trainer.model) as counter:
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        speeds.append((time.perf_counter() - start) / computed)
        kept = max(kept, counter.bytes / computed)
    trainer.model.zero_grad()
    trainer.throughput.computed = 0

    seconds = statistics.median(speeds[1:]) * statistics.mean(tokens)
    parameters = sum(p.nbytes + (3 * p.nbytes if p.requires_grad else 0) for p in trainer.model.parameters())
    longest = max(tokens)
    memory = parameters + int(kept * longest)
    if trainer.args.device.type == "cpu" and kept * longest > available_memory():
        raise UserError(
            f"the longest batch needs {memory / 1e9:.1f} GB, {available_memory() / 1e9:.1f} GB are free; "
            "lower per_device_train_batch_size (and raise gradient_accumulation_steps) or max_length"
        )
    every = sum(map(len, trainer.examples))
    return Estimate(steps, seconds * steps * trainer.args.gradient_accumulation_steps, memory, 1 - sum(tokens) / every)


class _KeptBytes(contextlib.AbstractContextManager["_KeptBytes"]):
    """Counts the bytes that autograd keeps for the backward pass, each tensor's storage once, parameters not."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)
        self.bytes = 0

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> "_KeptBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._hooks.__exit__(*details)


class Progress(TrainerCallback):  # type: ignore[misc]
    """The live line; checkpoints by the clock; Ctrl-C as "finish this step, save, stop"."""

    def __init__(self, trainer: CompletionTrainer, checkpoint_minutes: float) -> None:
        self._trainer, self._every = trainer, checkpoint_minutes * 60
        self.interrupted = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._start = self._saved = self._said = time.perf_counter()
        self._first = state.global_step
        self._old_handler = signal.signal(signal.SIGINT, self._on_interrupt)
        errors = console(stderr=True)
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), console=errors, transient=True)
        self._task = self._bar.add_task("training …", total=state.max_steps, completed=state.global_step)
        if errors.is_terminal:
            self._bar.start()

    def _on_interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt  # asked twice: stop at once, the last checkpoint stands
        self.interrupted = True
        say("stopping after this step; once more to stop at once")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.perf_counter()
        # The last step is saved too: a kill while the adapter is being written must not cost the run.
        if now - self._saved >= self._every or self.interrupted or state.global_step >= state.max_steps:
            control.should_save, self._saved = True, now
        control.should_training_stop |= self.interrupted

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        now = time.perf_counter()
        done = state.global_step - self._first
        speed = self._trainer.throughput.sequence / (now - self._start)
        left = (now - self._start) / max(done, 1) * (state.max_steps - state.global_step)
        line = (
            f"step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.3f}  {speed:.0f} tok/s  "
            f"{duration(left)} left"
        )
        self._bar.update(self._task, completed=state.global_step, description=line)
        if not self._bar.live.is_started and now - self._said >= LINE_SECONDS:
            say(line)
            self._said = now

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal and Ctrl-C back; also after an exception, which skips on_train_end."""
        if hasattr(self, "_old_handler"):
            if self._bar.live.is_started:
                self._bar.stop()
            signal.signal(signal.SIGINT, self._old_handler)


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def plot_training(history: list[dict[str, float]], path: Path) -> None:
    """Draw loss and gradient norm over the steps as a PNG. history: trainer.state.log_history."""
    from matplotlib.figure import Figure

    rows = [row for row in history if "loss" in row]
    steps = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    window = max(1, len(rows) // 20)
    smooth = [statistics.mean(losses[max(0, i - window) : i + 1]) for i in range(len(losses))]
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    upper.plot(steps, losses, color=PALETTE["sky"], linewidth=0.8, label="each step")
    upper.plot(steps, smooth, color=PALETTE["blue"], label=f"mean of {window + 1} steps")
    upper.set(ylabel="loss per trained token (nats)", ylim=(0, None))
    upper.legend()
    lower.plot(steps, [row.get("grad_norm", 0.0) for row in rows], color=PALETTE["vermilion"], linewidth=0.8)
    lower.set(ylabel="gradient norm before clipping", xlabel="optimiser step", yscale="log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def tokens_of(examples: list[Example]) -> tuple[int, int]:
    """All tokens, and the trained ones among them."""
    return sum(map(len, examples)), sum(len(example.completion) for example in examples)
