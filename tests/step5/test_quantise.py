"""The int8 and int4 checkpoints: within half a step of the originals, whole or not there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from step5_serving.quantise import quantise, to_int4, to_int8

Q = "model.layers.0.self_attn.q_proj.weight"


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {Q: torch.randn(8, 64).bfloat16(), "model.embed_tokens.weight": torch.randn(4, 16).bfloat16()}
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


def test_int4_comes_back_within_half_a_step_and_as_compressed_tensors_reads_it() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    weight[3] = 0
    packed, scale = to_int4(weight)
    assert (packed.shape, packed.dtype, scale.shape) == ((16, 8), torch.int32, (16, 2))
    values = torch.stack([(packed >> 4 * place & 15) - 8 for place in range(8)], 2).reshape(16, 64)
    step = scale.float().repeat_interleave(32, 1)
    # The largest value of a group is 7.5 steps: half a step is lost where it is positive, and what bf16 takes off.
    assert ((values * step - weight.float()).abs() <= step * 0.54).all()
    assert (values[3] == 0).all()
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")  # comes with vLLM
    assert torch.equal(theirs.unpack_from_int32(packed, 4, torch.Size([16, 64])).int(), values.int())
    with pytest.raises(ValueError, match="multiple of 32"):
        to_int4(weight[:, :40])


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
    assert quantise(tmp_path / "m", tmp_path / "q4", 4) == 1
    written = load_file(tmp_path / "q4" / "model.safetensors")
    assert written[f"{Q}_packed"].shape == (8, 8)
    assert written[f"{Q}_shape"].tolist() == [8, 64]
    config = json.loads((tmp_path / "q4" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"


def test_bad_input_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"broken")
    for source in (tmp_path / "m", tmp_path / "none"):
        with pytest.raises(UserError):
            quantise(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()
