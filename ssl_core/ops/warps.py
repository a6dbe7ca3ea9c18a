"""Small warps: rotation, shear, scale and translation about the centre, homographies, elastic bending; bilinear."""

from __future__ import annotations

from math import radians
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ssl_core.ops.images import uniform

Fill = Literal["zeros", "border", "reflection"]


def affine_matrices(angle: Tensor, shear: Tensor, scale: Tensor, translate: Tensor) -> Tensor:
    """[n, 2, 3] forward maps, in pixels from the image's centre (x right, y down): rotate after shear after scale.

    angle and shear [n] in radians (a positive angle turns the picture clockwise on the screen), scale [n],
    translate [n, 2] pixels right and down.
    """
    cos, sin, slant = angle.cos(), angle.sin(), shear.tan()
    top = torch.stack([cos * scale, (cos * slant - sin) * scale, translate[:, 0]], 1)
    bottom = torch.stack([sin * scale, (sin * slant + cos) * scale, translate[:, 1]], 1)
    return torch.stack([top, bottom], 1)


def warp(x: Tensor, matrices: Tensor, fill: Fill = "zeros", bend: Tensor | None = None) -> Tensor:
    """Moves each image by its forward map [n, 2, 3] (see `affine_matrices`); x [n, c, h, w] float, same shape back.

    bend: [n, h, w, 2] right and down, in half sides, added to the place where each pixel is read; see `bends`.
    Bilinear without antialiasing: meant for scales near 1.
    """
    h, w = x.shape[-2:]
    a, b, c, d = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1]
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    right, down = matrices[:, 0, 2], matrices[:, 1, 2]
    top = torch.stack([a, b * (h / w), -(a * right + b * down) * (2 / w)], 1)
    bottom = torch.stack([c * (w / h), d, -(c * right + d * down) * (2 / h)], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid if bend is None else grid + bend, padding_mode=fill, align_corners=False)


def bends(n: int, side: int, strength: float, rng: Generator, knots: int = 4) -> Tensor:
    """[n, side, side, 2]: smooth random displacements, as Simard et al. 2003 use on handwriting.

    Normal with standard deviation `strength` half sides at knots x knots places, bicubic between them.
    """
    at_knots = torch.empty(n, 2, knots, knots, device=rng.device).normal_(0, strength, generator=rng)
    smooth = F.interpolate(at_knots, size=(side, side), mode="bicubic", align_corners=True)
    return smooth.permute(0, 2, 3, 1)


def random_affine(
    x: Tensor,
    rng: Generator,
    *,
    degrees: float = 0.0,
    shear: float = 0.0,
    translate: float = 0.0,
    zoom: float = 1.0,
    elastic: float = 0.0,
) -> Tensor:
    """Rotation and shear up to +-degrees, shift up to +-translate of the side, scale log-uniform in [1/zoom, zoom].

    elastic: strength of `bends`, in the same resampling; x [n, c, side, side], black beyond its border.
    """
    n, side = len(x), x.shape[-1]
    angle = uniform((n,), -radians(degrees), radians(degrees), rng)
    slant = uniform((n,), -radians(shear), radians(shear), rng)
    scale = torch.full((n,), zoom, device=rng.device) ** uniform((n,), -1, 1, rng)
    shift = uniform((n, 2), -translate * side, translate * side, rng)
    bend = bends(n, side, elastic, rng) if elastic else None
    return warp(x, affine_matrices(angle, slant, scale, shift), bend=bend)


def homographies(corners: Tensor) -> Tensor:
    """[n, 3, 3] maps of the unit square: (0, 0), (1, 0), (1, 1) and (0, 1) go to `corners` [n, 4, 2] (x right, y down).

    The closed form of Heckbert 1989 ("Fundamentals of texture mapping and image warping"), element [2, 2] being 1.
    """
    p0, p1, p2, p3 = corners.unbind(1)
    bulge, along, down = p0 - p1 + p2 - p3, p1 - p2, p3 - p2
    area = _cross(along, down)
    g, h = _cross(bulge, down) / area, _cross(along, bulge) / area
    columns = (p1 - p0 + g * p1, p3 - p0 + h * p3, p0)
    last = torch.cat([g, h, torch.ones_like(g)], 1)
    return torch.cat([torch.stack(columns, 2), last.unsqueeze(1)], 1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """a and b [n, 2] -> [n, 1]."""
    return a[:, :1] * b[:, 1:] - a[:, 1:] * b[:, :1]


def inverse(maps: Tensor) -> Tensor:
    """The inverse of homographies [n, 3, 3], scaled so that element [2, 2] is 1; never waits for the device."""
    a, b, c = maps.unbind(2)
    adjugate = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 1)
    return adjugate / adjugate[:, 2:, 2:]


def project(x: Tensor, reads: Tensor, size: int, fill: Fill = "zeros", bend: Tensor | None = None) -> Tensor:
    """Reads each output pixel at the place given by its map [n, 3, 3]; x [n, c, s, s] float -> [n, c, size, size].

    Maps go from places in the output to places in the input's middle `size` pixels, both in sides from the upper left
    corner (x right, y down); where a map reads beyond the middle, the picture around it comes into view.
    bend: [n, size or 1, size or 1, 2] as in `warp`.
    """
    axis = (torch.arange(size, device=x.device) + 0.5) / size
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([right, down, torch.ones_like(down)], 2)
    across, along, depth = torch.einsum("ijk,nlk->lnij", places, reads).unbind()
    grid = torch.stack([across, along], 3).div_(depth.unsqueeze(3)).sub_(0.5).mul_(2 * size / x.shape[-1])
    return F.grid_sample(x, grid if bend is None else grid + bend, padding_mode=fill, align_corners=False)
