"""Grids of patches, with or without gap and jitter."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Generator, Tensor

from ssl_core.ops.images import uniform


def grid_span(cells: int, patch: int, gap: int, jitter: int) -> int:
    """Side in pixels of the square that a jittered grid of cells x cells patches may touch."""
    return cells * patch + (cells - 1) * gap + 2 * jitter


def random_grids(
    n: int, side: int, rng: Generator, *, cells: int, patch: int, gap: int, jitter: int
) -> tuple[Tensor, Tensor]:
    """Corners of n grids placed uniformly in a square of `side` px, each patch moved by up to +-jitter px on each axis.

    -> top, left: [n, cells * cells] whole pixels, row by row. The caller ensures that the grid fits.
    """
    room = side - grid_span(cells, patch, gap, jitter) + 1
    origin = torch.randint(room, (n, 2, 1), generator=rng, device=rng.device)
    moved = torch.randint(2 * jitter + 1, (n, 2, cells * cells), generator=rng, device=rng.device)
    cell = torch.arange(cells * cells, device=rng.device)
    place = torch.stack([cell // cells, cell % cells]) * (patch + gap)
    top, left = (origin + moved + place).unbind(1)
    return top, left


def some_of_grid(
    n: int, side: int, rng: Generator, *, cells: int, patch: int, jitter: int, count: int
) -> tuple[Tensor, Tensor]:
    """Corners of `count` different patches per image, of a cells x cells grid that spans a square of `side` px.

    Each patch is moved by 0 to `jitter` px on each axis. -> top, left: [n, count] whole pixels.
    """
    step = (side - patch - jitter) // max(1, cells - 1)
    cell = uniform((n, cells * cells), 0, 1, rng).argsort(1)[:, :count]
    down, right = torch.randint(jitter + 1, (2, n, count), generator=rng, device=rng.device)
    return cell // cells * step + down, cell % cells * step + right


def even_grid(side: int, patch: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Corners of cells x cells patches spread evenly over a square, border to border: top, left [cells * cells]."""
    cell = torch.arange(cells * cells, device=device)
    steps = max(1, cells - 1)
    return (cell // cells) * (side - patch) // steps, (cell % cells) * (side - patch) // steps


def split(x: Tensor, patch: int) -> Tensor:
    """Pictures cut without gap into patches, row by row: [n, c, h, w] -> [n, h w / patch^2, patch^2 c]."""
    n, c, h, w = x.shape
    cells = x.view(n, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, patch * patch * c)


def join(rows: Tensor, patch: int, channels: int = 3) -> Tensor:
    """The inverse of `split`, for square pictures."""
    cells = isqrt(rows.shape[1])
    pixels = rows.view(-1, cells, cells, patch, patch, channels)
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, cells * patch, cells * patch)


def cut(x: Tensor, top: Tensor, left: Tensor, patch: int) -> Tensor:
    """Square patches with the given corners; x [n, c, h, w] of any dtype, top and left [n, k] -> [n, k, c, p, p]."""
    windows = x.unfold(2, patch, 1).unfold(3, patch, 1)
    owner = torch.arange(len(x), device=x.device).unsqueeze(1)
    return windows[owner, :, top, left]


def cut_channels(x: Tensor, top: Tensor, left: Tensor, patch: int) -> Tensor:
    """The same with a corner for each channel; top and left [n, c, k] -> [n, c, k, p, p]."""
    windows = x.unfold(2, patch, 1).unfold(3, patch, 1)
    owner = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(-1, 1)
    return windows[owner, channel, top, left]
