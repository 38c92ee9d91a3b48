"""The product of a frozen matrix and its LoRA update, with a backward pass written out.

peft computes x·Wᵀ, then (x·Aᵀ)·Bᵀ, multiplies that by the scale and adds: three passes over an output that is up to
1,536 numbers per token, and as many again backwards. Here the scale is applied to the r numbers in the middle and both
products are summed in place, so the large tensors are written once each way. Same mathematics, same parameters; what
it brings is measured in results/.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor


class _LoraLinear(torch.autograd.Function):
    """y = x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ, with gradients for x, A and B only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.flatten(0, -2)
        down = (flat @ a.to(x.dtype).T).mul_(scale)
        y = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        y.addmm_(down, b.to(x.dtype).T)
        ctx.save_for_backward(flat, weight, a, b, down)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, down = ctx.saved_tensors
        dy = gradients[0].flatten(0, -2)
        d_down = (dy @ b.to(dy.dtype)).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(d_down, a.to(dy.dtype)).view(*gradients[0].shape[:-1], -1)
        return dx, None, None, (d_down.T @ x).to(a.dtype), (dy.T @ down).to(b.dtype), None


def _forward(module: Any, x: Tensor) -> Tensor:
    base, name = module.base_layer, module.active_adapters[0]
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    y: Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, module.scaling[name])
    return y


def fuse_lora(model: torch.nn.Module) -> int:
    """Give every plain LoRA layer of a peft model the forward pass above; return how many there were.

    Layers with dropout, a LoRA variant (DoRA …) or quantised base weights keep peft's own.
    """
    from peft.tuners.lora import Linear

    count = 0
    layers: list[Any] = [module for module in model.modules() if type(module) is Linear]
    for module in layers:
        plain = type(module.base_layer) is torch.nn.Linear and not module.lora_variant
        if plain and isinstance(module.lora_dropout[module.active_adapters[0]], torch.nn.Identity):
            module.forward = MethodType(_forward, module)
            count += 1
    return count
