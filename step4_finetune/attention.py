"""Attention over a batch laid out as a prefix tree: each sequence looks along its own path, at nothing else.

Registered with transformers under the name below, so that any of its decoder models takes it without a change:
everything token by token (norms, matrices, MLP) runs on the flat list, only the attention goes sequence by sequence.
The layout comes from collate.py.
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
    groups = query.shape[1] // key.shape[1]
    queries = query.split(layout.own, dim=2)
    keys, values = key.split(layout.nodes, dim=2), value.split(layout.nodes, dim=2)
    outputs = []
    for q, path, mask in zip(queries, layout.paths, layout.masks, strict=True):
        k = torch.cat([keys[node] for node in path], dim=2).repeat_interleave(groups, dim=1)
        v = torch.cat([values[node] for node in path], dim=2).repeat_interleave(groups, dim=1)
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def register() -> None:
    """Make the attention known to transformers; `attn_implementation=NAME` then selects it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, prefix_tree_attention)
