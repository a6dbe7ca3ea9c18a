"""Masked autoencoder (MAE): He, Chen, Xie, Li, Dollar & Girshick 2021, https://arxiv.org/abs/2111.06377.

Three of four patches are left out. The encoder, a ViT, sees only the rest, without a token for what is missing; a small
decoder puts one learnt vector in each gap and predicts the pixels there. So few patches are left that copying from
neighbours does not suffice, and the encoder has less to compute.

The target of a patch is its pixels with mean 0 and variance 1: its brightness, most of the variance of a picture, is
given away by any patch nearby.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.nn.decoders import PatchDecoder
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.encoders.vit import ViT
from ssl_core.nn.heads import Weighted, regress
from ssl_core.ops import images, patches
from ssl_core.ops.views import check_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class MaskedAutoencoder:
    """What is in the patches that were left out? Their pixels, by regression; needs a ViT.

    Attributes:
        canvas: side in px of the square crop that the reader returns; the picture is cut from it. The paper cuts from
            the whole image, random resized crops of 0.2 to 1 of its area.
        size: side in px of the picture, a multiple of patch; the paper: 224.
        patch: side of a patch in px, the same as encoder.patch; the paper: 16.
        masked: share of the patches that are left out; the paper: 0.75.
        normalise: each patch of the target to mean 0 and variance 1, as in the paper's best runs.
        min_area: smallest share of the canvas that a picture shows; the paper: 0.2.
        max_ratio: a picture's sides before resizing differ by at most this factor; the paper: 4/3.
        flip: chance of a left-right mirror; the paper: 0.5. 0 for writing and digits.
        width: channels of the decoder; the paper: 512.
        depth: blocks of the decoder; the paper: 8.
        heads: attention heads of the decoder; the paper: 16.
    """

    canvas: int = 256
    size: int = 224
    patch: int = 16
    masked: float = 0.75
    normalise: bool = True
    min_area: float = 0.2
    max_ratio: float = 4 / 3
    flip: float = 0.5
    width: int = 512
    depth: int = 8
    heads: int = 16

    paper: ClassVar[str] = "He et al. 2021, arXiv:2111.06377"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("luminance", "Each patch to predict has mean 0 and variance 1.", {"normalise": False}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "masked": Uniform(0.5, 0.9),
        "min_area": LogUniform(0.1, 1.0),
        "depth": Choice((1, 2, 4, 8)),
    }

    def __post_init__(self) -> None:
        if min(self.canvas, self.size) < 8 or self.patch < 1 or self.size % self.patch:
            raise InputError(
                f"masked_autoencoder: size is {self.size} and patch {self.patch}; canvas and size must be at least "
                "8 px, and size must be a multiple of patch."
            )
        if not 0 < self.seen < (self.size // self.patch) ** 2:
            raise InputError(
                f"masked_autoencoder: masked is {self.masked}, which leaves {self.seen} of "
                f"{(self.size // self.patch) ** 2} patches to see; leave some and hide some."
            )
        check_views("masked_autoencoder", self)
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads or self.width % 4:
            raise InputError(
                f"masked_autoencoder: width is {self.width}, heads {self.heads}; width must be a multiple of heads and "
                "of 4, depth must be at least 1."
            )

    @property
    def seen(self) -> int:
        """Patches that the encoder sees."""
        return round((self.size // self.patch) ** 2 * (1 - self.masked))

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Weighted]:
        """n images -> "images" [n, 3, size, size], black where hidden, "seen" [n, k] places; all t patches to predict.

        Of the target [n, t, 3 patch^2] only the hidden patches count.
        """
        x = images.random_resized_crop(
            raw["image"], self.size, rng, min_area=self.min_area, max_ratio=self.max_ratio, flip=self.flip
        )
        x = images.normalise(x)
        places = (self.size // self.patch) ** 2
        order = images.uniform((len(x), places), 0, 1, rng).argsort(1)
        seen = order[:, : self.seen]
        hidden = torch.ones_like(order, dtype=x.dtype).scatter_(1, seen, 0).unsqueeze(2)
        rows = patches.split(x, self.patch)
        shown = patches.join(rows * (1 - hidden), self.patch)
        return {"images": shown, "seen": seen}, Weighted(self._target(rows), hidden)

    def _target(self, rows: Tensor) -> Tensor:
        if not self.normalise:
            return rows
        variance, mean = torch.var_mean(rows, 2, keepdim=True)
        return (rows - mean).div_((variance + 1e-6).sqrt_())

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return MaskedModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Tensor, targets: Weighted) -> tuple[Tensor, dict[str, Tensor]]:
        return regress(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Weighted) -> Panel:
        answer, target = (
            images.denormalise(patches.join(rows.float(), self.patch)) for rows in (outputs, targets.values)
        )
        r2 = regress(outputs, targets)[1]["r2"]
        captions = [f"{100 * share:.0f} % R²" for share in r2.tolist()]
        return Panel({"seen": images.denormalise(inputs["images"]), "answer": answer, "target": target}, captions)


class MaskedModel(TaskModel):
    """A ViT over the patches that are seen, and a decoder that is discarded after training."""

    def __init__(self, encoder: Encoder, task: MaskedAutoencoder) -> None:
        super().__init__()
        if not isinstance(encoder, ViT):
            raise InputError("masked_autoencoder leaves patches out, which needs a ViT; set encoder.name to vit_small.")
        if encoder.patches.kernel_size != (task.patch, task.patch):
            raise InputError(
                f"masked_autoencoder: task.patch is {task.patch} and encoder.patch {encoder.patches.kernel_size[0]}; "
                "they must be the same."
            )
        if encoder.positions is None:
            raise InputError("masked_autoencoder predicts patches by position; set encoder.positions to sincos.")
        self.size = task.size
        self.encoder = encoder
        self.decoder = PatchDecoder(
            encoder.dim, encoder.grid, 3 * task.patch**2, width=task.width, depth=task.depth, heads=task.heads
        )

    def forward(self, images: Tensor, seen: Tensor) -> Tensor:
        """[n, 3, size, size], [n, k] -> patches [n, t, 3 patch^2]."""
        tokens = self.encoder.tokens(images)
        tokens = tokens.gather(1, seen.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        rows: Tensor = self.decoder(self.encoder.encode(tokens), seen)
        return rows

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`, all patches seen."""
        return self.encoder.layers(images.normalise(images.resize(raw["image"], self.size)))
