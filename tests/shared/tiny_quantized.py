"""Tiny random quantised models, and one decoding step of them by the loop and compiled, for the kernel tests."""

import pytest
import torch
from torch import Tensor

from shared import native
from shared.linear import QuantizedMatrix
from shared.lora import FUSED, Adapter
from shared.model_config import ModelConfig
from shared.quantization import quantize_q4_1, quantize_q8_0
from shared.transformer import Layer, Transformer

QUANTIZE = {"q4_1": quantize_q4_1, "q8_0": quantize_q8_0}
needs_compiler = pytest.mark.skipif(native.library()[0] is None, reason=native.library()[1])


def quantized(kind: str, outputs: int, inputs: int, generator: torch.Generator, bias: bool = False) -> QuantizedMatrix:
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return QuantizedMatrix(
        kind, QUANTIZE[kind](weight), 0.1 * torch.randn(outputs, generator=generator) if bias else None
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


SHAPES = {  # heads, kv heads, head dim
    "llama": (6, 2, 16),
    "qwen2": (4, 4, 32),
    "qwen3": (3, 1, 64),
}


def tiny(model_type: str, kind: str) -> Transformer:
    """A random model whose numbers have the size of a trained one's."""
    heads, kv_heads, head_dim = SHAPES[model_type]
    hidden, mlp, g = 96, 160, torch.Generator().manual_seed(7)
    config = ModelConfig(
        model_type=model_type, layers=3, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp=mlp,
        vocabulary=200, context=128, norm_eps=1e-5, rope_theta=10_000.0, tied_head=True, eos=(0,),
    )  # fmt: skip

    def norm(size: int) -> Tensor:
        return 1 + 0.1 * torch.randn(size, generator=g)

    layers = [
        Layer(
            attention_norm=norm(hidden),
            qkv=quantized(kind, (heads + 2 * kv_heads) * head_dim, hidden, g, bias=model_type == "qwen2"),
            output=quantized(kind, hidden, heads * head_dim, g),
            mlp_norm=norm(hidden),
            gate_up=quantized(kind, 2 * mlp, hidden, g),
            down=quantized(kind, hidden, mlp, g),
            query_norm=norm(head_dim) if model_type == "qwen3" else None,
            key_norm=norm(head_dim) if model_type == "qwen3" else None,
        )
        for _ in range(config.layers)
    ]
    embedding = quantized("q8_0", config.vocabulary, hidden, g)
    return Transformer(config, embedding, layers, norm(hidden), embedding, torch.float32)


def tiny_adapter(model: Transformer) -> Adapter:
    """Ranks of no round number, and matrices left out, as adapters have them."""
    g = torch.Generator().manual_seed(8)
    layers = []
    for index, layer in enumerate(model.layers):
        part = {}
        for name in list(FUSED)[index:]:
            matrix = getattr(layer, name)
            rank = 3 + index
            a = torch.randn(rank, matrix.in_features, generator=g) / matrix.in_features**0.5
            part[name] = (a, 0.3 * torch.randn(matrix.out_features, rank, generator=g))
        layers.append(part)
    return Adapter(3, layers)


def decode(model: Transformer, rows: int, adapter: Adapter | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Decode four tokens of `rows` sequences of different lengths by the loop, and each step fused on copies as well.

    Returns the final hidden states and the appended keys and values, flat, of every step: (fused, loop).
    """
    g = torch.Generator().manual_seed(rows)
    caches = [model.new_cache() for _ in range(rows)]
    model.fused = False
    for row, cache in enumerate(caches):
        count = 1 + 11 * row % 40
        model.forward(torch.randint(0, 200, (count,), generator=g), [cache], [count], adapter)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for step in range(4):
        ids = torch.randint(0, 200, (rows,), generator=g)
        # Without room for the new token every other time, so that the copy has to grow.
        copies = [cache.copy_prefix(cache.length, room=step % 2) for cache in caches]
        for fuse, mine, results in ((True, copies, found), (False, caches, expected)):
            model.fused = fuse
            results.append(model.forward(ids, mine, [1] * rows, adapter))
            new = [torch.cat([c.keys[:, :, c.length - 1], c.values[:, :, c.length - 1]]).flatten() for c in mine]
            results.append(torch.stack(new))
        assert [c.length for c in copies] == [c.length for c in caches]
    return found, expected


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal but for the order of sums, 1e-7. Once in a while that rounds an activation to the next int8, and the rest
    of that row then differs by up to a few per cent: so the median row is held to the one, the worst to the other.
    """
    errors = torch.cat([(a - b).norm(dim=-1) / b.norm(dim=-1) for a, b in zip(found, expected, strict=True)])
    assert float(errors.median()) < 3e-6
    assert float(errors.max()) < 0.05
