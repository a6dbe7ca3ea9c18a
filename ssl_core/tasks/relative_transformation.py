"""Relative transformation (AET): Zhang, Qi, Wang & Luo 2019, https://arxiv.org/abs/1901.04596.

The network sees an image and the same image transformed, and predicts the transformation, as an autoencoder
predicts the data. For that it must know where things are in both pictures.

The paper fills what a transformation uncovers with one colour, and these wedges give the answer away without a look at
the picture. Here the picture around the view moves in as far as the canvas reaches, and is mirrored beyond it. Both
pictures are resampled by the same filter at a random place within a pixel, so that neither is sharper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import radians
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ClassifierHead, regress
from ssl_core.ops import images, warps
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

AFFINE = ("cosine", "sine", "right", "down", "scale", "shear")
PROJECTIVE = ("xx", "xy", "x", "yx", "yy", "y", "wx", "wy")


@dataclass(frozen=True)
class RelativeTransformation:
    """How was the second picture made from the first? The transformation's parameters, by regression.

    Attributes:
        canvas: side in px of the square crop that the reader returns; the picture around the view moves into it.
        size: side in px of the middle of the canvas, what the network sees; the paper: 224, and 32 on CIFAR.
        kind: "projective" moves the four corners, after a scale and a right-angle turn; "affine" rotates, shifts,
            scales and shears. The paper tries both and finds projective better.
        corner: projective: each corner moves by up to this share of the side on each axis; the paper: 0.125.
        turns: projective: turn by 0, 90, 180 or 270 degrees first, as the paper does; false for writing and digits.
        scale: the scale is uniform between 1 - scale and 1 + scale; the paper: 0.2, and 0.3 for affine.
        degrees: affine: rotation by at most so many degrees; the paper: 180.
        translate: affine: shift by up to this share of the side; the paper: 0.2.
        shear: affine: shear by at most so many degrees; the paper: 30.
        flip: mirror images at random first, as the paper does; false for writing and digits.
        fill: what is shown beyond the canvas: "reflection" mirrors it; "zeros" is one colour, grey, as in the paper.
        resample_both: the first picture, too, is resampled at a random place within a pixel; the paper: no.
        hidden: width of a hidden layer over the two vectors; 0, as in the paper, is one linear layer.
    """

    canvas: int = 256
    size: int = 224
    kind: Literal["affine", "projective"] = "projective"
    corner: float = 0.125
    turns: bool = True
    scale: float = 0.2
    degrees: float = 180.0
    translate: float = 0.2
    shear: float = 30.0
    flip: bool = True
    fill: Literal["reflection", "zeros"] = "reflection"
    resample_both: bool = True
    hidden: int = 0

    paper: ClassVar[str] = "Zhang et al. 2019, arXiv:1901.04596"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "flat_wedges", "A transformation uncovers more of the picture, mirrored if need be.", {"fill": "zeros"}
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "kind": Choice(("affine", "projective")),
        "corner": Uniform(0.05, 0.2),
        "scale": Uniform(0.1, 0.3),
    }

    def __post_init__(self) -> None:
        if not 8 <= self.size <= self.canvas or self.hidden < 0:
            raise InputError(
                "relative_transformation: size must be between 8 px and canvas, hidden must be at least 0."
            )
        if self.kind not in ("affine", "projective"):
            raise InputError(f"relative_transformation: kind is {self.kind!r}; it can be affine or projective.")
        if self.fill not in ("reflection", "zeros"):
            raise InputError(f"relative_transformation: fill is {self.fill!r}; it can be reflection or zeros.")
        if not 0 <= self.scale <= 0.5 or not 0 <= self.corner <= 0.2 or not 0 <= self.translate <= 1:
            raise InputError(
                "relative_transformation: scale must be between 0 and 0.5, corner between 0 and 0.2 (or a "
                "quadrilateral could fold over), translate between 0 and 1."
            )
        if not 0 <= self.degrees <= 180 or not 0 <= self.shear < 60:
            raise InputError("relative_transformation: degrees must be between 0 and 180, shear in [0, 60).")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the numbers that the network predicts, in order."""
        return AFFINE if self.kind == "affine" else PROJECTIVE

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "original" and "transformed" [n, 3, size, size]; the normalised parameters [n, p]."""
        x = images.normalise(images.random_flip(images.to_float(raw["image"]), rng, self.flip / 2))
        n = len(x)
        reads, parameters = self._affine(n, rng) if self.kind == "affine" else self._projective(n, rng)
        bend = images.uniform((n, 1, 1, 2), -1 / self.canvas, 1 / self.canvas, rng) if self.resample_both else None
        transformed = warps.project(x, reads, self.size, self.fill, bend)
        original = self.middle(x)
        if bend is not None:
            unmoved = torch.eye(3, device=x.device).expand(n, 3, 3)
            original = warps.project(x, unmoved, self.size, self.fill, bend)
        return {"original": original, "transformed": transformed}, parameters

    def middle(self, x: Tensor) -> Tensor:
        """The middle [n, 3, size, size] of pictures [n, 3, canvas, canvas], not resampled."""
        edge = (self.canvas - self.size) // 2
        return x[..., edge : edge + self.size, edge : edge + self.size]

    def _affine(self, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Maps from the transformed view to the original [n, 3, 3]; cosine, sine, shift, scale and shear within +-1.

        That is the order of the paper's code and its normalisation.
        """
        angle = images.uniform((n,), -radians(self.degrees), radians(self.degrees), rng)
        strengths = (self.translate, self.translate, self.scale, radians(self.shear))
        right, down, scale, shear = (images.uniform((n,), -most, most, rng) for most in strengths)
        about_centre = warps.affine_matrices(angle, shear, 1 + scale, torch.stack([right, down], 1))
        linear = about_centre[:, :, :2]
        shift = about_centre[:, :, 2:] + 0.5 - linear.sum(2, keepdim=True) / 2
        last = torch.eye(3, device=angle.device)[2:].expand(n, 1, 3)
        maps = torch.cat([torch.cat([linear, shift], 2), last], 1)
        drawn = [value / (most or 1) for value, most in zip((right, down, scale, shear), strengths)]
        return warps.inverse(maps), torch.stack([angle.cos(), angle.sin(), *drawn], 1)

    def _projective(self, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Maps from the transformed view to the original [n, 3, 3]; their eight numbers, of mean 0 and deviation 1.

        The paper's ImageNet code subtracts (0, 0, 112, 0, 0, 112, 6.4e-5, 6.4e-5) and divides by (0.75, 0.75, 118,
        0.75, 0.75, 118, 7.75e-4, 7.75e-4) on pictures of 224 px; in sides instead of pixels they hold at any size. Its
        CIFAR code subtracts half a side alone and divides by 1, 20/32 and 0.015 x 32.
        """
        scale = images.uniform((n, 1, 1), 1 - self.scale, 1 + self.scale, rng)
        turn = torch.randint(4 if self.turns else 1, (n, 1), generator=rng, device=rng.device)
        corner = (torch.arange(4, device=rng.device) + turn) % 4
        square = torch.stack([(corner == 1) | (corner == 2), corner >= 2], 2).float() - 0.5
        moved = images.uniform((n, 4, 2), -self.corner, self.corner, rng)
        reads = warps.inverse(warps.homographies(square * scale + 0.5 + moved))
        tilt, spread = 6.4e-5 * 224, 7.75e-4 * 224
        mean = images.channel_values((0, 0, 1 / 2, 0, 0, 1 / 2, tilt, tilt), rng.device).flatten()
        deviations = (0.75, 0.75, 118 / 224, 0.75, 0.75, 118 / 224, spread, spread)
        deviation = images.channel_values(deviations, rng.device).flatten()
        return reads, (reads.flatten(1)[:, :8] - mean) / deviation

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Each picture, and its transformed version."""
        return inputs["original"], inputs["transformed"]

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return TransformationModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return regress(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        captions = [
            ", ".join(f"{name} {true:.1f} answered {answer:.1f}" for name, true, answer in zip(self.parameters, *pair))
            for pair in zip(targets.tolist(), outputs.tolist())
        ]
        return Panel({name: images.denormalise(pictures) for name, pictures in inputs.items()}, captions)


class TransformationModel(TaskModel):
    """One encoder for both pictures; their vectors side by side and a linear layer."""

    def __init__(self, encoder: Encoder, task: RelativeTransformation) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        hidden = (task.hidden,) if task.hidden else ()
        self.head = ClassifierHead(2 * encoder.dim, len(task.parameters), hidden, norm=True)

    def forward(self, original: Tensor, transformed: Tensor) -> Tensor:
        """Twice [n, 3, size, size] -> parameters [n, p]."""
        vectors = self.encoder(torch.cat([original, transformed]))
        parameters: Tensor = self.head(torch.cat(vectors.chunk(2), 1))
        return parameters

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The middle of the canvas, as the first picture shows it."""
        return self.encoder.layers(images.normalise(images.to_float(self.task.middle(raw["image"]))))
