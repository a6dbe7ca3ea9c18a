"""Exemplar-CNN: Dosovitskiy, Fischer, Springenberg, Riedmiller & Brox 2014, https://arxiv.org/abs/1406.6909.

Every image of the corpus is a class of its own, whose samples are random transformations of one patch of it, the seed:
shifted, scaled, turned, and changed in its colours. The network predicts which image it sees. Classes are the samples'
numbers in their corpus version, so there are no answers on other corpora, and a new version needs a new run.

Two images that look the same make one class contradict the other. The corpus holds the same file only once; pictures
that merely look alike must be left out by the user. With very many images the classes become too alike: the paper
found 8,000 best, and `exemplar_triplet` is the form that scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import radians
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ClassifierHead, classify
from ssl_core.ops import colour, images, warps
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class ExemplarCNN:
    """Which image of the corpus is it? As many answers as there are images.

    The paper makes about 150 samples of a class beforehand; here each visit makes a new one.

    Factors are drawn log-uniformly, so that f and 1 / f are as likely; 1 leaves a transformation out.

    Attributes:
        canvas: side in px of the square crop that the reader returns, the same crop of an image in every epoch.
        size: side in px of a patch, what the network sees; the paper: 32.
        classes: largest number of images; a larger corpus is refused. The paper: 50 to 32000, best 8000.
        seeds: "gradient" takes each canvas's patch of the largest mean squared gradient (the paper draws patches in
            proportion to it), "centre" the middle one; the paper varies their scale too, here the canvas sets it.
        translate: shift by up to this share of the patch; the paper: 0.2.
        zoom: scale by up to this factor, up or down; the paper: 1.4.
        degrees: rotation by at most so many degrees; the paper: 20.
        contrast: multiply each principal component of the colours by up to this factor, up or down; the paper: 2. The
            paper's components are those of its own pixels, here ImageNet's, light around 0.45.
        power: raise saturation and value to a power between 1 / power and power; the paper: 4.
        gain: then multiply both by up to this factor, up or down; the paper: 1.4.
        shift: then add up to this to both; the paper: 0.1.
        hue: largest turn of the hue, as a share of the circle; the paper: 0.1.
        fill: what is shown beyond the canvas: its reflection, or black.
        dropout: before the last layer; the paper: 0.5.
    """

    canvas: int = 96
    size: int = 32
    classes: int = 8000
    seeds: Literal["gradient", "centre"] = "gradient"
    translate: float = 0.2
    zoom: float = 1.4
    degrees: float = 20.0
    contrast: float = 2.0
    power: float = 4.0
    gain: float = 1.4
    shift: float = 0.1
    hue: float = 0.1
    fill: Literal["reflection", "zeros"] = "reflection"
    dropout: float = 0.5

    paper: ClassVar[str] = "Dosovitskiy et al. 2014, arXiv:1406.6909"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "colour_histogram",
            "Contrast, saturation, value and hue are changed.",
            {"contrast": 1.0, "power": 1.0, "gain": 1.0, "shift": 0.0, "hue": 0.0},
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "seeds": Choice(("gradient", "centre")),
        "zoom": LogUniform(1.1, 2.0),
        "degrees": Uniform(0.0, 45.0),
        "power": LogUniform(1.0, 4.0),
        "dropout": Choice((0.0, 0.5)),
    }

    def __post_init__(self) -> None:
        if not 8 <= self.size <= self.canvas:
            raise InputError(
                f"exemplar_cnn: size is {self.size} px and canvas {self.canvas}; size must be at least 8 "
                "and at most the canvas."
            )
        if self.classes < 2:
            raise InputError(f"exemplar_cnn: classes is {self.classes}; a choice needs at least 2.")
        for name in ("zoom", "contrast", "power", "gain"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"exemplar_cnn: {name} is {getattr(self, name)}; a factor must be at least 1, for no change."
                )
        for name in ("translate", "shift", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"exemplar_cnn: {name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if not 0 <= self.hue <= 0.5 or self.degrees < 0:
            raise InputError("exemplar_cnn: hue must be between 0 and 0.5, degrees must be at least 0.")
        if self.seeds not in ("gradient", "centre") or self.fill not in ("reflection", "zeros"):
            raise InputError("exemplar_cnn: seeds can be gradient or centre, fill reflection or zeros.")

    @property
    def sample(self) -> Mapping[str, Field]:
        shape = (3, self.canvas, self.canvas)
        return {"image": Field("image", shape), "number": Field("index", (), limit=self.classes)}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "images" [n, 3, size, size]; their numbers, [n]."""
        x = images.to_float(raw["image"])
        x = self._changed(self._moved(x, rng), rng)
        return {"images": images.normalise(x)}, raw["number"]

    def _moved(self, x: Tensor, rng: Generator) -> Tensor:
        """[n, 3, canvas, canvas] -> shifted, scaled and turned patches around the seeds, [n, 3, size, size]."""
        n = len(x)
        angle = images.uniform((n,), -radians(self.degrees), radians(self.degrees), rng)
        side = self._factors(n, self.zoom, rng)
        cos, sin = angle.cos() * side, angle.sin() * side
        move = images.uniform((n, 2), -self.translate, self.translate, rng) + self._seeds(x)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        right = move[:, 0] + 0.5 - 0.5 * (cos - sin)
        down = move[:, 1] + 0.5 - 0.5 * (sin + cos)
        rows = [torch.stack(row, 1) for row in ((cos, -sin, right), (sin, cos, down), (zero, zero, one))]
        return warps.project(x, torch.stack(rows, 1), self.size, self.fill)

    def _seeds(self, x: Tensor) -> Tensor:
        """[n, 2]: the offset of each seed's middle from the canvas's middle, right and down, in patches."""
        room = self.canvas - self.size
        if self.seeds == "centre" or not room:
            return torch.zeros(len(x), 2, device=x.device)
        grey = colour.grey(x)
        energy = F.pad(grey.diff(dim=3).square(), (0, 1)) + F.pad(grey.diff(dim=2).square(), (0, 0, 0, 1))
        for axis in (2, 3):  # sums over windows, as differences of running sums
            total = F.pad(energy.cumsum(axis), (0, 0, 1, 0) if axis == 2 else (1, 0))
            energy = total.narrow(axis, self.size, room + 1) - total.narrow(axis, 0, room + 1)
        best = energy.flatten(1).argmax(1)
        corner = torch.stack([best % (room + 1), best.div(room + 1, rounding_mode="floor")], 1)
        return (corner - room / 2) / self.size

    def _changed(self, x: Tensor, rng: Generator) -> Tensor:
        """New colours for [n, 3, size, size] in [0, 1]."""
        n = len(x)
        if self.contrast > 1:
            x = colour.scale_components(x, self._factors(3 * n, self.contrast, rng).view(n, 3))
        if max(self.power, self.gain) > 1 or self.shift or self.hue:
            power, gain = (self._factors(2 * n, most, rng).view(n, 2) for most in (self.power, self.gain))
            added = images.uniform((n, 2), -self.shift, self.shift, rng)
            x = colour.change_hsv(x, images.uniform((n,), -self.hue, self.hue, rng), power, gain, added)
        return x

    def _factors(self, n: int, most: float, rng: Generator) -> Tensor:
        """[n] log-uniform between 1 / most and most."""
        return torch.full((n,), most, device=rng.device) ** images.uniform((n,), -1, 1, rng)

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return ExemplarModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return classify(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / self.classes}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        pairs = zip(targets.tolist(), outputs.argmax(1).tolist())
        captions = [f"sample {true}, taken for {answer}" for true, answer in pairs]
        return Panel({"input": images.denormalise(inputs["images"])}, captions)


class ExemplarModel(TaskModel):
    """Encoder, dropout and one linear layer, which is as large as the corpus."""

    def __init__(self, encoder: Encoder, task: ExemplarCNN) -> None:
        super().__init__()
        self.size = task.size
        self.encoder = encoder
        self.head = ClassifierHead(encoder.dim, task.classes, dropout=task.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, size, size] -> logits [n, classes]."""
        logits: Tensor = self.head(self.encoder(images))
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        return self.encoder.layers(images.normalise(images.resize(raw["image"], self.size)))
