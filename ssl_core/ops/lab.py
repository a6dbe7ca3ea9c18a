"""CIE Lab: from and to sRGB, and the 313 colours of Zhang et al. 2016 ("the paper"), https://arxiv.org/abs/1603.08511.

    light(rgb) -> lightness(light) [n, 1, h, w] L in 0 to 100;  from_light(light) [n, 3, h, w] L, a, b
    encode(ab, k, sigma) -> the k nearest bins and their shares;  annealed_mean(logits, temperature) -> ab

White is that of sRGB (D65): greys have a = b = 0. Means over pixels are taken of linear light, which is additive. Both
curves of the definitions, sRGB's and Lab's cube root, are lines near 0. They are computed as the curve clamped at the
end of the line plus the line below it, which is faster on a CPU than a selection.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_PRIMARIES = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_TO_XYZ = [[part / sum(row) for part in row] for row in _PRIMARIES]
"""Linear RGB to X, Y, Z as shares of those of white (IEC 61966-2-1)."""
_FROM_XYZ: list[list[float]] = torch.linalg.inv(torch.tensor(_TO_XYZ, dtype=torch.float64)).tolist()
_FOOT = 6 / 29
"""End of the line in the cube root of Lab."""

# Lowest and highest b for a = -90, -80, ... 100. The paper's bins: the corners of the 10 x 10 cells that hold colours
# of sRGB, and four more.
_LOW = (50, 20, 0, -20, -30, -40, -50, -50, -60, -70, -80, -80, -90, -100, -100, -110, -110, -110, -110, -90)
_HIGH = (90, 90, 90, 90, 100, 100, 100, 100, 100, 100, 90, 90, 90, 90, 80, 80, 80, 70, 70, 0)
BINS = tuple(
    (float(10 * row - 90), float(b))
    for row, ends in enumerate(zip(_LOW, _HIGH))
    for b in range(ends[0], ends[1] + 1, 10)
)
"""The 313 colours (a, b), in the order of the paper's released models."""
_REACH = 110
"""Largest |a| and |b| that `encode` distinguishes; those of sRGB are 98 and 108."""


def light(x: Tensor) -> Tensor:
    """sRGB, bytes or float in [0, 1], to linear light in [0, 1]; [n, 3, h, w] -> float32, planar in memory."""
    if x.is_floating_point():
        return _curve(x)
    table = _curve(torch.arange(256, device=x.device) / 255)
    return table.index_select(0, x.contiguous().view(-1).int()).view(x.shape)


def _curve(x: Tensor) -> Tensor:
    end = 0.04045
    power = x.clamp_min(end).add_(0.055).div_(1.055).pow_(2.4)
    return power.add_((x - end).clamp_max_(0), alpha=1 / 12.92)


def _inverse_curve(x: Tensor) -> Tensor:
    end = 0.0031308
    power = x.clamp_min(end).pow_(1 / 2.4).mul_(1.055).sub_(0.055)
    return power.add_((x - end).clamp_max_(0), alpha=12.92)


def _mixed(x: Tensor, weights: list[float]) -> Tensor:
    """[n, 3, ...] -> [n, ...], a weighted sum of the channels."""
    first, second, third = x.unbind(1)
    return (first * weights[0]).add_(second, alpha=weights[1]).add_(third, alpha=weights[2])


def _root(t: Tensor) -> Tensor:
    """Lab's cube root, a line near 0; changes t in place."""
    line = (t - _FOOT**3).clamp_max_(0)
    return t.clamp_min_(_FOOT**3).pow_(1 / 3).add_(line, alpha=1 / (3 * _FOOT**2))


def _cube(f: Tensor) -> Tensor:
    """The inverse of `_root`; changes f in place."""
    line = (f - _FOOT).clamp_max_(0)
    return f.clamp_min_(_FOOT).pow_(3).add_(line, alpha=3 * _FOOT**2)


def lightness(x: Tensor) -> Tensor:
    """L, 0 to 100, of linear light: [n, 3, h, w] -> [n, 1, h, w]."""
    return _root(_mixed(x, _TO_XYZ[1])).mul_(116).sub_(16).unsqueeze(1)


def from_light(x: Tensor) -> Tensor:
    """Linear light to L (0 to 100), a and b (about -100 to 100): [n, 3, h, w] both."""
    red, green, blue = (_root(_mixed(x, row)) for row in _TO_XYZ)
    return torch.stack([116 * green - 16, (red - green).mul_(500), (green - blue).mul_(200)], 1)


def from_rgb(x: Tensor) -> Tensor:
    """sRGB, bytes or float in [0, 1], to Lab: [n, 3, h, w] both."""
    return from_light(light(x))


def to_rgb(x: Tensor) -> Tensor:
    """Lab to sRGB in [0, 1], clamped for colours that a screen cannot show; [n, 3, h, w] both."""
    middle = (x[:, 0] + 16) / 116
    xyz = _cube(torch.stack([middle + x[:, 1] / 500, middle, middle - x[:, 2] / 200], 1))
    return _inverse_curve(torch.stack([_mixed(xyz, row) for row in _FROM_XYZ], 1)).clamp_(0, 1)


def paint(lightness: Tensor, ab: Tensor) -> Tensor:
    """sRGB of L [n, 1, h, w] and colours [n, 2, rows, columns] of a coarser grid, enlarged: [n, 3, h, w]."""
    smooth = F.interpolate(ab, lightness.shape[-2:], mode="bilinear", align_corners=False)
    return to_rgb(torch.cat([lightness, smooth], 1))


@cache
def bins(device: torch.device) -> Tensor:
    """`BINS` as [313, 2] float32 on the device; never change them in place."""
    return torch.tensor(BINS).to(device)


class Soft(NamedTuple):
    """Colours as mixtures of the k nearest bins."""

    bins: Tensor
    """[n, h, w, k] int64, nearest first."""
    shares: Tensor
    """[n, h, w, k] float32, sum 1."""


def encode(ab: Tensor, k: int, sigma: float = 5.0) -> Soft:
    """The k nearest bins of each colour, weighted by a Gaussian of their distance (the paper's soft encoding).

    ab [n, 2, h, w], rounded to whole units first (about the precision of 8 bits), and looked up in a table.
    """
    nearest, shares = _table(k, sigma, ab.device)
    a, b = ab.round().add_(_REACH).clamp_(0, 2 * _REACH).long().unbind(1)
    place = a.mul_(2 * _REACH + 1).add_(b)
    shape = (*place.shape, k)
    place = place.flatten()
    return Soft(nearest.index_select(0, place).view(shape), shares.index_select(0, place).view(shape))


@cache
def _table(k: int, sigma: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The k nearest bins, and their shares, of every whole (a, b) in +-110: [221 * 221, k] each."""
    axis = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    distance = torch.cdist(torch.cartesian_prod(axis, axis), torch.tensor(BINS, dtype=torch.float64))
    near = distance.topk(k, largest=False)
    shares = torch.softmax(near.values.square() / (-2 * sigma**2), 1)
    return near.indices.to(device), shares.float().to(device)


def annealed_mean(logits: Tensor, temperature: float = 0.38) -> Tensor:
    """Mean of the bins under softmax(logits / temperature): [n, 313, h, w] -> ab [n, 2, h, w].

    The paper's decoding: temperature 1 is the mean, 0 the mode.
    """
    shares = (logits.movedim(1, -1) / temperature).softmax(-1)
    return (shares @ bins(logits.device)).movedim(-1, 1)
