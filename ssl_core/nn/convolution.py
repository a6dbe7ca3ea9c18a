"""Convolution that trains quickly on small maps too, in bf16 on a CPU.

The usual kernels are made for large maps: in the last stage of a ResNet (3x3 maps of 512 channels) they reach
half of the machine's speed, and a quarter of it in the gradient of the weights. There, one matrix product for each
pixel of the output is faster; it also leaves out the padding, which is 32 of the 81 products in a 3x3 map. The gradient
of the weights is one product for each place of the kernel, summed over batch and map. A 1x1 convolution with a stride
is a linear layer on the pixels that it reads.

In float32, on GPUs and without gradients all of it is PyTorch's own convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# Where the other ways are faster, measured with 32 to 512 channels and batches of 32 to 512.
_SIDE, _PIXELS = 6, 2**13
"""Largest side of an output map, and most pixels in all of the batch's, for the gradient of the weights by products."""
_CHANNELS = 128
"""A product per pixel is faster for maps up to side 2 with so many output channels, side 3 with twice as many, ..."""


class Conv2d(nn.Conv2d):
    """nn.Conv2d, same parameters and same values; for square kernels, without groups and dilation."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Conv2d)
        if not _trains_in_bf16(input):
            return super().forward(input)
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1 and stride > 1:
            read = input.permute(0, 2, 3, 1)[:, ::stride, ::stride]
            return F.linear(read, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        rows, columns = (_Axis(size, kernel, stride, int(self.padding[0])) for size in input.shape[2:])
        side = max(rows.out, columns.out)
        if kernel == 1 or not 0 < side <= _SIDE or len(input) * rows.out * columns.out > _PIXELS:
            return super().forward(input)
        out: Tensor = _Conv2d.apply(input.to(torch.bfloat16), self.weight, rows, columns)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype).view(-1, 1, 1)


def _trains_in_bf16(x: Tensor) -> bool:
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype is torch.bfloat16


class _Axis(NamedTuple):
    """One axis of a convolution; each method pairs the pixels that are multiplied."""

    size: int
    kernel: int
    stride: int
    padding: int

    @property
    def out(self) -> int:
        """Pixels of the output along this axis."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def windows(self) -> list[tuple[slice, slice]]:
        """For each output pixel: the input pixels that it sees, and the places of the kernel over them."""
        starts = [i * self.stride - self.padding for i in range(self.out)]
        ends = [min(start + self.kernel, self.size) for start in starts]
        return [(slice(max(0, a), b), slice(max(0, -a), b - a)) for a, b in zip(starts, ends)]

    def flipped_windows(self) -> list[tuple[slice, slice]]:
        """For each input pixel: the output pixels that see it, and the places of the flipped kernel over them."""
        found = []
        for pixel in range(self.padding, self.padding + self.size):
            first = max(0, -((self.kernel - 1 - pixel) // self.stride))
            count = max(0, min(self.out - 1, pixel // self.stride) + 1 - first)
            place = self.kernel - 1 - pixel + first * self.stride
            found.append((_run(first, count), _run(place, count, self.stride)))
        return found

    def places(self) -> list[tuple[slice, slice]]:
        """For each place of the kernel: the output pixels for which it is on the map, and the input pixels under it."""
        found = []
        for place in range(-self.padding, self.kernel - self.padding):
            first = max(0, -(place // self.stride))
            count = max(0, min(self.out - 1, (self.size - 1 - place) // self.stride) + 1 - first)
            found.append((_run(first, count), _run(place + first * self.stride, count, self.stride)))
        return found


def _run(start: int, count: int, step: int = 1) -> slice:
    return slice(start, start + count * step, step)


class _Conv2d(torch.autograd.Function):
    """Casts the weight itself, so that its gradient is laid out and cast in one copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, weight, cast)
        ctx.rows, ctx.columns = rows, columns
        if not _by_pixel(rows, columns, len(weight)):
            return F.conv2d(x, cast, None, rows.stride, rows.padding)
        kernel = cast.permute(0, 2, 3, 1)
        return _pixels(x, rows.windows(), columns.windows(), lambda i, j: kernel[:, i, j].flatten(1).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, cast = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _of_input(x, cast, grad, ctx.rows, ctx.columns)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight).copy_(_of_weight(x, grad, ctx.rows, ctx.columns))
        return of_x, of_weight, None, None


def _by_pixel(rows: _Axis, columns: _Axis, channels: int) -> bool:
    return channels >= _CHANNELS * (max(rows.out, columns.out) - 1)


_Windows = list[tuple[slice, slice]]


def _pixels(x: Tensor, rows: _Windows, columns: _Windows, matrix: Callable[[slice, slice], Tensor]) -> Tensor:
    """A product for each pixel; matrix: rows and columns of the kernel -> [places times channels in, channels out]."""
    x = x.permute(0, 2, 3, 1)
    pixels, matrices = [], {}
    for seen_rows, kernel_rows in rows:
        for seen_columns, kernel_columns in columns:
            part = str((kernel_rows, kernel_columns))
            if part not in matrices:  # pixels along one border share one, a copy of a part of the weight
                matrices[part] = matrix(kernel_rows, kernel_columns)
            pixels.append(torch.mm(x[:, seen_rows, seen_columns].flatten(1), matrices[part]))
    return torch.stack(pixels, 1).view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)


def _of_input(x: Tensor, weight: Tensor, grad: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    if not _by_pixel(rows, columns, weight.shape[1]):
        of_x: Tensor = conv2d_input(x.shape, weight, grad, rows.stride, rows.padding)  # type: ignore[no-untyped-call]
        return of_x
    kernel = weight.flip(2, 3).permute(2, 3, 0, 1).contiguous()
    return _pixels(grad, rows.flipped_windows(), columns.flipped_windows(), lambda i, j: kernel[i, j].flatten(0, 2))


def _of_weight(x: Tensor, grad: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """[out, in, kernel, kernel]."""
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    places = [
        torch.mm(grad[:, out_rows, out_columns].flatten(0, 2).t(), x[:, in_rows, in_columns].flatten(0, 2))
        for out_rows, in_rows in rows.places()
        for out_columns, in_columns in columns.places()
    ]
    return torch.stack(places).view(rows.kernel, columns.kernel, *places[0].shape).permute(2, 3, 0, 1)
