"""An int8 checkpoint in the compressed-tensors format, made from a model directory; nothing is downloaded.

W8A8: every linear layer of the decoder gets int8 weights with one scale per output channel (symmetric, rounded to
nearest), and its inputs are quantised per token when the engine runs. No calibration data: weights need none, and
dynamic activation scales are taken from the activations themselves. Embedding, norms and head stay as they are.
Format: `weight` int8 (out, in), `weight_scale` (out, 1) in the weight's dtype, and `quantization_config` in
config.json. Source: github.com/vllm-project/compressed-tensors; per-token activations: Yao et al., ZeroQuant, 2022.

Measured in vLLM beside bf16: speed (README.md). Not measured: what the rounding costs in accuracy.
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

LINEAR = re.compile(r"\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (int8 weights, scales (out, 1) in the weight's dtype) of a matrix (out, in); a zero row gets scale 1.

    The scale is rounded to the weight's dtype before it divides, so that what is stored is what was used.
    Raises ValueError when the matrix is not two-dimensional or holds NaN or infinity.
    """
    if weight.ndim != 2 or not torch.isfinite(weight).all():
        raise ValueError("need a finite matrix (out, in)")
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / 127).to(weight.dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (weight.float() / scale.float()).round().clamp(-128, 127).to(torch.int8), scale


def quantization_config() -> dict[str, Any]:
    """Return the `quantization_config` of config.json: int8 weights per channel, int8 inputs per token."""
    common = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**common, "strategy": "channel", "dynamic": False},
                "input_activations": {**common, "strategy": "token", "dynamic": True},
            }
        },
    }


def quantise(source: Path, target: Path) -> int:
    """Write the int8 checkpoint of `source` to `target` in one step; return how many matrices were quantised.

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
                        tensors[name], tensors[f"{name}_scale"] = to_int8(tensor)
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
        config["quantization_config"] = quantization_config()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return count
