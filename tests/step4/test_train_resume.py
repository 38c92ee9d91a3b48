"""Training on the tiny model: it learns, survives kill -9 and Ctrl-C, and leaves an adapter the engine loads."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import UserError
from step4_finetune.recipe import load_recipe
from step4_finetune.train import Training, train
from tests.step4.training_rows import rows, write_run

ROOT = Path(__file__).parents[2]
# Trains as the command does, but dies when the given pass over a batch begins; 3 warm-up passes come before step 1.
KILLED = """
import os, signal, sys
from pathlib import Path
from step4_finetune import trainer
from step4_finetune.recipe import load_recipe
from step4_finetune.train import train
compute, passes = trainer.CompletionTrainer.compute_loss, []
def dying(self, *args, **kwargs):
    passes.append(1)
    if len(passes) == 4 + 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, *args, **kwargs)
trainer.CompletionTrainer.compute_loss = dying
train(load_recipe(Path(sys.argv[1]), []))
"""


@pytest.fixture(scope="module")
def undisturbed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    """One run from beginning to end: 12 rows, batches of 4, 2 epochs, so 6 steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder / "out", train(load_recipe(write_run(folder, tiny_llama), []))


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def assert_close_weights(output: Path, undisturbed: Path) -> None:
    theirs = adapter(undisturbed)
    for name, tensor in adapter(output).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0.01, atol=1e-6)  # one step of bfloat16 is 0.8 %


def assert_same(output: Path, undisturbed: Path) -> None:
    assert_close_weights(output, undisturbed)
    ours, reference = (json.loads((path / "training.json").read_text())["history"] for path in (output, undisturbed))
    for a, b in zip(ours, reference, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["learning_rate"] == b["learning_rate"]


def test_it_learns_and_writes_what_it_says(undisturbed: tuple[Path, Training]) -> None:
    output, result = undisturbed
    assert (result.steps, result.examples, result.left_out, result.resumed_from) == (6, 12, 0, 0)
    assert result.last_loss < result.first_loss
    assert (output / "training.png").stat().st_size > 10_000
    assert list((output / "runs").glob("events.out.tfevents.*"))
    config = json.loads((output / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert {tensor.dtype for tensor in adapter(output).values()} == {torch.bfloat16}


def test_kill_9_then_the_same_command_ends_as_undisturbed(
    undisturbed: tuple[Path, Training], tiny_llama: Path, tmp_path: Path
) -> None:
    recipe = write_run(tmp_path, tiny_llama)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(recipe)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    checkpoints = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-3", "checkpoint-4"]  # the last two
    # A second kill, in the middle of writing checkpoint 4: it counts as not there, and step 4 is done again.
    (tmp_path / "out/checkpoint-4/complete").unlink()
    (tmp_path / "out/checkpoint-4/optimizer.pt").write_bytes(b"half")
    result = train(load_recipe(recipe, []))
    assert result.resumed_from == 3
    assert_same(tmp_path / "out", undisturbed[0])


def test_ctrl_c_saves_and_the_same_command_goes_on(
    undisturbed: tuple[Path, Training], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step4_finetune import trainer

    compute, passes = trainer.CompletionTrainer.compute_loss, []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == 4 + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, *args, **kwargs)

    recipe = write_run(tmp_path, tiny_llama, checkpoint_minutes=60)
    monkeypatch.setattr(trainer.CompletionTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(recipe, []))
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert train(load_recipe(recipe, [])).resumed_from == 2
    assert_same(tmp_path / "out", undisturbed[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_accumulated_batches_train_as_one_large_batch(
    undisturbed: tuple[Path, Training], tiny_llama: Path, tmp_path: Path
) -> None:
    recipe = write_run(tmp_path, tiny_llama, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    train(load_recipe(recipe, []))
    assert_same(tmp_path / "out", undisturbed[0])


def test_a_recipe_goes_on_from_an_adapter(undisturbed: tuple[Path, Training], tiny_llama: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path, tiny_llama, adapter=str(undisturbed[0] / "adapter"))
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("lora_")))
    train(load_recipe(path, ["learning_rate=1e-9", "num_train_epochs=1"]))  # so small that it stays where it starts
    assert_close_weights(tmp_path / "out", undisturbed[0])


def test_the_adapter_gives_the_engine_what_peft_computes(undisturbed: tuple[Path, Training], tiny_llama: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from shared.models import load

    ours = load(str(tiny_llama), adapter=undisturbed[0] / "adapter", dtype="float32", quiet=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, undisturbed[0] / "adapter")
    ids = torch.tensor(ours.tokenizer.encode(ours.tokenizer.render(rows()[5]["messages"][:-1])))
    cache = ours.transformer.new_cache()
    hidden = ours.transformer.forward(ids, [cache], [len(ids)], next(iter(ours.adapters.values())))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        untuned = theirs.get_base_model()  # the LoRA layers stay in it; switched off below
        with theirs.disable_adapter():
            plain = untuned(ids[None]).logits[0]
    torch.testing.assert_close(ours.transformer.logits(hidden), expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 0.1


def test_a_finished_or_another_run_is_not_overwritten(undisturbed: tuple[Path, Training], tiny_llama: Path) -> None:
    recipe = undisturbed[0].parent / "recipe.yaml"
    with pytest.raises(UserError, match="is trained already"):
        train(load_recipe(recipe, []))


def test_another_recipe_does_not_go_on_from_this_ones_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_run(tmp_path, tiny_llama)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/recipe.json").write_text(json.dumps(load_recipe(recipe, []).fingerprint()))
    with pytest.raises(UserError, match="a run with another learning_rate, seed;"):
        train(load_recipe(recipe, ["learning_rate=0.1", "seed=4"]))
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write(json.dumps(rows()[0] | {"id": "new"}) + "\n")
    with pytest.raises(UserError, match="a run with another data_sha256;"):
        train(load_recipe(recipe, []))


def test_too_little_memory_is_said_before_training(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step4_finetune import progress

    monkeypatch.setattr(progress, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="lower per_device_train_batch_size"):
        train(load_recipe(write_run(tmp_path, tiny_llama), []))
