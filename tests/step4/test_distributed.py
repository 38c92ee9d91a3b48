"""Several processes: two on the CPU train as one does with the same global batch.

python -m pytest tests/step4/test_distributed.py -m "not real"     # the configurations, as accelerate reads them
python -m pytest tests/step4/test_distributed.py -m real           # two processes, about a minute (importing, thrice)
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.step4.training_rows import write_run

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "step4_finetune/distributed"


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed", "DEEPSPEED")])
def test_accelerate_understands_the_configurations(name: str, kind: str) -> None:
    """accelerate refuses a key that it does not know; the command that the file shows must name the file."""
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGURATIONS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind
    assert config.mixed_precision == "no"
    assert f"--config_file step4_finetune/distributed/{name}.yaml" in path.read_text()


def losses(output: Path) -> list[tuple[float, float]]:
    history = json.loads((output / "training.json").read_text())["history"]
    return [(row["loss"], row["grad_norm"]) for row in history if "loss" in row]


@pytest.mark.real
def test_two_processes_train_as_one_with_the_same_global_batch(tiny_llama: Path, tmp_path: Path) -> None:
    """Gloo on the CPU. Batches of 2 in each of two processes against batches of 4 in one: 6 steps."""
    runs = {}
    for name, batch in (("one", 4), ("two", 2)):
        (tmp_path / name).mkdir()
        runs[name] = write_run(tmp_path / name, tiny_llama, per_device_train_batch_size=batch, checkpoint_minutes=60)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LLM_ROADMAP_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    launch = ["accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / "ddp.yaml"), "-m"]
    train = ["step4_finetune.train", str(runs["two"]), "--set", "use_cpu=true"]
    two = subprocess.Popen(
        [sys.executable, "-m", *launch, *train], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    one = subprocess.run(
        [sys.executable, "-m", "step4_finetune.train", str(runs["one"])],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    _, errors = two.communicate(timeout=240)
    assert one.returncode == 0, one.stderr[-2000:]
    assert two.returncode == 0, errors[-2000:]
    ours, reference = losses(tmp_path / "two/out"), losses(tmp_path / "one/out")
    assert len(ours) == len(reference) == 6
    for (loss, norm), (expected, expected_norm) in zip(ours, reference, strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
    theirs = load_file(tmp_path / "one/out/adapter/adapter_model.safetensors")
    for key, tensor in load_file(tmp_path / "two/out/adapter/adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0.01, atol=1e-6)  # one step of bfloat16 is 0.8 %
