"""Rotation (RotNet): Gidaris, Singh & Komodakis 2018, https://arxiv.org/abs/1803.07728.

Each image is shown turned by 0, 90, 180 and 270 degrees, all four in the same batch, and the network predicts the turn.
For that it must find the objects and know how they usually stand. Turns move pixels without interpolation, after the
square crop, so that neither the picture's border nor its texture gives the answer away.

Data that looks the same when turned (aerial, histology, textures) teaches nothing: accuracy then stays at chance level,
0.25, a sign to choose another task. Captions, watermarks and the photographer's horizon are cues that no
switch removes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ClassifierHead, classify
from ssl_core.ops import images, warps
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class Rotation:
    """Which way up is it? All four turns of every image, one label each.

    Attributes:
        canvas: side in px of the square crop that the reader returns and the network sees; the paper: 224 of 256.
        flip: mirror images at random before turning, as the paper does; false for writing and digits.
        min_area: smallest share of the canvas that is cut and enlarged at random; 1 (the paper) shows all of it.
        angles: 4 right angles; 8 adds the odd multiples of 45 degrees (the paper's ablation), whose interpolation and
            empty corners are a shortcut.
        square: crop to a square before turning. If false, imitates turning a 4:3 picture in its frame, whose
            black bars distinguish 90 and 270 degrees from 0 and 180.
    """

    canvas: int = 224
    flip: bool = True
    min_area: float = 1.0
    angles: Literal[4, 8] = 4
    square: bool = True

    paper: ClassVar[str] = "Gidaris et al. 2018, arXiv:1803.07728"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("black_bars", "Images are cropped to a square before they are turned.", {"square": False}),
        Shortcut("interpolation", "Right angles only: pixels move, none is interpolated.", {"angles": 8}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "min_area": Uniform(0.2, 1.0),
        "flip": Choice((True, False)),
    }

    def __post_init__(self) -> None:
        if self.canvas < 8:
            raise InputError(f"rotation: canvas is {self.canvas} px; give at least 8.")
        if not 0 < self.min_area <= 1:
            raise InputError(f"rotation: min_area is {self.min_area}; it is a share and must be above 0 and at most 1.")
        if self.angles not in (4, 8):
            raise InputError(f"rotation: angles is {self.angles}; it can be 4 (the paper) or 8 (its ablation).")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "images" [angles n, 3, canvas, canvas], the turns of one image in a row; the turn, [angles n]."""
        x = raw["image"]
        if self.min_area < 1:
            x = images.random_resized_crop(x, self.canvas, rng, min_area=self.min_area, flip=self.flip / 2)
        else:
            x = images.random_flip(images.to_float(x), rng, self.flip / 2)
        turned = self._turn(x)
        turns = torch.arange(self.angles, device=x.device).repeat(len(x))
        return {"images": images.normalise(turned.flatten(0, 1))}, turns

    def _turn(self, x: Tensor) -> Tensor:
        """[n, 3, s, s] -> [n, angles, 3, s, s], anticlockwise."""
        turned = images.four_rotations(x)
        if not self.square:
            turned = _with_bars(turned)
        if self.angles == 4:
            return turned
        n = len(x)
        eighth = torch.full((n,), -pi / 4, device=x.device)
        none = torch.zeros_like(eighth)
        tilted = warps.warp(x, warps.affine_matrices(eighth, none, none + 1, torch.zeros(n, 2, device=x.device)))
        return torch.stack([turned, images.four_rotations(tilted)], 2).flatten(1, 2)

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return RotationModel(encoder(self.sample["image"]), self.angles)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return classify(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / self.angles}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        step = 360 // self.angles
        pairs = zip(targets.tolist(), outputs.argmax(1).tolist())
        captions = [f"turned {step * true}, answered {step * answer}" for true, answer in pairs]
        return Panel({"input": images.denormalise(inputs["images"])}, captions)


class RotationModel(TaskModel):
    """Encoder and one linear layer."""

    def __init__(self, encoder: Encoder, angles: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ClassifierHead(encoder.dim, angles)

    def forward(self, images: Tensor) -> Tensor:
        """[m, 3, s, s] -> logits [m, angles]."""
        logits: Tensor = self.head(self.encoder(images))
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        return self.encoder.layers(images.normalise(images.to_float(raw["image"])))


def _with_bars(turned: Tensor) -> Tensor:
    """Black bars of an eighth of the side, left and right, on the turns by 90 and 270 degrees."""
    side = turned.shape[-1]
    column = torch.arange(side, device=turned.device)
    inside = (column >= side // 8) & (column < side - side // 8)
    upright = torch.arange(4, device=turned.device).view(4, 1, 1, 1) % 2 == 0
    return turned * (inside | upright)
