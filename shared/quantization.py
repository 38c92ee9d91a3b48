"""Group-wise weight quantisation: the Q4_1 and Q8_0 block formats, in PyTorch.

A row of weights is cut into groups of 32; each group keeps its own scale, so one outlier spoils 32 numbers, not a row.

    Q4_1   w = d·q + m   q in 0..15   20 bytes per group: float16 d, float16 m, 16 bytes of nibbles   (5.0 bits/weight)
    Q8_0   w = d·q       q in -127..127   34 bytes per group: float16 d, 32 int8                      (8.5 bits/weight)

Nibble i of a Q4_1 group sits in the low half of byte i for i < 16 and in the high half of byte i-16 above.
Source of the layout: ggml-common.h in ggml-org/llama.cpp. Keeping the published layout means that the embedded
GGUF's bytes are used as they are, without a second rounding.
"""

import torch
from torch import Tensor

GROUP = 32
Q4_1_BYTES = 20
Q8_0_BYTES = 34


def quantize_q4_1(weight: Tensor) -> Tensor:
    """Return Q4_1 blocks, uint8 [rows, columns/32 · 20], of a float matrix [rows, columns].

    Raises ValueError when the number of columns is not a multiple of 32.
    """
    groups = _groups(weight)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).half()
    minimum = low.half()
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    q = ((groups - minimum.float()[..., None]) * inverse[..., None]).round().clamp(0, 15).to(torch.uint8)
    nibbles = q[..., :16] | (q[..., 16:] << 4)
    return torch.cat([_bytes(scale), _bytes(minimum), nibbles], dim=-1).flatten(1)


def quantize_q8_0(weight: Tensor) -> Tensor:
    """Return Q8_0 blocks, uint8 [rows, columns/32 · 34], of a float matrix [rows, columns].

    Raises ValueError when the number of columns is not a multiple of 32.
    """
    groups = _groups(weight)
    scale = (groups.abs().amax(-1) / 127).half()
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    q = (groups * inverse[..., None]).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([_bytes(scale), q.view(torch.uint8)], dim=-1).flatten(1)


def unpack_q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (q uint8 [rows, groups, 32], d float32 [rows, groups], m float32 [rows, groups])."""
    b = blocks.unflatten(-1, (-1, Q4_1_BYTES))
    q = torch.cat([b[..., 4:] & 15, b[..., 4:] >> 4], dim=-1)
    return q, _half(b[..., 0:2]), _half(b[..., 2:4])


def dequantize_q4_1(blocks: Tensor) -> Tensor:
    """Return the float32 matrix [rows, columns] that Q4_1 blocks [rows, columns/32 · 20] stand for."""
    q, d, m = unpack_q4_1(blocks)
    return (q.float() * d[..., None] + m[..., None]).flatten(1)


def dequantize_q8_0(blocks: Tensor) -> Tensor:
    """Return the float32 matrix [rows, columns] that Q8_0 blocks [rows, columns/32 · 34] stand for."""
    b = blocks.unflatten(-1, (-1, Q8_0_BYTES))
    return (b[..., 2:].view(torch.int8).float() * _half(b[..., 0:2])[..., None]).flatten(1)


def _groups(weight: Tensor) -> Tensor:
    if weight.shape[-1] % GROUP:
        raise ValueError(f"{tuple(weight.shape)}: the last dimension must be a multiple of {GROUP}")
    return weight.float().unflatten(-1, (-1, GROUP))


def _bytes(half: Tensor) -> Tensor:
    return half.contiguous()[..., None].view(torch.uint8)


def _half(two_bytes: Tensor) -> Tensor:
    return two_bytes.contiguous().view(torch.float16).float().squeeze(-1)
