"""Read a checkpoint's tensors into a Transformer, in the dtype asked for.

q, k and v are joined to one matrix, gate and up to another; quantised dtypes take the published blocks where the
checkpoint has them and round the weights here where it does not.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shared import native
from shared.errors import UserError
from shared.linear import DENSE_FROM_ROWS, DenseMatrix, Matrix, QuantizedMatrix
from shared.lora import FUSED
from shared.model_config import ModelConfig
from shared.provenance import cpu_has_fast_bfloat16
from shared.quantization import dequantize_q4_1, dequantize_q8_0, quantize_q4_1, quantize_q8_0
from shared.transformer import Layer, Transformer


class Choice(NamedTuple):
    """One decision of the loader: what was decided, the value, and why."""

    what: str
    value: str
    reason: str


def load_weights(
    directory: Path, config: ModelConfig, device: torch.device, dtype: str
) -> tuple[Transformer, list[Choice]]:
    """Read safetensors into a Transformer; return it with the choices made on the way."""
    weights = Checkpoint(directory)
    notes: list[Choice] = []
    if dtype in ("int8", "int4"):
        # Norms, attention and everything between the products stay float32: they are small, and exact.
        compute = torch.float32 if device.type == "cpu" else torch.bfloat16
        dense = _dense_dtype(config, device, notes)
        sample = QuantizedMatrix("q4_1" if dtype == "int4" else "q8_0", torch.zeros(32, 20 if dtype == "int4" else 34,
                                 dtype=torch.uint8, device=device))  # fmt: skip
        notes.append(Choice("kernel", sample.kernel, native.library()[1]))

        def matrix(*names: str) -> Matrix:
            return _quantized(weights, names, dtype, device, dense)
    else:
        compute = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]

        def matrix(*names: str) -> Matrix:
            weight = torch.cat([weights.get(f"{name}.weight") for name in names])
            return DenseMatrix(weight.to(device, compute), weights.bias(names, device, compute))

    def vector(name: str) -> Tensor:
        return weights.get(name).to(device, compute)

    def optional(name: str) -> Tensor | None:
        return vector(name) if name in weights else None

    try:
        layers = []
        for i in range(config.layers):
            prefix = f"model.layers.{i}."
            fused = {key: matrix(*(prefix + name for name in names)) for key, names in FUSED.items()}
            layers.append(
                Layer(
                    attention_norm=vector(prefix + "input_layernorm.weight"),
                    mlp_norm=vector(prefix + "post_attention_layernorm.weight"),
                    query_norm=optional(prefix + "self_attn.q_norm.weight"),
                    key_norm=optional(prefix + "self_attn.k_norm.weight"),
                    **fused,
                )
            )
        embedding = _embedding(weights, "model.embed_tokens", matrix, dtype, device)
        tied = config.tied_head or "lm_head.weight" not in weights
        head = embedding if tied else _embedding(weights, "lm_head", matrix, dtype, device)
        _check_shapes(config, embedding, layers, head)
        return Transformer(config, embedding, layers, vector("model.norm.weight"), head, compute), notes
    except KeyError as error:
        raise UserError(f"{directory}: the checkpoint has no tensor {error}") from None
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{directory}: the weights do not fit config.json: {error}") from None


def _check_shapes(config: ModelConfig, embedding: Matrix, layers: list[Layer], head: Matrix) -> None:
    """Raise ValueError when a matrix is not what config.json says; most would otherwise fail late, or not at all."""
    heads = config.heads * config.head_dim
    expected = {
        "qkv": (heads + 2 * config.kv_heads * config.head_dim, config.hidden),
        "output": (config.hidden, heads),
        "gate_up": (2 * config.mlp, config.hidden),
        "down": (config.hidden, config.mlp),
    }
    found = {(name, getattr(layer, name)) for layer in layers for name in expected}
    for name, matrix in [*found, ("embedding", embedding), ("head", head)]:
        shape = expected.get(name, (config.vocabulary, config.hidden))
        if (matrix.out_features, matrix.in_features) != shape:
            raise ValueError(f"{name} is {matrix.out_features}×{matrix.in_features}, expected {shape[0]}×{shape[1]}")


def _embedding(
    weights: "Checkpoint", name: str, matrix: Callable[..., Matrix], dtype: str, device: torch.device
) -> Matrix:
    """Embedding and head: int8 even with int4, as published GGUFs have it; four bits cost too much accuracy there."""
    if dtype not in ("int8", "int4"):
        return matrix(name)
    blocks = weights.blocks(name, "q8_0")
    if blocks is None:
        blocks = quantize_q8_0(weights.get(f"{name}.weight"))
    return QuantizedMatrix("q8_0", blocks.to(device))


def _quantized(
    weights: "Checkpoint", names: tuple[str, ...], dtype: str, device: torch.device, dense: torch.dtype | None
) -> QuantizedMatrix:
    """One fused quantised matrix: published blocks where the checkpoint has them, otherwise rounded here."""
    kind, quantize, dequantize = (
        ("q4_1", quantize_q4_1, dequantize_q4_1) if dtype == "int4" else ("q8_0", quantize_q8_0, dequantize_q8_0)
    )
    floats: Tensor | None = None
    published = [weights.blocks(name, kind) for name in names]
    if dense is not None or any(b is None for b in published):
        floats = torch.cat([weights.get(f"{name}.weight") for name in names])
    if all(b is not None for b in published):
        blocks = torch.cat([b for b in published if b is not None])
    else:
        assert floats is not None
        blocks = quantize(floats)
        floats = dequantize(blocks)  # prefill must see the same rounded weights as decoding
    bias = weights.bias(names, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    copy = floats.to(device, dense) if dense is not None and floats is not None else None
    return QuantizedMatrix(kind, blocks.to(device), bias, copy)


def _dense_dtype(config: ModelConfig, device: torch.device, notes: list[Choice]) -> torch.dtype | None:
    """In what format quantised matrices keep a dense copy for prefill; None when it would take 1/4 of free memory."""
    if device.type != "cpu":
        return None
    if native.library()[0] is not None and not cpu_has_fast_bfloat16():
        notes.append(Choice("prefill", "quantised", "the native kernel is faster than float32 at any number of rows"))
        return None
    dense = torch.bfloat16 if cpu_has_fast_bfloat16() else torch.float32
    per_layer = config.hidden * (config.heads + config.kv_heads) * 2 * config.head_dim + 3 * config.hidden * config.mlp
    size = config.layers * per_layer * dense.itemsize
    if size > available_memory() / 4:
        notes.append(Choice("prefill", "quantised", f"a dense copy would take {size / 1e9:.1f} GB"))
        return None
    notes.append(
        Choice(
            "prefill",
            str(dense).removeprefix("torch."),
            f"dense copy, {size / 1e6:.0f} MB, from {DENSE_FROM_ROWS} rows",
        )
    )
    return dense


def published_int4(directory: Path) -> bool:
    """Whether the checkpoint came quantised, so that int4 is what its authors published and loses nothing further."""
    return (directory / "quantized.safetensors").exists()


def available_memory() -> int:
    """Bytes of memory that can be used without swapping; half of all where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8 << 30


class Checkpoint:
    """Tensors by name from the safetensors files of a directory, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        from safetensors import SafetensorError, safe_open

        files = sorted(directory.glob("model*.safetensors"))
        if not files:
            raise UserError(f"{directory} has no model*.safetensors; other weight formats are not read")
        if published_int4(directory):
            files.append(directory / "quantized.safetensors")
        self._where = {}
        for path in files:
            try:
                handle = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise UserError(f"{path} is damaged ({error}); fetch or save it again") from None
            self._where.update(dict.fromkeys(handle.keys(), handle))

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def blocks(self, name: str, kind: str) -> Tensor | None:
        key = f"{name}.weight.{kind}"
        return self.get(key) if key in self else None

    def bias(self, names: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        present = [f"{name}.bias" for name in names if f"{name}.bias" in self]
        return torch.cat([self.get(key) for key in present]).to(device, dtype) if present else None
