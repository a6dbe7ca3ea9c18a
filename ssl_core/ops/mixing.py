"""Mixtures of the images of a batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ssl_core.ops.images import uniform


def cutmix(x: Tensor, rng: Generator, chance: float) -> tuple[Tensor, Tensor]:
    """With probability `chance` pastes in a box of the previous image (for the first: of the last) at the same place.

    Yun et al. 2019, https://arxiv.org/abs/1905.04899: the box has a share of the image's area that is uniform in
    [0, 1], before it is cut at the border, and the image's proportions.

    x [n, c, h, w] -> the same, and [n, 1, h, w]: 1 where the pixel is the image's own, else 0.
    """
    n, _, h, w = x.shape
    if not chance:
        return x, x.new_ones(n, 1, h, w)
    share = uniform((n, 1), 0, 1, rng) * (uniform((n, 1), 0, 1, rng) < chance)
    middle = uniform((n, 2), 0, 1, rng)
    rows, columns = (_within(middle[:, i : i + 1], share.sqrt(), side) for i, side in enumerate((h, w)))
    pasted = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return torch.where(pasted, x.roll(1, 0), x), (~pasted).to(x.dtype)


def _within(middle: Tensor, length: Tensor, size: int) -> Tensor:
    """[n, size]: whether a pixel's centre lies in the interval, of which middle and length are shares of the side."""
    centres = (torch.arange(size, device=middle.device) + 0.5) / size
    return (centres - middle).abs() < length / 2
