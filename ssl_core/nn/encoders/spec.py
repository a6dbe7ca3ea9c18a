"""The frozen description of an encoder.

A spec has neither channels nor image size: those come from the field, so that a task can build the same spec for
grey, colour and stacked inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Literal, get_args, get_type_hints

from ssl_core.errors import InputError
from ssl_core.nn.encoders.architectures import ARCHITECTURES
from ssl_core.nn.encoders.encoder import Encoder
from ssl_core.types import Field


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder to build; every field has the paper's value as its default.

    Attributes:
        name: architecture.
        width: multiplier of all channels; 0.25 gives a ResNet-18 that starts with 16 channels.
        stem: ResNets only. "imagenet" shrinks the input 4 times before the first stage, "cifar" keeps its size.
        norm: ResNets only. "batch", "group" (no leak between the samples of a batch) or "none" (CPC).
        zero_init: ResNets only. Every residual block starts as the identity.
        patch: ViTs only. Side of a patch in pixels; must divide the input's sides.
        positions: ViTs only. "learned", "sincos" (fixed) or "none" (for tasks that predict where a patch was).
        pool: ViTs only. "cls" for a class token, "mean" for the mean over patches.
        drop_path: ViTs only. Chance of skipping the last block's branches while training; earlier blocks less.
    """

    name: Literal["resnet18", "resnet50", "vit_tiny", "vit_small", "vit_base"] = "resnet18"
    width: float = 1.0
    stem: Literal["imagenet", "cifar"] = "imagenet"
    norm: Literal["batch", "group", "none"] = "batch"
    zero_init: bool = True
    patch: int = 16
    positions: Literal["learned", "sincos", "none"] = "learned"
    pool: Literal["cls", "mean"] = "cls"
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        self._check_choices()
        if not 0 < self.width <= 16:
            raise InputError(f"encoder.width is {self.width}; it must be above 0 and at most 16.")
        if self.patch < 1:
            raise InputError(f"encoder.patch is {self.patch}; a patch needs at least one pixel.")
        if not 0 <= self.drop_path < 1:
            raise InputError(f"encoder.drop_path is {self.drop_path}; it must be in [0, 1).")
        self._check_applicable()

    def _check_choices(self) -> None:
        for field, hint in get_type_hints(type(self)).items():
            allowed, value = get_args(hint), getattr(self, field)
            if allowed and value not in allowed:
                raise InputError(f"encoder.{field} is {value!r}; it must be one of {', '.join(allowed)}.")

    def _check_applicable(self) -> None:
        for field in dataclass_fields(self):
            reads = field.name in ("name", "width", *ARCHITECTURES[self.name].options)
            if not reads and getattr(self, field.name) != field.default:
                raise InputError(f"encoder.{field.name} has no effect on {self.name}; leave it out.")

    def build(self, field: Field, width: float = 1.0) -> Encoder:
        """A freshly initialised encoder for images of that shape (channels, height, width), `width` times as wide.

        Raises:
            InputError: the field is no image, or a ViT's patch does not divide its sides.
        """
        if field.modality != "image" or len(field.shape) != 3:
            raise InputError(f"{self.name} takes images (channels, height, width); this field is {field}.")
        kind = ARCHITECTURES[self.name]
        options = {name: getattr(self, name) for name in kind.options}
        return kind(self.name, field.shape, _multiple_of_8(64 * self.width * width), **options)


def _multiple_of_8(channels: float) -> int:
    """Nearest multiple of 8, at least 8: group norm and sine-cosine positions need even shares."""
    return max(8, round(channels / 8) * 8)
