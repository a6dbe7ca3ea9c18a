"""Random views of images: the crops, warps and colours that contrastive methods share, each with its own strengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.ops import colour, images, warps

PIECE = 2**18
"""Pixels of views that a CPU augments at a time: pieces that fit its caches are faster than the whole batch at once."""

Jitter: TypeAlias = tuple[float, float, float, float]
"""Strengths of brightness, contrast and saturation, and the largest turn of the hue; see `colour_jitter`."""


class ViewFields(Protocol):
    """Fields of a task that an `Augmentation` uses as they are; the task's docstring gives the paper's values."""

    @property
    def min_area(self) -> float: ...
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


@dataclass(frozen=True)
class Augmentation:
    """The random changes that make a view of an image; none by default.

    Attributes:
        min_area, max_area, max_ratio: of the crop, see `crop_boxes`.
        flip: chance of a left-right mirror.
        degrees, shear, translate, zoom, elastic: strengths of the warp, see `random_affine`.
        jitter: strengths of colour jitter.
        jitter_chance, grey, blur: chances of colour jitter, of losing the colours, and of a Gaussian blur.
    """

    min_area: float = 1.0
    max_area: float = 1.0
    max_ratio: float = 1.0
    flip: float = 0.0
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0
    jitter: Jitter = (0.0, 0.0, 0.0, 0.0)
    jitter_chance: float = 1.0
    grey: float = 0.0
    blur: float = 0.0

    @classmethod
    def of(cls, task: ViewFields, jitter: Jitter, max_area: float = 1.0, blur: float = 0.0) -> Augmentation:
        """From a task's fields; jitter, and what only some tasks have, are arguments."""
        return cls(
            min_area=task.min_area,
            max_area=max_area,
            max_ratio=task.max_ratio,
            flip=task.flip,
            degrees=task.degrees,
            shear=task.shear,
            translate=task.translate,
            zoom=task.zoom,
            elastic=task.elastic,
            jitter=jitter,
            jitter_chance=task.jitter_chance,
            grey=task.grey,
            blur=blur,
        )

    @property
    def moves_pixels(self) -> bool:
        """Whether there is a warp after the crop."""
        return bool(self.degrees or self.shear or self.translate or self.zoom > 1 or self.elastic)


def random_views(
    x: Tensor,
    size: int,
    rng: Generator,
    augmentation: Augmentation,
    views: int = 2,
    scaled: Callable[[Tensor], Tensor] = images.normalise,
) -> Tensor:
    """Crop, mirror, warp, jitter, grey, blur and normalise, in this order.

    x [n, 3, h, w] uint8 or float in [0, 1] -> [views n, 3, size, size], channels_last in memory: the first view of
    every image, then the second, and so on.
    scaled: maps views in [0, 1] to the network's range, each separately.
    """

    def some_views(part: Tensor) -> Tensor:
        area = augmentation.min_area, augmentation.max_area
        boxes = images.crop_boxes(views * len(part), rng, area[0], augmentation.max_ratio, area[1])
        mirrored = images.uniform((len(boxes),), 0, 1, rng) < augmentation.flip
        return scaled(augment(images.crop_resize(part, boxes, size, mirrored), rng, augmentation))

    # Each piece is written to its place in a channels_last batch; joining the pieces would cost more.
    made = torch.empty(views, len(x), size, size, 3, device=x.device).permute(0, 1, 4, 2, 3)
    many = max(8, PIECE // (views * size**2)) if x.device.type == "cpu" else len(x)
    for start in range(0, len(x), many):
        piece = x[start : start + many]
        made[:, start : start + many] = some_views(piece).view(views, len(piece), 3, size, size)
    return made.flatten(0, 1)


def augment(x: Tensor, rng: Generator, augmentation: Augmentation) -> Tensor:
    """All of an augmentation but crop and mirror; x [n, 3, s, s] in [0, 1], the same back."""
    if augmentation.moves_pixels:
        x = warps.random_affine(
            x,
            rng,
            degrees=augmentation.degrees,
            shear=augmentation.shear,
            translate=augmentation.translate,
            zoom=augmentation.zoom,
            elastic=augmentation.elastic,
        )
    if any(augmentation.jitter):
        light, contrast, saturation, hue = augmentation.jitter
        chance = augmentation.jitter_chance
        x = colour.colour_jitter(
            x, rng, brightness=light, contrast=contrast, saturation=saturation, hue=hue, chance=chance
        )
    if augmentation.grey:
        x = colour.random_grey(x, rng, augmentation.grey)
    if augmentation.blur:
        x = images.random_blur(x, rng, augmentation.blur)
    return x


class Bounds(NamedTuple):
    """Which values a field may have, and the words for it: "it must ..."."""

    hold: Callable[[float], bool]
    sentence: str


def _up_to(most: float) -> Bounds:
    return Bounds(lambda value: 0 <= value <= most, f"it must be between 0 and {most:g}")


_FACTOR = Bounds(lambda value: value >= 1, "it is a factor and must be at least 1")

BOUNDS: Mapping[str, Bounds] = {
    "min_area": Bounds(lambda value: 0 < value <= 1, "it is a share and must be above 0 and at most 1"),
    "max_ratio": _FACTOR,
    "flip": _up_to(1),
    "degrees": Bounds(lambda value: value >= 0, "it must be at least 0"),
    "shear": Bounds(lambda value: 0 <= value < 90, "it must be at least 0 and below 90"),
    "translate": _up_to(1),
    "zoom": _FACTOR,
    "elastic": _up_to(1),
    "jitter": _up_to(1),
    "hue": _up_to(0.5),
    "jitter_chance": _up_to(1),
    "grey": _up_to(1),
    "blur": _up_to(1),
}
"""Field of a task's views -> its bounds."""


def check_views(name: str, task: Any, **most: float) -> None:
    """Rejects fields of a task, a dataclass, that are out of bounds: those in BOUNDS, and others from 0 to `most`.

    Raises:
        InputError: a field is out of bounds; the message has the task, the field, its value and its bounds.
    """
    bounds = {**BOUNDS, **{field: _up_to(highest) for field, highest in most.items()}}
    for field, value in vars(task).items():
        if field in bounds and not bounds[field].hold(value):
            raise InputError(f"{name}: {field} is {value}; {bounds[field].sentence}.")
