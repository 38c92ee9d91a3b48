"""The forward pass of a Llama-type model, written to be read: everything between token ids and logits.

    embedding → [ RMSNorm → attention (RoPE, grouped queries, KV cache) → + → RMSNorm → SwiGLU MLP → + ] × layers
              → RMSNorm → output head

Covers what `model_type` llama, mistral, qwen2 and qwen3 differ in: biases, tied heads, per-head query/key norms.
One call serves prefill, decoding and any mix of sequences: tokens of all sequences lie flat in one [tokens, hidden]
tensor, because matrices do not care whose row is whose; only attention looks at each sequence's own KV cache.

Held to Hugging Face's implementation, logit by logit, in tests/shared/test_transformer.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.linear import DenseMatrix, Matrix, QuantizedMatrix
from shared.lora import Adapter
from shared.model_config import ModelConfig
from shared.native.fused import MAX_ROWS, FusedDecoder, supports
from shared.rope import rope_table


@dataclass
class Layer:
    """The weights of one block. q, k and v lie in one matrix, gate and up in another: fewer, larger products."""

    attention_norm: Tensor
    qkv: Matrix
    output: Matrix
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None


class KVCache:
    """Keys and values of the tokens one sequence has been through, so that no token is ever computed twice.

    Stored as [layers, kv heads, capacity, head dim]; capacity doubles when it runs out.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, capacity: int = 256) -> None:
        shape = (config.layers, config.kv_heads, min(capacity, config.context), config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more tokens."""
        needed, capacity = self.length + tokens, self.keys.shape[2]
        if needed > capacity:
            extra = max(needed, 2 * capacity) - capacity
            self.keys = F.pad(self.keys, (0, 0, 0, extra))
            self.values = F.pad(self.values, (0, 0, 0, extra))

    def copy_prefix(self, length: int, room: int) -> "KVCache":
        """Return a cache of its own that starts with the first `length` tokens of this one and has `room` for more."""
        copy = object.__new__(KVCache)
        layers, heads, _, head_dim = self.keys.shape
        copy.keys = self.keys.new_empty(layers, heads, length + room, head_dim)
        copy.values = torch.empty_like(copy.keys)
        copy.keys[:, :, :length] = self.keys[:, :, :length]
        copy.values[:, :, :length] = self.values[:, :, :length]
        copy.length = length
        return copy

    def nbytes(self) -> int:
        """Bytes allocated, used or not."""
        return self.keys.nbytes + self.values.nbytes


class Transformer:
    """Weights and forward pass. Not an nn.Module: inference needs neither gradients nor hooks, and reads better so."""

    # Whether a step of one token per sequence may run compiled (shared/native/fused.py): the loop of `forward`, three
    # to five times as fast. A subclass that overrides parts of that loop sets this to False, or it would not be asked.
    fused = True

    def __init__(
        self,
        config: ModelConfig,
        embedding: Matrix,
        layers: list[Layer],
        norm: Tensor,
        head: Matrix,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.embedding, self.layers, self.norm, self.head = config, embedding, layers, norm, head
        self.dtype, self.device = dtype, norm.device
        self.cos, self.sin = (table.to(norm.device) for table in rope_table(config))
        self._decoder: FusedDecoder | None = None

    def new_cache(self, capacity: int = 256) -> KVCache:
        """Return an empty KV cache for one sequence."""
        return KVCache(self.config, self.dtype, self.device, capacity)

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, caches: Sequence[KVCache], lengths: Sequence[int], adapter: Adapter | None = None
    ) -> Tensor:
        """Run new tokens through all layers; append to the caches; return the last hidden states [tokens, hidden].

        ids: int64 [tokens], the new tokens of every sequence one after the other.
        caches, lengths: one KV cache and one number of new tokens per sequence; sum(lengths) == tokens.
        """
        x = self.embed(ids)
        if self.fused and len(lengths) <= MAX_ROWS and set(lengths) == {1} and self._can_fuse:
            return self._decode(x, caches, adapter)
        spans = [(cache, cache.length, count) for cache, count in zip(caches, lengths, strict=True)]
        positions = torch.cat([torch.arange(start, start + count) for _, start, count in spans]).to(self.device)
        cos, sin = self.cos[positions, None].to(x.dtype), self.sin[positions, None].to(x.dtype)
        for cache, count in zip(caches, lengths, strict=True):
            cache.reserve(count)
        for index, layer in enumerate(self.layers):
            lora = {} if adapter is None else adapter.layers[index]
            x = x + self.attention(index, layer, self.rms_norm(x, layer.attention_norm), cos, sin, spans, lora)
            x = x + self.mlp(index, layer, self.rms_norm(x, layer.mlp_norm), lora)
        for cache, count in zip(caches, lengths, strict=True):
            cache.length += count
        return self.rms_norm(x, self.norm)

    @cached_property
    def _can_fuse(self) -> bool:
        return supports(self)

    def _decode(self, x: Tensor, caches: Sequence[KVCache], adapter: Adapter | None) -> Tensor:
        """What the loop above does, for one new token per cache, in one call of C."""
        if self._decoder is None:
            self._decoder = FusedDecoder(self)
        for cache in caches:
            cache.reserve(1)
        x = self._decoder.step(x, caches, adapter)
        for cache in caches:
            cache.length += 1
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [rows, vocabulary] of final hidden states [rows, hidden]."""
        return self.head(hidden).float()

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embedding rows of ids [tokens] as [tokens, hidden]."""
        if isinstance(self.embedding, QuantizedMatrix):
            return self.embedding.rows(ids).to(self.dtype)
        assert isinstance(self.embedding, DenseMatrix)
        return self.embedding.weight[ids].to(self.dtype)

    def attention(
        self,
        index: int,
        layer: Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        spans: Sequence[tuple[KVCache, int, int]],
        lora: dict[str, tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Self-attention of layer `index` over x [tokens, hidden]; spans: (cache, first position, new tokens) each."""
        c = self.config
        heads = project(layer.qkv, x, lora.get("qkv")).view(x.shape[0], c.heads + 2 * c.kv_heads, c.head_dim)
        queries, keys, values = heads.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = self.rms_norm(queries, layer.query_norm), self.rms_norm(keys, layer.key_norm)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)

        mixed, first = [], 0
        for cache, start, count in spans:
            mine, end = slice(first, first + count), start + count
            cache.keys[index, :, start:end] = keys[mine].transpose(0, 1)
            cache.values[index, :, start:end] = values[mine].transpose(0, 1)
            mixed.append(self.attend(index, queries[mine], cache.keys[index, :, :end], cache.values[index, :, :end]))
            first += count
        return project(layer.output, torch.cat(mixed) if len(mixed) > 1 else mixed[0], lora.get("output"))

    def attend(self, index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of one sequence: queries [new, heads, dim] are the last of the keys' [kv heads, all, dim].

        Returns [new, heads · dim]. `index` is the layer, for a subclass that records the maps.
        """
        new, heads, dim = queries.shape
        if new == 1:
            # The heads that share a key head become the "query positions" of one product; nothing is copied.
            q = queries.view(1, keys.shape[0], -1, dim)
            return F.scaled_dot_product_attention(q, keys[None], values[None]).reshape(1, heads * dim)
        total = keys.shape[1]
        mask = None if new == total else torch.ones(new, total, dtype=torch.bool, device=keys.device).tril(total - new)
        mixed = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None], keys[None], values[None], mask, is_causal=mask is None, enable_gqa=True
        )
        return mixed[0].transpose(0, 1).reshape(new, heads * dim)

    def mlp(self, index: int, layer: Layer, x: Tensor, lora: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """SwiGLU: down(silu(gate(x)) · up(x)). Source: Shazeer, "GLU Variants Improve Transformer", 2020."""
        gate, up = project(layer.gate_up, x, lora.get("gate_up")).chunk(2, dim=-1)
        return project(layer.down, F.silu(gate) * up, lora.get("down"))

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Scale x to unit root mean square along its last dimension, in float32, then by `weight`."""
        return weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.config.norm_eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [tokens, heads, dim]; dimension i is paired with i + dim/2.

    sin carries the minus sign of its first half (shared/rope.py), so rotating the halves is a plain roll.
    Source: Su et al., "RoFormer", 2021.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def project(matrix: Matrix, x: Tensor, lora: tuple[Tensor, Tensor] | None) -> Tensor:
    """x @ W.T, plus the low-rank update (x @ A.T) @ B.T when an adapter has one for this matrix."""
    y = matrix(x)
    return y if lora is None else y + F.linear(F.linear(x, lora[0]), lora[1])
