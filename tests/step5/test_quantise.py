"""The int8 checkpoint: within half a step of the originals, whole or not there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from step5_serving.quantise import quantise, to_int8

Q = "model.layers.0.self_attn.q_proj.weight"


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {Q: torch.randn(8, 16).bfloat16(), "model.embed_tokens.weight": torch.randn(4, 16).bfloat16()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    save_file({"blocks": torch.zeros(1)}, folder / "quantized.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_within_half_a_step(dtype: torch.dtype) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[3] = 0
    values, scale = to_int8(weight)
    error = (values.float() * scale.float() - weight.float()).abs()
    # A scale rounded down clamps the row's largest value; bf16 keeps 8 bits, so by less than half a step.
    assert (error <= scale.float() * 0.51).all()
    assert (values[3] == 0).all()


def test_checkpoint_holds_what_the_format_names(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "m")
    assert quantise(tmp_path / "m", tmp_path / "q") == 1
    written = load_file(tmp_path / "q" / "model.safetensors")
    assert written[Q].dtype == torch.int8
    assert written[f"{Q}_scale"].shape == (8, 1)
    embedding = "model.embed_tokens.weight"
    assert torch.equal(written[embedding], tensors[embedding])
    assert "blocks" not in written
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["quantization_config"]["format"] == "int-quantized"


def test_bad_input_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"broken")
    for source in (tmp_path / "m", tmp_path / "none"):
        with pytest.raises(UserError):
            quantise(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()
