"""Residual networks: He et al. 2015, https://arxiv.org/abs/1512.03385.

Twists: the stride is in the 3x3 convolution (v1.5, as in torchvision); the last norm of each residual branch may
start at zero, so that every block begins as the identity (Goyal et al. 2017, https://arxiv.org/abs/1706.02677). A
network without norm multiplies each branch by a learned scalar that starts at zero instead (SkipInit, De & Smith
2020, https://arxiv.org/abs/2002.10444); without it, its activations would double in variance at every block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_core.nn.convolution import Conv2d
from ssl_core.nn.encoders.encoder import Encoder

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups (Wu & He 2018) or as many as divide narrow layers into groups of at least two channels."""
    return nn.GroupNorm(math.gcd(32, channels // 2), channels)


NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": group_norm, "none": nn.Identity}


class Residual(nn.Module):
    """relu(shortcut(x) + branch(x)); the shortcut is the identity where shapes allow."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, gain: float | None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.gain = None if gain is None else nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.branch(x)
        if self.gain is not None:
            residual = residual * self.gain.to(residual.dtype)
        out: Tensor = residual.add_(self.shortcut(x)).relu_()
        return out


def conv(before: int, after: int, kernel: int, stride: int, norm: Norm) -> list[nn.Module]:
    """Convolution and norm; the convolution has a bias only where no norm would cancel it."""
    bias = norm is nn.Identity
    return [Conv2d(before, after, kernel, stride, kernel // 2, bias=bias), norm(after)]


def basic(before: int, channels: int, stride: int, norm: Norm) -> list[nn.Module]:
    """The residual branch of ResNet-18: two 3x3 convolutions."""
    first = conv(before, channels, 3, stride, norm)
    return [*first, nn.ReLU(inplace=True), *conv(channels, channels, 3, 1, norm)]


def bottleneck(before: int, channels: int, stride: int, norm: Norm) -> list[nn.Module]:
    """The residual branch of ResNet-50: 1x1, 3x3, 1x1 with four times the channels at the end."""
    first = [*conv(before, channels, 1, 1, norm), nn.ReLU(inplace=True)]
    second = [*conv(channels, channels, 3, stride, norm), nn.ReLU(inplace=True)]
    return [*first, *second, *conv(channels, 4 * channels, 1, 1, norm)]


DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
BRANCHES = {"resnet18": (basic, 1), "resnet50": (bottleneck, 4)}


class ResNet(Encoder):
    """Stem and four stages; `stage1` has `base` channels (times 4 for bottlenecks), each further stage twice as many.

    Strides of the four stages relative to the input: 4, 8, 16, 32 with the ImageNet stem; 1, 2, 4, 8 with CIFAR's.
    """

    options: ClassVar[tuple[str, ...]] = ("stem", "norm", "zero_init")

    def __init__(self, name: str, shape: tuple[int, ...], base: int, *, stem: str, norm: str, zero_init: bool) -> None:
        super().__init__()
        branch, expansion = BRANCHES[name]
        self.stem = _stem(shape[0], base, stem, NORMS[norm])
        self.dims = {}
        before = base
        gain = None
        if norm == "none":
            gain = 0.0 if zero_init else sum(DEPTHS[name]) ** -0.5
        for index, depth in enumerate(DEPTHS[name]):
            make = partial(branch, channels=base * 2**index, norm=NORMS[norm])
            after = base * 2**index * expansion
            stage = _stage(before, after, depth, 1 if index == 0 else 2, make, NORMS[norm], gain)
            self.add_module(f"stage{index + 1}", stage)
            self.dims[f"stage{index + 1}"] = before = after
        self.dim = before
        _initialise(self, zero_init)

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        maps = {}
        for name in self.dims:
            maps[name] = x = self.get_submodule(name)(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.dims:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def _stem(channels: int, base: int, stem: str, norm: Norm) -> nn.Sequential:
    if stem == "cifar":
        return nn.Sequential(*conv(channels, base, 3, 1, norm), nn.ReLU(inplace=True))
    # Pooled before the ReLU: the values are the same, and the ReLU has a quarter of the pixels.
    return nn.Sequential(*conv(channels, base, 7, 2, norm), nn.MaxPool2d(3, 2, 1), nn.ReLU(inplace=True))


def _stage(
    before: int,
    after: int,
    depth: int,
    stride: int,
    make: Callable[..., list[nn.Module]],
    norm: Norm,
    gain: float | None,
) -> nn.Sequential:
    blocks = []
    for _ in range(depth):
        shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            shortcut = nn.Sequential(*conv(before, after, 1, stride, norm))
        blocks.append(Residual(nn.Sequential(*make(before, stride=stride)), shortcut, gain))
        before, stride = after, 1
    return nn.Sequential(*blocks)


def _initialise(model: nn.Module, zero_init: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Residual) and zero_init:
            last = module.branch.get_submodule(str(len(list(module.branch.children())) - 1))
            if isinstance(last, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.zeros_(last.weight)
