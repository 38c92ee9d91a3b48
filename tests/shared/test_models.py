"""Finding, choosing and loading: right decisions with reasons, and one clear sentence for everything that is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from shared import models, native, weights
from shared.errors import UserError
from shared.models import choose_device, choose_dtype, choose_threads, load, resolve


def copy(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_choices_have_reasons(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(str(tiny_llama))
    printed = capsys.readouterr()
    assert printed.out == ""
    for choice in model.choices:
        assert choice.reason
        assert f"{choice.what:<8} {choice.value}" in printed.err
    assert {"model", "device", "dtype", "threads"} <= {choice.what for choice in model.choices}


def test_dtype_follows_machine_and_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("auto", "cuda", False).value == "bfloat16"
    assert choose_dtype("auto", "cpu", True).value == "int4"
    monkeypatch.setattr(models, "cpu_has_fast_bfloat16", lambda: True)
    assert choose_dtype("auto", "cpu", False).value == "bfloat16"
    monkeypatch.setattr(models, "cpu_has_fast_bfloat16", lambda: False)
    assert choose_dtype("auto", "cpu", False).value == "float32"
    assert choose_dtype("int8", "cpu", True).reason == "asked for"
    with pytest.raises(UserError, match="use auto, float32"):
        choose_dtype("int3", "cpu", False)


def test_devices_that_are_not_there() -> None:
    assert choose_device("cpu").value == "cpu"
    with pytest.raises(UserError, match="use auto, cpu, cuda or mps"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="DEVICE=cuda: not available"):
            choose_device("cuda")
    assert choose_threads(3) == ("threads", "3", "asked for")


def test_dense_copy_is_left_out_when_memory_is_short(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(20)
    # Without the native kernel, which needs no copy anywhere.
    monkeypatch.setattr(native, "library", lambda: (None, "switched off by the test"))
    with_copy = load(str(tiny_llama), dtype="int4", quiet=True).transformer
    assert with_copy.layers[0].qkv.dense_nbytes() > 0
    monkeypatch.setattr(weights, "available_memory", lambda: 1000)
    without = load(str(tiny_llama), dtype="int4", quiet=True)
    assert without.transformer.layers[0].qkv.dense_nbytes() == 0
    assert any(c.what == "prefill" and c.value == "quantised" for c in without.choices)
    hidden = [t.forward(ids, [t.new_cache()], [20]) for t in (with_copy, without.transformer)]
    assert torch.cosine_similarity(*hidden, dim=-1).min() > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported.*OPENAI_BASE_URL"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope type 'yarn' is not supported"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding-window attention"),
        ({"hidden_size": 32}, "do not fit config.json"),
        ({"num_hidden_layers": 4}, "no tensor"),
    ],
)
def test_checkpoints_we_cannot_run(tiny_llama: Path, tmp_path: Path, changes: dict, message: str) -> None:
    directory = copy(tiny_llama, tmp_path / "m", **changes)
    with pytest.raises(UserError, match=message):
        load(str(directory), dtype="float32", quiet=True)


def test_broken_directories(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load(str(tmp_path))
    damaged = copy(tiny_llama, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="is damaged"):
        load(str(damaged))
    (damaged / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\*\.safetensors"):
        load(str(damaged))
    (damaged / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load(str(damaged))
    with pytest.raises(UserError, match="no such directory. Give a catalog name"):
        resolve("./nowhere")
    with pytest.raises(UserError, match="no such directory"):
        resolve("a/b/c")


def test_older_and_newer_ways_to_write_rope_are_read_alike(tiny_llama: Path, tmp_path: Path) -> None:
    from shared.model_config import read_config

    new = copy(tiny_llama, tmp_path / "new", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    old = copy(tiny_llama, tmp_path / "old", rope_theta=5e5)
    assert read_config(new).rope_theta == read_config(old).rope_theta == 5e5


def test_environment_mistakes_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.config import settings

    for name, value in (("THREADS", "many"), ("DEVICE", "gpu")):
        monkeypatch.setenv(name, value)
        settings.cache_clear()
        with pytest.raises(UserError, match=f"environment variable {name}='{value}'"):
            settings()
        monkeypatch.delenv(name)


def test_importing_shared_switches_telemetry_off() -> None:
    import os

    import shared  # noqa: F401
    from shared.telemetry import OPT_OUTS

    assert all(os.environ.get(name) for name in OPT_OUTS)
