"""DPO runs on the tiny model: what is learnt and written, kill -9 and Ctrl-C, and runs that are not overwritten.

python -m pytest tests/step4/test_dpo.py
"""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_world import read, write_adapter, write_run
from safetensors.torch import load_file

from shared.errors import UserError
from step4_finetune.dpo import Preferred, train
from step4_finetune.dpo_recipe import load_dpo_recipe

ROOT = Path(__file__).parents[2]
# Trains as the command does, but dies when the given pass over a batch begins; 2 passes of the estimate come first.
KILLED = """
import os, signal, sys
from pathlib import Path
from step4_finetune import preference_trainer
from step4_finetune.dpo import train
from step4_finetune.dpo_recipe import load_dpo_recipe
compute, passes = preference_trainer.PreferenceTrainer.compute_loss, []
def dying(self, *args, **kwargs):
    passes.append(1)
    if len(passes) == 2 + 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, *args, **kwargs)
preference_trainer.PreferenceTrainer.compute_loss = dying
train(load_dpo_recipe(Path(sys.argv[1]), []))
"""


@pytest.fixture(scope="module")
def undisturbed(tiny_llama: Path, sft: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Preferred]:
    """One run from beginning to end: 10 pairs, batches of 4, 2 epochs, so 6 steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder / "out", train(read(write_run(folder, tiny_llama, sft)))


def assert_same(output: Path, undisturbed: Path) -> None:
    theirs = load_file(undisturbed / "adapter/adapter_model.safetensors")
    for name, tensor in load_file(output / "adapter/adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0.01, atol=1e-6)  # one step of bfloat16 is 0.8 %


def test_it_prefers_the_right_answers_and_writes_what_it_says(undisturbed: tuple[Path, Preferred]) -> None:
    output, result = undisturbed
    assert (result.pairs, result.left_out, result.steps, result.resumed_from) == (10, 0, 6, 0)
    # The reference is where training starts, so nothing is preferred yet.
    assert result.first_loss == pytest.approx(math.log(2), abs=1e-4)
    history = json.loads((output / "training.json").read_text())["history"]
    assert history[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    # Steps 3 and 6 have two pairs, the others four: what is reported is of those.
    assert result.last_loss == pytest.approx(sum(history[step - 1]["loss"] for step in (1, 2, 4, 5)) / 4)
    assert history[-1]["loss"] < 0.5
    assert history[-1]["rewards/accuracies"] == 1.0
    assert history[-1]["rewards/chosen"] > history[-1]["rewards/rejected"]
    assert (output / "training.png").stat().st_size > 10_000
    assert list((output / "runs").glob("events.out.tfevents.*"))
    config = json.loads((output / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_kill_9_then_the_same_command_ends_as_undisturbed(
    undisturbed: tuple[Path, Preferred], tiny_llama: Path, sft: Path, tmp_path: Path
) -> None:
    recipe = write_run(tmp_path, tiny_llama, sft)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(recipe)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    result = train(read(recipe))
    assert result.resumed_from == 3
    assert_same(tmp_path / "out", undisturbed[0])
    ours, reference = (
        json.loads((path / "training.json").read_text())["history"] for path in (tmp_path / "out", undisturbed[0])
    )
    # The reference of the first process: taken anew it would be the moved model, and the loss log 2 again.
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in reference], rel=1e-4)


def test_accumulated_batches_train_as_one_large_batch(tiny_llama: Path, sft: Path, tmp_path: Path) -> None:
    for name, size, parts in (("a", 5, 1), ("b", 1, 5)):
        (tmp_path / name).mkdir()
        values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "num_train_epochs": 1}
        train(read(write_run(tmp_path / name, tiny_llama, sft, **values)))
    assert_same(tmp_path / "b/out", tmp_path / "a/out")


def test_a_finished_run_and_another_one_are_not_overwritten(
    undisturbed: tuple[Path, Preferred], tiny_llama: Path, sft: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is trained already"):
        train(read(undisturbed[0].parent / "recipe.yaml"))
    recipe = write_run(tmp_path, tiny_llama, sft)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/recipe.json").write_text(json.dumps(read(recipe).fingerprint()))
    other = write_adapter(tmp_path / "other", tiny_llama, seed=6)
    with pytest.raises(UserError, match="a run with another adapter_sha256, beta;"):
        train(load_dpo_recipe(recipe, [f"adapter={other}", "beta=0.5"]))


def test_ctrl_c_saves_and_the_same_command_goes_on(
    undisturbed: tuple[Path, Preferred], tiny_llama: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step4_finetune.preference_trainer import PreferenceTrainer

    compute, passes = PreferenceTrainer.compute_loss, []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == 2 + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, *args, **kwargs)

    recipe = write_run(tmp_path, tiny_llama, sft, checkpoint_minutes=60)
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(read(recipe))
    assert train(read(recipe)).resumed_from == 2
    assert_same(tmp_path / "out", undisturbed[0])
