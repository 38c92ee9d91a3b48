"""LoRA adapters in peft's format, laid out for the fused matrices of shared/transformer.py.

A LoRA update of a matrix W [out, in] is (alpha/r)·B·A with A [r, in] and B [out, r]. Where the forward pass has fused
q, k and v into one matrix, their three A's are stacked and their B's form a block diagonal, so that one pair of small
products updates all three. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import UserError
from shared.model_config import ModelConfig

FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_KEY = re.compile(r"model\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+_proj)\.lora_([AB])(?:\.default)?\.weight$")


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter: per layer, fused matrix name → (A [r, in], scaled B [out, r]).

    digest: 8 hexadecimal digits of its file's sha256, which tell it from one trained later under the same name.
    """

    rank: int
    layers: list[dict[str, tuple[Tensor, Tensor]]]
    digest: str = ""

    def nbytes(self) -> int:
        """Bytes of all A and B together."""
        return sum(a.nbytes + b.nbytes for layer in self.layers for a, b in layer.values())


def load_adapter(directory: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Adapter:
    """Read a peft LoRA directory (adapter_config.json, adapter_model.safetensors) for a model of this shape.

    Raises UserError when it is missing, made for another model, or uses a variant this code does not implement.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings_path, weights_path = directory / "adapter_config.json", directory / "adapter_model.safetensors"
    try:
        raw: dict[str, Any] = json.loads(settings_path.read_text())
        tensors = load_file(weights_path)
    except FileNotFoundError as error:
        raise UserError(f"{directory} is not a LoRA adapter: {Path(error.filename).name} is missing") from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise UserError(f"{directory}: cannot be read: {error}") from None
    for option in ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "lora_bias"):
        if raw.get(option):
            raise UserError(
                f"{settings_path}: {option} is not supported by the embedded engine; merge the adapter instead"
            )

    rank = int(raw["r"])
    scale = raw["lora_alpha"] / (math.sqrt(rank) if raw.get("use_rslora") else rank)
    parts: list[dict[str, Tensor]] = [{} for _ in range(config.layers)]
    for key, tensor in tensors.items():
        match = _KEY.search(key)
        if match is None:
            raise UserError(f"{weights_path}: {key} is not a matrix of a Llama-type layer")
        index, module, side = int(match[1]), match[2], match[3]
        if index >= config.layers:
            raise UserError(f"{weights_path}: made for a model with more than {config.layers} layers")
        parts[index][f"{module}.{side}"] = tensor.float()

    sizes = _output_sizes(config)
    layers: list[dict[str, tuple[Tensor, Tensor]]] = []
    for part in parts:
        fused = {}
        for name, modules in FUSED.items():
            present = [m for m in modules if f"{m}.A" in part and f"{m}.B" in part]
            if present:
                a = torch.cat([part[f"{m}.A"] for m in present])
                b = _block_column(modules, part, sizes, scale)
                _check_shape(weights_path, name, a, b, config, sum(sizes[m] for m in modules))
                fused[name] = (a.to(device, dtype), b.to(device, dtype))
        layers.append(fused)
    return Adapter(rank, layers, hashlib.sha256(weights_path.read_bytes()).hexdigest()[:8])


def _block_column(modules: tuple[str, ...], part: dict[str, Tensor], sizes: dict[str, int], scale: float) -> Tensor:
    """Stack the B's of fused modules as a block diagonal; modules without an update contribute rows of zeros."""
    blocks = []
    for module in modules:
        b = part.get(f"{module}.B")
        blocks.append(torch.zeros(sizes[module], 0) if b is None else scale * b)
    return torch.block_diag(*blocks)


def _output_sizes(config: ModelConfig) -> dict[str, int]:
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "self_attn.q_proj": q,
        "self_attn.k_proj": kv,
        "self_attn.v_proj": kv,
        "self_attn.o_proj": config.hidden,
        "mlp.gate_proj": config.mlp,
        "mlp.up_proj": config.mlp,
        "mlp.down_proj": config.hidden,
    }


def _check_shape(path: Path, name: str, a: Tensor, b: Tensor, config: ModelConfig, rows: int) -> None:
    columns = {"output": config.heads * config.head_dim, "down": config.mlp}.get(name, config.hidden)
    if a.shape[1] != columns or b.shape[0] != rows or a.shape[0] != b.shape[1]:
        raise UserError(
            f"{path}: {name} is {b.shape[0]}×{a.shape[1]}, the model has {rows}×{columns}: made for another model"
        )
