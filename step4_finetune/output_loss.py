"""The loss of the trained tokens, without keeping their logits: the output head, softmax and gradient in one pass.

A row of logits has 49,152 numbers. Computing all rows, then the log-probabilities, then the gradient, moves some 130 MB
per 650 tokens five times through memory; a few rows at a time stay in the cache. Since the head is frozen and the loss
is the last thing computed, its gradient is known going forward. The idea is that of Liger Kernel's fused linear cross
entropy (Hsu et al. 2024, arXiv 2410.10989), without a GPU kernel.
"""

from typing import Any

import torch
from torch import Tensor

ROWS = 64  # 64 × 49,152 float32 are 13 MB


class _HeadLoss(torch.autograd.Function):
    """Σ −log softmax(states·Wᵀ)[label], with a gradient for states only."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        loss = states.new_zeros((), dtype=torch.float32)
        d_states = torch.empty_like(states)
        for start in range(0, len(states), ROWS):
            part, wanted = slice(start, start + ROWS), labels[start : start + ROWS, None]
            log_p = torch.log_softmax(states[part] @ weight.T, -1, dtype=torch.float32)
            loss -= log_p.gather(1, wanted).sum()
            d_logits = log_p.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
            d_states[part] = d_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(d_states)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_states,) = ctx.saved_tensors
        return d_states * gradients[0].to(d_states.dtype), None, None


def head_loss(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross entropy (nats) of labels [n] under states [n, width] and a frozen head [words, width]."""
    if weight.requires_grad:
        raise ValueError("the output head is trained: its gradient is not computed here")
    loss: Tensor = _HeadLoss.apply(states, weight, labels)
    return loss
