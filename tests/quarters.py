"""Quarters, a task of the tests alone: test_new_task.py puts it into a copy of ssl_core/tasks.

From where in the picture is this patch? After Doersch, Gupta & Efros 2015, https://arxiv.org/abs/1505.05192. A patch is
cut from each quarter of a picture, at a place drawn within it. Light falls off over a picture and would tell a patch's
quarter; so each patch is standardised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ClassifierHead, classify
from ssl_core.ops import images, patches
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

QUARTERS = ("upper left", "upper right", "lower left", "lower right")


@dataclass(frozen=True)
class Quarters:
    """From which quarter of the picture is the patch? Four answers, all four patches of every image.

    Attributes:
        canvas: side in px of the square crop that the reader returns; it must hold two patches and twice jitter.
        patch: side of a patch in px.
        jitter: each patch moves by up to so many px on each axis.
        standardise: each patch to channel means 0 and root mean square 1.
    """

    canvas: int = 224
    patch: int = 96
    jitter: int = 8
    standardise: bool = True

    paper: ClassVar[str] = "after Doersch et al. 2015, arXiv:1505.05192"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("luminance", "Each patch is standardised.", {"standardise": False}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {"jitter": Choice((0, 4, 8))}

    def __post_init__(self) -> None:
        if self.patch < 4 or self.jitter < 0:
            raise ValueError("quarters: patch must be at least 4 px, jitter at least 0.")
        if self.canvas < patches.grid_span(2, self.patch, 0, self.jitter):
            raise ValueError(
                f"quarters: canvas is {self.canvas} px and does not hold two patches of {self.patch} px and twice a "
                f"jitter of {self.jitter}; enlarge canvas or shrink patch or jitter."
            )

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "patches" [4 n, 3, p, p], the four of an image in a row; the quarter, [4 n]."""
        x = raw["image"]
        corners = patches.random_grids(len(x), self.canvas, rng, cells=2, patch=self.patch, gap=0, jitter=self.jitter)
        cut = images.to_float(patches.cut(x, *corners, self.patch).flatten(0, 1))
        return {"patches": self.scaled(cut)}, torch.arange(4, device=x.device).repeat(len(x))

    def scaled(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] to the network's range."""
        return images.standardise(x) if self.standardise else images.normalise(x)

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return QuartersModel(encoder(Field("image", (3, self.patch, self.patch))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return classify(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / 4}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        pairs = zip(targets.tolist(), outputs.argmax(1).tolist())
        captions = [f"{QUARTERS[true]}, answered {QUARTERS[answer]}" for true, answer in pairs]
        return Panel({"patch": images.shown_standardised(inputs["patches"])}, captions)


class QuartersModel(TaskModel):
    """Encoder and one linear layer."""

    def __init__(self, encoder: Encoder, task: Quarters) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.head = ClassifierHead(encoder.dim, 4)

    def forward(self, patches: Tensor) -> Tensor:
        """[m, 3, p, p] -> logits [m, 4]."""
        logits: Tensor = self.head(self.encoder(patches))
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas at once."""
        return self.encoder.layers(self.task.scaled(images.to_float(raw["image"])))
