"""Rotary position embedding tables, with the frequency scalings that Llama-type checkpoints ship with."""

import math

import torch
from torch import Tensor

from shared.model_config import ModelConfig


def rope_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return (cos, sin), each float32 [context, head dim].

    Angle of dimension pair i at position p: p · theta^(-2i/dim). Both halves of a table row repeat the same angles;
    sin's first half is negated, because the rotation takes x1·cos - x2·sin there.
    """
    half = config.head_dim // 2
    frequencies = config.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)
    scaling = config.rope_scaling
    if scaling.get("rope_type") == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling.get("rope_type") == "llama3":
        frequencies = _llama3(frequencies, scaling)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32), frequencies)
    return torch.cat([angles.cos()] * 2, dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)


def _llama3(frequencies: Tensor, scaling: dict[str, float]) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    trained = scaling["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = ((trained / wavelengths - low) / (high - low)).clamp(0, 1)
    return frequencies * (blend + (1 - blend) / scaling["factor"])
