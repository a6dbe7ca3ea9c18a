"""Context prediction: Doersch, Gupta & Efros 2015, https://arxiv.org/abs/1505.05192.

From a 3x3 grid of patches the network gets the middle one and one of its eight neighbours, and predicts which of the
eight it is. Each pair is shown in both orders; the encoder sees a grid's nine patches once for its sixteen pairs.

Most of the paper is about shortcuts: patches have gaps and are moved at random, so that lines do not continue from one
into the other; two colour channels are dropped, since the lens shifts colours outwards and so reveals a patch's place
in the picture; each patch is standardised, since lighting varies over the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import classify
from ssl_core.ops import colour, images, patches
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

DIRECTIONS = ("up left", "up", "up right", "left", "right", "down left", "down", "down right")


@dataclass(frozen=True)
class ContextPrediction:
    """Where was the second patch, seen from the first? Eight answers.

    Attributes:
        canvas: side in px of the square crop that the reader returns; it must hold the grid, 3 patch + 2 gap + 2
            jitter.
        min_area: smallest share of the canvas that is cut and enlarged to it at random, once per image; 1 takes the
            canvas as it is. The paper resizes images to between 150,000 and 450,000 px, a third to all of the area.
        patch: side of a patch in px; the paper: 96.
        gap: px between patches; the paper: 48. 0 lets lines and textures continue from patch to patch.
        jitter: each patch moves by at most so many px on each axis; the paper: 7.
        grids: grids per image, placed at random; the paper: 4 grids that fill an image, with all neighbours paired
            (here the middle patch with its eight).
        colour: "drop" keeps one random channel of a patch and makes the others noise; "project" removes the axis from
            green to magenta, where achromatic lenses err, but not red against blue; "keep" leaves colours, and with
            them all chromatic aberration. The paper: drop or project.
        standardise: each patch to channel means 0 and root mean square 1, as the paper does; where channels are
            dropped, the one that is kept, as in its code.
        pixelate: chance that a patch is reduced, to 100 px at least, and enlarged again; the paper: 0.33.
        hidden: width of the two fully connected layers over a pair; the paper: 4096. Its fc6 of 4096 on each patch is
            here the encoder's pooled vector.
        representation: "patches" averages over nine patches that cover the canvas, what the encoder was trained on;
            "canvas" shows the whole canvas at once.
    """

    canvas: int = 400
    min_area: float = 1.0
    patch: int = 96
    gap: int = 48
    jitter: int = 7
    grids: int = 1
    colour: Literal["drop", "project", "keep"] = "drop"
    standardise: bool = True
    pixelate: float = 0.33
    hidden: int = 4096
    representation: Literal["patches", "canvas"] = "patches"

    paper: ClassVar[str] = "Doersch et al. 2015, arXiv:1505.05192"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("edge_continuity", "Patches stand apart and are moved at random.", {"gap": 0, "jitter": 0}),
        Shortcut("chromatic_aberration", "Two colour channels become noise, or are projected.", {"colour": "keep"}),
        Shortcut("luminance", "Each patch is standardised.", {"standardise": False}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "min_area": Uniform(0.33, 1.0),
        "colour": Choice(("drop", "project")),
        "pixelate": Uniform(0.0, 0.5),
    }

    def __post_init__(self) -> None:
        if min(self.patch, self.grids, self.hidden) < 1 or min(self.gap, self.jitter) < 0:
            raise InputError(
                "context_prediction: patch, grids and hidden must be at least 1, gap and jitter at least 0."
            )
        if self.canvas < self.span:
            raise InputError(
                f"context_prediction: the grid needs {self.span} px (3 patch + 2 gap + 2 jitter), canvas has "
                f"{self.canvas}; enlarge canvas or shrink patch, gap or jitter."
            )
        if not 0 < self.min_area <= 1 or not 0 <= self.pixelate <= 1:
            raise InputError("context_prediction: min_area and pixelate must be shares between 0 and 1.")
        if self.colour not in ("drop", "project", "keep"):
            raise InputError(f"context_prediction: colour is {self.colour!r}; it can be drop, project or keep.")
        if self.representation not in ("patches", "canvas"):
            raise InputError(
                f"context_prediction: representation is {self.representation!r}; it can be patches or canvas."
            )

    @property
    def span(self) -> int:
        """Side in px of the square that a grid may touch."""
        return patches.grid_span(3, self.patch, self.gap, self.jitter)

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images, g = n grids -> "patches" [9 g, 3, p, p], "first" and "second" [16 g] its rows; labels [16 g]."""
        x = raw["image"]
        if self.min_area < 1:
            x = images.random_resized_crop(x, self.canvas, rng, min_area=self.min_area, max_ratio=1.0, flip=0)
        corners = [self._corners(len(x), rng) for _ in range(self.grids)]
        top, left = (torch.cat(part, 1) for part in zip(*corners))
        cells = patches.cut(x, top, left, self.patch).flatten(0, 1)
        first, second, labels = _pairs(len(cells) // 9, x.device)
        return {"patches": self._prepare(cells, rng), "first": first, "second": second}, labels

    def _corners(self, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
        return patches.random_grids(n, self.canvas, rng, cells=3, patch=self.patch, gap=self.gap, jitter=self.jitter)

    def _prepare(self, cells: Tensor, rng: Generator) -> Tensor:
        """What the network sees of patches [m, 3, p, p]: pixelated, standardised, without chromatic aberration."""
        x = cells if cells.is_floating_point() else images.to_float(cells)
        if self.pixelate:
            x = images.random_pixelate(x, rng, self.pixelate)
        x = self.scaled(x)
        if self.colour == "drop":
            return colour.drop_channels(x, rng)
        return colour.project_green_magenta(x) if self.colour == "project" else x

    def scaled(self, x: Tensor) -> Tensor:
        """Patches or whole pictures [m, 3, p, p] in [0, 1] to the network's range."""
        return images.standardise(x, self.colour == "drop") if self.standardise else images.normalise(x)

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The two patches of each question."""
        return inputs["patches"][inputs["first"]], inputs["patches"][inputs["second"]]

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return PairModel(encoder(Field("image", (3, self.patch, self.patch))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return classify(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / 8}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        seen = images.shown_standardised(inputs["patches"])
        pairs = zip(targets.tolist(), outputs.argmax(1).tolist())
        captions = [f"{DIRECTIONS[true]}, answered {DIRECTIONS[answer]}" for true, answer in pairs]
        return Panel({"first": seen[inputs["first"]], "second": seen[inputs["second"]]}, captions)


class PairModel(TaskModel):
    """One encoder for both patches; their vectors side by side, two hidden layers, eight answers.

    As in the paper's code, the first hidden layer has batch norm without a learnt scale or shift, the second none.
    """

    def __init__(self, encoder: Encoder, task: ContextPrediction) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(2 * encoder.dim, task.hidden, bias=False),
            nn.BatchNorm1d(task.hidden, affine=False),
            nn.ReLU(True),
            nn.Linear(task.hidden, task.hidden),
            nn.ReLU(True),
            nn.Linear(task.hidden, 8),
        )

    def forward(self, patches: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """patches [m, 3, p, p], first and second [q] rows of it -> logits [q, 8]."""
        vectors = self.encoder(patches)
        logits: Tensor = self.head(torch.cat([vectors[first], vectors[second]], 1))
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """Deterministic: no jitter, no pixelation. Where training dropped channels, all three are shown at a third of
        their value.

        So the first layer's output is the mean of its outputs for each channel alone, standardised as in training.
        """
        x, task = raw["image"], self.task
        if task.representation == "canvas":
            return self.encoder.layers(self._plain(images.to_float(x)))
        top, left = patches.even_grid(task.canvas, task.patch, 3, x.device)
        cells = patches.cut(x, top.expand(len(x), -1), left.expand(len(x), -1), task.patch)
        layers = self.encoder.layers(self._plain(images.to_float(cells.flatten(0, 1))))
        return {name: vectors.view(len(x), 9, -1).mean(1) for name, vectors in layers.items()}

    def _plain(self, x: Tensor) -> Tensor:
        x = self.task.scaled(x)
        if self.task.colour == "project":
            return colour.project_green_magenta(x)
        return x / 3 if self.task.colour == "drop" else x


def _pairs(grids: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the first and second patch and the answer for 16 pairs per grid: from the middle, then to the middle."""
    direction = torch.arange(8, device=device)
    neighbour = direction + (direction >= 4)
    middle = torch.full_like(direction, 4)
    start = 9 * torch.arange(grids, device=device).unsqueeze(1)
    first = (start + torch.cat([middle, neighbour])).flatten()
    second = (start + torch.cat([neighbour, middle])).flatten()
    return first, second, torch.cat([direction, 7 - direction]).repeat(grids)
