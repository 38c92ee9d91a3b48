"""Matrices that know how to multiply: float weights, and quantised ones with the fastest kernel this machine has.

Every matrix of the model is one of these; the forward pass (shared/transformer.py) only ever calls them.
Decoding multiplies a few rows and is bound by reading weights, so quantised blocks win; prefill multiplies hundreds of
rows and is bound by arithmetic, so it uses a dense copy of the same weights where memory allows.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import native
from shared.quantization import GROUP, dequantize_q4_1, dequantize_q8_0, unpack_q4_1

# From this many rows on a dense product beats PyTorch's packed kernels (EPYC Milan, 2 cores: equal at 8). The native
# kernel needs no dense copy on such a machine: 512 rows of all matrices took it 434 ms, the float32 product 692 ms.
DENSE_FROM_ROWS = 9


class Matrix(Protocol):
    """A weight matrix [out, in]; calling it with x [rows, in] gives x @ W.T + bias, [rows, out], in x's dtype."""

    out_features: int
    in_features: int

    def __call__(self, x: Tensor) -> Tensor: ...

    def nbytes(self) -> int:
        """Bytes of weights that one decoded token reads."""
        ...

    def dense_nbytes(self) -> int:
        """Bytes held besides, for prefill."""
        ...


class DenseMatrix:
    """Float weights, multiplied by PyTorch."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def nbytes(self) -> int:
        return self.weight.nbytes

    def dense_nbytes(self) -> int:
        return 0


class QuantizedMatrix:
    """Q4_1 or Q8_0 blocks, multiplied by the first kernel that works here; `kernel` names it.

    kind: "q4_1" or "q8_0"; blocks: uint8 [out, in/32 · bytes per group].
    dense: the same weights as floats for many rows at once, or None to save the memory.
    """

    def __init__(self, kind: str, blocks: Tensor, bias: Tensor | None = None, dense: Tensor | None = None) -> None:
        bytes_per_group = {"q4_1": 20, "q8_0": 34}[kind]
        self.kind, self.bias, self.dense = kind, bias, dense
        self.out_features = blocks.shape[0]
        self.in_features = blocks.shape[1] // bytes_per_group * GROUP
        self.kernel = choose_kernel(blocks.device, kind, self.out_features, self.in_features)
        # The native kernel's order replaces the published one: the same bytes, held once.
        self.tiles = native.tile(kind, blocks) if self.kernel == "native" else None
        self._blocks = None if self.kernel == "native" else blocks.contiguous()
        if self.kernel == "torch int4pack":
            self._packed, self._scales = _pack_int4(blocks)
        elif self.kernel == "torch int8pack":
            self._packed, self._scales = _pack_int8(blocks)

    def __call__(self, x: Tensor) -> Tensor:
        if self.dense is not None and x.shape[0] >= DENSE_FROM_ROWS:
            y = F.linear(x.to(self.dense.dtype), self.dense).to(x.dtype)
        elif self.tiles is not None:
            y = native.matvec(self.kind, self.tiles, self.out_features, x.float()).to(x.dtype)
        elif self.kernel == "torch int4pack":
            # The AVX2 and AVX-512 kernels are written for bfloat16 activations; float32 ones take a scalar path.
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), self._packed, GROUP, self._scales).to(x.dtype)
        elif self.kernel == "torch int8pack":
            y = torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self._packed, self._scales).to(x.dtype)
        else:
            y = F.linear(x, self.dequantize().to(x.dtype))
        return y if self.bias is None else y + self.bias

    def dequantize(self) -> Tensor:
        """Return the float32 matrix the blocks stand for."""
        blocks = self._blocks if self.tiles is None else native.untile(self.kind, self.tiles)[: self.out_features]
        assert blocks is not None
        return dequantize_q4_1(blocks) if self.kind == "q4_1" else dequantize_q8_0(blocks)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the float32 rows `ids` [n] as [n, in]: an embedding lookup that unpacks only what it needs."""
        if self.tiles is not None:
            eights = native.untile(self.kind, self.tiles[ids // native.TILE]).unflatten(0, (-1, native.TILE))
            blocks = eights[torch.arange(len(ids)), ids % native.TILE]
        else:
            assert self._blocks is not None
            blocks = self._blocks[ids]
        return dequantize_q4_1(blocks) if self.kind == "q4_1" else dequantize_q8_0(blocks)

    def nbytes(self) -> int:
        held = self._blocks if self.tiles is None else self.tiles
        assert held is not None
        return held.nbytes

    def dense_nbytes(self) -> int:
        return 0 if self.dense is None else self.dense.nbytes


def choose_kernel(device: torch.device, kind: str, rows: int, columns: int) -> str:
    """Return "native", "torch int4pack", "torch int8pack" or "dequantize" for a matrix of this kind and shape."""
    if device.type != "cpu":
        return "dequantize"  # the packed CPU layouts do not exist there; step 5's vLLM has the GPU's
    if native.library()[0] is not None:
        return "native"
    if kind == "q4_1" and rows % 16 == 0 and columns % 32 == 0:
        return "torch int4pack"
    return "torch int8pack" if kind == "q8_0" else "dequantize"


def _pack_int4(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return PyTorch's packed nibbles and its (scale, zero) pairs, bfloat16 [groups, out, 2].

    PyTorch's kernel computes w = (q - 8)·scale + zero, so zero = m + 8d.
    """
    q, d, m = unpack_q4_1(blocks)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.flatten(1).int(), 1)
    scales = torch.stack([d, m + 8 * d], dim=-1).transpose(0, 1).contiguous().bfloat16()
    return packed, scales


def _pack_int8(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 weights and one bfloat16 scale per row: PyTorch's kernel knows no groups; this rounds once more."""
    weight = dequantize_q8_0(blocks)
    scale = (weight.abs().amax(-1) / 127).clamp_min(1e-12)
    return (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()
