"""Convolution whose weight gradient is quick on small maps too.

The gradient of a convolution's weights is itself a convolution: of the input with the output's gradient as the kernel,
channels and batch having changed places, the stride having become the kernel's dilation. On a CPU the usual kernel
for it walks the map's pixels and so starves on the last stages of a ResNet (3x3 maps of 512 channels: a third of the
speed of the forward pass); written as a forward convolution it sums over the batch and runs at full speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# Largest side of the output map for which the detour pays, measured with 16 to 512 channels and batches of 128 and 512.
_SIDE = {torch.bfloat16: 6, torch.float32: 3}


class Conv2d(nn.Conv2d):
    """nn.Conv2d, same parameters and same values; for square kernels, without groups and dilation."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Conv2d)
        if not self._pays(input):
            return super().forward(input)
        out: Tensor = _Conv2d.apply(input.to(_dtype(input)), self.weight, self.stride[0], self.padding[0])  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype).view(-1, 1, 1)

    def _pays(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        side = (max(x.shape[2:]) + 2 * int(self.padding[0]) - self.kernel_size[0]) // self.stride[0] + 1
        return self.kernel_size[0] > 1 and 0 < side <= _SIDE.get(_dtype(x), 0)


def _dtype(x: Tensor) -> torch.dtype:
    """What a convolution of x computes in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class _Conv2d(torch.autograd.Function):
    """Casts the weight itself, so that its gradient is laid out and cast in one copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight.to(x.dtype), None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(x.shape, weight.to(x.dtype), grad, ctx.stride, ctx.padding)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            swapped = F.conv2d(x.transpose(0, 1), grad.transpose(0, 1), None, 1, ctx.padding, ctx.stride)
            of_weight = torch.empty_like(weight)
            of_weight.copy_(swapped[:, :, : weight.shape[2], : weight.shape[3]].transpose(0, 1))
        return of_x, of_weight, None, None
