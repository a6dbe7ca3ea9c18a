"""Split-brain autoencoders: Zhang, Isola & Efros 2017, https://arxiv.org/abs/1611.09842.

Two networks of half the width: one sees the lightness of each pixel (L of Lab) and predicts its colour (a and b), the
other sees the colours and predicts the lightness. Together they see the whole picture, and neither sees its own answer.
So the encoder, unlike that of colorization, knows colours, and no input is left out in the evaluation.

Nothing may pass between the halves, or one would copy from the other: they share no layer, and each norm is over the
channels of one half alone. Answers are classes, each true value one class, all of the same weight, as in the paper:
colorization's measures for vivid colours did not help the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.dense import DenseHead
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import r_squared
from ssl_core.ops import images, lab
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

COLOURS = len(lab.BINS)


@dataclass(frozen=True)
class SplitBrain:
    """Which colours go with this lightness, and which lightness goes with these colours?

    Attributes:
        canvas: side in px of the square crop that the reader returns and the networks see; the paper: 180.
        flip: mirror images at random, as the paper does.
        stride: side in px of a cell, for which the networks predict; it must divide canvas. The paper: 12x12 cells.
        answers: "classes" (the paper's best) or "values", regression by squared error.
        l_bins: classes of lightness. Those of colour are colorization's 313.
        hidden: channels of the layers between each half's last maps and its answers.
    """

    canvas: int = 180
    flip: bool = True
    stride: int = 15
    answers: Literal["classes", "values"] = "classes"
    l_bins: int = 50
    hidden: int = 128

    paper: ClassVar[str] = "Zhang et al. 2017, arXiv:1611.09842"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = ()
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "answers": Choice(("classes", "values")),
        "l_bins": Choice((25, 50, 100)),
    }

    def __post_init__(self) -> None:
        if self.canvas < 8 or self.stride < 1 or self.canvas % self.stride:
            raise InputError(
                f"split_brain: stride is {self.stride} px and canvas {self.canvas} px; canvas must be at least 8 and "
                "a multiple of stride."
            )
        if self.answers not in ("classes", "values"):
            raise InputError(f"split_brain: answers is {self.answers!r}; it can be classes or values.")
        if self.l_bins < 2 or self.hidden < 1:
            raise InputError("split_brain: l_bins must be at least 2, hidden at least 1.")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "lab" [n, 3, canvas, canvas], L in -1 to 1; Lab of each cell, [n, 3, cells, cells]."""
        light = lab.light(images.random_flip(raw["image"], rng, self.flip / 2))
        return {"lab": _scaled(lab.from_light(light))}, lab.from_light(F.avg_pool2d(light, self.stride))

    def build(self, encoder: EncoderFactory) -> TaskModel:
        side = self.canvas
        halves = (encoder(Field("image", (channels, side, side)), width=0.5) for channels in (1, 2))
        return SplitModel(SplitEncoder(*halves), self)

    def loss(self, outputs: dict[str, Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both halves' losses, each a mean over cells."""
        if self.answers == "classes":
            level = targets[:, 0].mul(self.l_bins / 100).long().clamp_(0, self.l_bins - 1)
            colour = lab.encode(targets[:, 1:], 1).bins[..., 0]
            each = _cross_entropy(outputs["colours"], colour) + _cross_entropy(outputs["lightness"], level)
        else:
            values = torch.cat([outputs["lightness"], outputs["colours"]], 1)
            each = (values - _scaled(targets.clone())).square().sum(1) / 2
        found = self.decoded({name: value.detach() for name, value in outputs.items()})
        parts = {"explained_colours": slice(1, 3), "explained_lightness": slice(0, 1)}
        metrics = {name: r_squared(found[:, part], targets[:, part]) for name, part in parts.items()}
        return each.mean((1, 2)), {"r2": torch.stack([*metrics.values()]).mean(0), **metrics}

    def decoded(self, outputs: dict[str, Tensor]) -> Tensor:
        """Outputs as Lab [n, 3, cells, cells]; classes are decoded to their mean."""
        ab, lightness = outputs["colours"], outputs["lightness"]
        if self.answers == "values":
            return torch.cat([lightness.add(1), ab], 1).mul_(50)
        levels = (torch.arange(self.l_bins, device=ab.device) + 0.5).mul_(100 / self.l_bins).view(1, -1, 1, 1)
        mean = (lightness.softmax(1) * levels).sum(1, keepdim=True)
        return torch.cat([mean, lab.annealed_mean(ab, 1.0)], 1)

    def chance(self, batch: int) -> dict[str, float]:
        return dict.fromkeys(("r2", "explained_colours", "explained_lightness"), 0.0)

    def show(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], targets: Tensor) -> Panel:
        seen = inputs["lab"].float().mul(50)
        seen[:, :1] += 50
        found = self.decoded(outputs)
        grey = torch.zeros_like(found[:, 1:])
        columns = {
            "picture": lab.to_rgb(seen),
            "colours from lightness": lab.paint(seen[:, :1], found[:, 1:]),
            "lightness": lab.paint(seen[:, :1], grey),
            "lightness from colours": lab.to_rgb(torch.cat([found[:, :1], grey], 1)),
        }
        off = (found - targets).square()
        pairs = zip(off[:, 1:].sum(1).sqrt().mean((1, 2)).tolist(), off[:, 0].sqrt().mean((1, 2)).tolist())
        return Panel(columns, [f"off by {ab:.0f} in colour, {light:.0f} in lightness" for ab, light in pairs])


class SplitEncoder(Encoder):
    """One encoder for L and one for a and b, as one of both widths: [n, 3, s, s] Lab, channels side by side."""

    def __init__(self, lightness: Encoder, colours: Encoder) -> None:
        super().__init__()
        self.lightness, self.colours = lightness, colours
        self.dims = {name: lightness.dims[name] + colours.dims[name] for name in lightness.dims}
        self.dim = lightness.dim + colours.dim

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        return _side_by_side(self.lightness.stages(x[:, :1]), self.colours.stages(x[:, 1:]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.lightness(x[:, :1]), self.colours(x[:, 1:])], 1)

    def layers(self, x: Tensor) -> dict[str, Tensor]:
        return _side_by_side(self.lightness.layers(x[:, :1]), self.colours.layers(x[:, 1:]))


class SplitModel(TaskModel):
    """Both halves, each with its own head, which predicts what the other half sees."""

    def __init__(self, encoder: SplitEncoder, task: SplitBrain) -> None:
        super().__init__()
        self.encoder = encoder
        cells, of_classes = task.canvas // task.stride, task.answers == "classes"
        self.to_colours = DenseHead(encoder.lightness.dim, task.hidden, COLOURS if of_classes else 2, cells)
        self.to_lightness = DenseHead(encoder.colours.dim, task.hidden, task.l_bins if of_classes else 1, cells)

    def forward(self, lab: Tensor) -> dict[str, Tensor]:
        """[n, 3, s, s] -> "colours" and "lightness" of each cell, [n, classes or values, cells, cells]."""
        *_, seen_light = self.encoder.lightness.stages(lab[:, :1]).values()
        *_, seen_colours = self.encoder.colours.stages(lab[:, 1:]).values()
        return {"colours": self.to_colours(seen_light), "lightness": self.to_lightness(seen_colours)}

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        return self.encoder.layers(_scaled(lab.from_rgb(raw["image"])))


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """[n, k, c, c] and [n, c, c] -> [n, c, c]; classes last in memory, as channels_last maps have them."""
    rows = F.cross_entropy(logits.movedim(1, -1).flatten(0, 2), classes.flatten(), reduction="none")
    return rows.view_as(classes)


def _side_by_side(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([first[name], second[name]], 1) for name in first}


def _scaled(x: Tensor) -> Tensor:
    """Lab to the networks' range: L in -1 to 1 (the paper subtracts 50), a and b by the same factor. In place."""
    x[:, :1] -= 50
    return x.div_(50)
