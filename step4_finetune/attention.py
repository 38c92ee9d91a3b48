"""Attention over a batch laid out as a prefix tree: each sequence looks along its own path, at nothing else.

Registered with transformers under the name below, so that any of its decoder models takes it without a change:
everything token by token (norms, matrices, MLP) runs on the flat list, only the attention goes sequence by sequence.
The layout comes from collate.py.

Going forward it is PyTorch's scaled_dot_product_attention. Backwards that kernel is slow on a CPU (35 % of a training
step on a Xeon with AMX: 55 GFLOP/s, where plain bfloat16 products reach 900), so there the gradient is written out as
five products and a softmax, which also lets the query heads of a group share their keys without copying them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from step4_finetune.collate import Layout

NAME = "prefix_tree"


def prefix_tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output [1, tokens, heads, head size], in the shape transformers expects of an attention.

    query [1, heads, tokens, size]; key, value [1, key heads, tokens, size], rotated to their positions already.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        output: Tensor = _PrefixTreeAttention.apply(query, key, value, layout, scale)
    else:  # a GPU's fused kernels have a backward pass that needs no help
        output = _forward(query, key, value, layout, scale)
    return output.transpose(1, 2), None


def _forward(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    queries = query.split(layout.own, dim=2)
    keys, values = key.split(layout.nodes, dim=2), value.split(layout.nodes, dim=2)
    outputs = []
    for q, path, mask in zip(queries, layout.paths, layout.masks, strict=True):
        k = torch.cat([keys[node] for node in path], dim=2).repeat_interleave(groups, dim=1)
        v = torch.cat([values[node] for node in path], dim=2).repeat_interleave(groups, dim=1)
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale))
    return torch.cat(outputs, dim=2)


class _PrefixTreeAttention(torch.autograd.Function):
    """`_forward`, with the backward pass in plain products; the probabilities are computed again, not kept.

    With S = scale·Q·Kᵀ, P = softmax(S), O = P·V:
        dV = Pᵀ·dO    dP = dO·Vᵀ    dS = P ∘ (dP − Σ dP∘P)    dQ = scale·dS·K    dK = scale·dSᵀ·Q
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale = layout, scale
        return _forward(query, key, value, layout, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        heads, key_heads, size = query.shape[1], key.shape[1], query.shape[-1]
        d_query = torch.empty_like(query)
        # Shared beginnings receive the gradients of all their sequences: summed in float32.
        d_key, d_value = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (key, value))
        keys, values = key[0].split(layout.nodes, dim=1), value[0].split(layout.nodes, dim=1)
        d_keys, d_values = d_key[0].split(layout.nodes, dim=1), d_value[0].split(layout.nodes, dim=1)
        own = [t[0].split(layout.own, dim=1) for t in (query, gradients[0], d_query)]
        for q, d_out, d_q, path in zip(*own, layout.paths, strict=True):
            # Query heads of a group stand one below the other, so that one product serves the group.
            q, d_out = q.reshape(key_heads, -1, size), d_out.reshape(key_heads, -1, size)
            k = torch.cat([keys[node] for node in path], dim=1)
            v = torch.cat([values[node] for node in path], dim=1)
            scores = torch.matmul(q * scale, k.transpose(1, 2))
            rows, length = d_q.shape[1], k.shape[1]
            recent = scores.view(key_heads, heads // key_heads, rows, length)[..., length - rows :]
            recent.masked_fill_(_later(rows, scores.device), float("-inf"))
            p = torch.softmax(scores, -1)
            d_p = torch.matmul(d_out, v.transpose(1, 2))
            d_s = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype).mul_(scale)
            d_q.copy_(torch.matmul(d_s, k).view(heads, rows, size))
            pieces = [layout.nodes[node] for node in path]
            for total, part in (
                (d_keys, torch.matmul(d_s.transpose(1, 2), q)),
                (d_values, torch.matmul(p.transpose(1, 2), d_out)),
            ):
                for node, piece in zip(path, part.split(pieces, dim=1), strict=True):
                    total[node].add_(piece)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None


def _later(rows: int, device: torch.device) -> Tensor:
    """True where a query's own token comes after it; what is shared with other sequences comes before all of them."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1)


def register() -> None:
    """Make the attention known to transformers; `attn_implementation=NAME` then selects it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, prefix_tree_attention)
