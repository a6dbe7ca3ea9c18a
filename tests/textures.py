"""Random pictures that carry one shortcut each and nothing else that could be learnt, for the audit."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_core.ops import images, warps

Pictures = Callable[[int, int, torch.Generator], Tensor]
"""How many, side in px, randomness -> [n, 3, side, side], in [0, 1] or a little beyond."""


def texture(n: int, size: int, rng: torch.Generator, sigma: float = 1.2, channels: int = 1) -> Tensor:
    """Blurred white noise of unit deviation: no position, no direction, no object."""
    x = images.blur(torch.randn(n, channels, size, size, generator=rng), torch.full((n,), sigma), 5)
    return (x / x.std()).expand(n, 3, size, size)


def smooth_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """So soft that the rim of a hole tells its middle."""
    return 0.5 + 0.15 * texture(n, size, rng, sigma=3.0)


def grey_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Lines that run on from pixel to pixel, and no colour."""
    return 0.5 + 0.15 * texture(n, size, rng)


def sharp_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """No pixel is like its neighbour."""
    return torch.rand(n, 3, size, size, generator=rng)


def magnified(x: Tensor, scale: float) -> Tensor:
    """About the middle."""
    none = torch.zeros(len(x))
    return warps.warp(x, warps.affine_matrices(none, none, none + scale, torch.zeros(len(x), 2)), "border")


def lens_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Green 6 % smaller than red and blue (the paper's achromatic lens): the shift points to the middle."""
    x = grey_texture(n, size, rng)
    return torch.stack([x[:, 0], magnified(x, 0.94)[:, 1], x[:, 2]], 1)


def cheap_lens_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Red larger, blue smaller: a lens that is not achromatic."""
    x = grey_texture(n, size, rng)
    return torch.stack([magnified(x, 1.06)[:, 0], x[:, 1], magnified(x, 0.94)[:, 2]], 1)


def lit_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Lit from the upper left, evenly falling off."""
    axis = torch.linspace(-1, 1, size)
    light = 0.2 * axis.view(-1, 1) + 0.1 * axis
    return 0.5 - light + 0.05 * texture(n, size, rng)


def bright_or_dark_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Every picture in its own brightness, otherwise alike."""
    return 0.2 + 0.6 * torch.rand(n, 1, 1, 1, generator=rng) + 0.05 * texture(n, size, rng)


def tinted_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Every picture in its own two colours, otherwise alike."""
    colours = torch.rand(n, 3, 1, 1, generator=rng)
    return colours + 0.1 * texture(n, size, rng)
