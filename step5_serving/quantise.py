"""An int8 or int4 checkpoint in the compressed-tensors format, made from a model directory; nothing is downloaded.

int8 is W8A8: every linear layer of the decoder gets int8 weights with one scale per output channel, and its inputs are
quantised per token when the engine runs. int4 is W4A16: one scale for each 32 inputs of an output channel, activations
stay as they are. Both are symmetric and rounded to nearest, without calibration data: weights need none, and dynamic
activation scales are taken from the activations themselves. Embedding, norms and head stay as they are.
Format: int8 has `weight` int8 (out, in) and `weight_scale` (out, 1); int4 has `weight_packed` int32 (out, in/8), eight
values from the lowest bits up, `weight_scale` (out, in/32) and `weight_shape`; scales have the weight's dtype.
Source: github.com/vllm-project/compressed-tensors; per-token activations: Yao et al., ZeroQuant, 2022.

Measured in vLLM beside bf16, speed and accuracy: README.md.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shared.errors import UserError
from shared.files import atomic_directory

GROUP = 32  # inputs that share a scale in int4; the blocks of the project's own engine have as many
LINEAR = re.compile(r"\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (int8 weights, scales (out, 1) in the weight's dtype) of a matrix (out, in).

    Raises ValueError when the matrix is not two-dimensional or holds NaN or infinity.
    """
    scale = _scales(weight, 127)
    return (weight.float() / scale.float()).round().clamp(-128, 127).to(torch.int8), scale


def to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (values from -8 to 7 packed into int32 (out, in/8), scales (out, in/32) in the weight's dtype).

    Raises ValueError when the matrix is not two-dimensional, not of whole groups, or holds NaN or infinity.
    """
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ValueError(f"need a matrix (out, in) with a multiple of {GROUP} inputs")
    groups = weight.reshape(-1, GROUP)
    scale = _scales(groups, 7.5)  # half of 15 steps: -8 is used and 7.5 becomes 7
    values = (groups.float() / scale.float()).round().clamp(-8, 7).to(torch.int32) + 8
    places = values.reshape(weight.shape[0], -1, 8) << (4 * torch.arange(8, dtype=torch.int32))
    return places.sum(2, dtype=torch.int32), scale.reshape(weight.shape[0], -1)


def _scales(rows: torch.Tensor, steps: float) -> torch.Tensor:
    """The scale (rows, 1) that makes each row's largest value `steps`; 1 for a row of zeros.

    Rounded to the weight's dtype before it divides, so that what is stored is what was used.
    """
    if rows.ndim != 2 or not torch.isfinite(rows).all():
        raise ValueError("need a finite matrix (out, in)")
    scale = (rows.float().abs().amax(dim=1, keepdim=True) / steps).to(rows.dtype)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def quantization_config(bits: int) -> dict[str, Any]:
    """Return the `quantization_config` of config.json, for 8 or 4 bits."""
    common: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True}
    weights = {"strategy": "channel"} if bits == 8 else {"strategy": "group", "group_size": GROUP}
    group = {"targets": ["Linear"], "weights": common | weights | {"dynamic": False}}
    if bits == 8:
        group["input_activations"] = common | {"strategy": "token", "dynamic": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def quantise(source: Path, target: Path, bits: int = 8) -> int:
    """Write the int8 or int4 checkpoint of `source` to `target` in one step; return how many matrices were quantised.

    Raises UserError when `source` is no bf16/fp16/fp32 checkpoint of the Llama family or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} exists already; name another directory or delete it")
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source} is not a model directory: {error}") from None
    if not isinstance(config, dict) or "quantization_config" in config:
        raise UserError(f"{source} is quantised already, or its config.json is no object")
    # quantized.safetensors: the int4 blocks of the project's own engine, copies of the same weights.
    files = sorted(file for file in source.glob("*.safetensors") if file.name != "quantized.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    count = 0
    try:
        for file in files:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    tensor = opened.get_tensor(name)
                    if LINEAR.search(name):
                        tensors |= _quantised(name, tensor, bits)
                        count += 1
                    else:
                        tensors[name] = tensor
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
    if not count:
        raise UserError(f"{source} holds no linear layers named as in the Llama family")
    with atomic_directory(target) as folder:
        for path in source.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
                shutil.copyfile(path, folder / path.name)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config["quantization_config"] = quantization_config(bits)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return count


def _quantised(name: str, weight: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """The tensors that stand in the checkpoint for a matrix."""
    if bits == 8:
        values, scale = to_int8(weight)
        return {name: values, f"{name}_scale": scale}
    packed, scale = to_int4(weight)
    return {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": torch.tensor(weight.shape)}
