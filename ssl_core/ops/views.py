"""Random views of images: the crops, warps and colours that contrastive methods share, each with its own strengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.ops import colour, images, warps

PIECE = 2**18
"""Pixels of views augmented at a time on a CPU: what fits its caches is faster than the whole batch at once."""


def random_views(
    x: Tensor,
    size: int,
    rng: Generator,
    *,
    views: int = 2,
    min_area: float = 1.0,
    max_area: float = 1.0,
    max_ratio: float = 4 / 3,
    flip: float = 0.0,
    degrees: float = 0.0,
    shear: float = 0.0,
    translate: float = 0.0,
    zoom: float = 1.0,
    elastic: float = 0.0,
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    jitter_chance: float = 1.0,
    grey: float = 0.0,
    blur: float = 0.0,
    scaled: Callable[[Tensor], Tensor] = images.normalise,
) -> Tensor:
    """Crop, mirror, warp, jitter, grey, blur and normalise, in this order; what is 0 (zoom: 1) is left out.

    x [n, 3, h, w] uint8 -> [views n, 3, size, size], channels_last in memory: the first view of every image, then the
    second, and so on.
    jitter: strengths of brightness, contrast, saturation and hue. flip, jitter_chance, grey and blur are chances.
    scaled: takes views in [0, 1] to the network's range, each by itself.
    The other arguments are those of `random_resized_crop`, `random_affine`, `colour_jitter` and `random_blur`.
    """

    def some_views(part: Tensor) -> Tensor:
        out = images.random_resized_crop(
            part, size, rng, min_area=min_area, max_area=max_area, max_ratio=max_ratio, flip=flip, views=views
        )
        if degrees or shear or translate or zoom > 1 or elastic:
            out = warps.random_affine(
                out, rng, degrees=degrees, shear=shear, translate=translate, zoom=zoom, elastic=elastic
            )
        if any(jitter):
            light, contrast, saturation, hue = jitter
            out = colour.colour_jitter(
                out, rng, brightness=light, contrast=contrast, saturation=saturation, hue=hue, chance=jitter_chance
            )
        if grey:
            out = colour.random_grey(out, rng, grey)
        if blur:
            out = images.random_blur(out, rng, blur)
        return scaled(out)

    # Each piece goes to its places in a batch laid out as convolutions read it; to join the pieces costs more.
    made = torch.empty(views, len(x), size, size, 3, device=x.device).permute(0, 1, 4, 2, 3)
    many = max(8, PIECE // (views * size**2)) if x.device.type == "cpu" else len(x)
    for start in range(0, len(x), many):
        piece = x[start : start + many]
        made[:, start : start + many] = some_views(piece).view(views, len(piece), 3, size, size)
    return made.flatten(0, 1)


class ViewFields(Protocol):
    """Fields of a task that `random_views` takes as they are; the task says what its paper has."""

    @property
    def max_ratio(self) -> float: ...
    @property
    def flip(self) -> float: ...
    @property
    def degrees(self) -> float: ...
    @property
    def shear(self) -> float: ...
    @property
    def translate(self) -> float: ...
    @property
    def zoom(self) -> float: ...
    @property
    def elastic(self) -> float: ...
    @property
    def jitter_chance(self) -> float: ...
    @property
    def grey(self) -> float: ...


def views_of(
    x: Tensor,
    size: int,
    rng: Generator,
    fields: ViewFields,
    *,
    views: int,
    min_area: float,
    jitter: tuple[float, float, float, float],
    max_area: float = 1.0,
    blur: float = 0.0,
) -> Tensor:
    """`random_views` as the fields of a task say."""
    return random_views(
        x,
        size,
        rng,
        views=views,
        min_area=min_area,
        max_area=max_area,
        max_ratio=fields.max_ratio,
        flip=fields.flip,
        degrees=fields.degrees,
        shear=fields.shear,
        translate=fields.translate,
        zoom=fields.zoom,
        elastic=fields.elastic,
        jitter=jitter,
        jitter_chance=fields.jitter_chance,
        grey=fields.grey,
        blur=blur,
    )


def check_views(task: str, fields: ViewFields, *shares: str) -> None:
    """Raise InputError where one of the fields, or of further ones that are shares, lies outside its bounds."""
    for name in ("flip", "jitter_chance", "grey", "translate", "elastic", *shares):
        if not 0 <= getattr(fields, name) <= 1:
            raise InputError(f"{task}: {name} is {getattr(fields, name)}; it lies between 0 and 1.")
    if min(fields.degrees, fields.shear) < 0 or fields.shear >= 90 or min(fields.max_ratio, fields.zoom) < 1:
        raise InputError(f"{task}: degrees start at 0, shear lies in [0, 90), max_ratio and zoom start at 1.")
