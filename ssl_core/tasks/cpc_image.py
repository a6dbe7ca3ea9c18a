"""Contrastive predictive coding on images: van den Oord, Li & Vinyals 2018, https://arxiv.org/abs/1807.03748.

An image is cut into a grid of overlapping patches, each of which the encoder sees alone. Row by row from the top
a masked convolution sums up the patches so far, and from this context the vectors of the patches some rows below are
predicted. Each prediction must find its patch among all patches of all images (InfoNCE):

    score(patch, context, k) = vector(patch) . W_k context

The context network is that of CPC v2 (Hénaff et al. 2019, https://arxiv.org/abs/1905.09272). Batch norm would leak the
rows below into the context: set encoder.norm to none, as the paper does. (Group norm divides by almost zero on patches
of one colour; digits, whose borders are such patches, are not learnt with it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.contrast import Positives, gather, info_nce_and_top1
from ssl_core.nn.encoders import Encoder
from ssl_core.ops import colour, images, patches
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

GREY_MEAN, GREY_STD = (0.458,), (0.226,)
"""Mean and deviation of ImageNet's luma."""


@dataclass(frozen=True)
class CPCImage:
    """Which patch lies k rows below? Contrastive, against all patches of the batch on all ranks.

    Attributes:
        canvas: side in px of the square crop that the reader returns; it must hold the grid, (cells - 1) stride +
            patch, which is placed at random where there is room. The paper: 256.
        cells: patches along each side of the grid; the paper: 7.
        patch: side of a patch in px; the paper: 64.
        stride: px from one patch to the next; the paper: 32, so that neighbours share half of their pixels.
        subcrop: side in px of the part of a patch that is shown, cut at random and padded back; the paper: 60.
        flip: chance of a left-right mirror; the paper: 0.5.
        grey: show luma only, as the paper does.
        steps: the farthest row below that is predicted; the paper: 5. All predictions have the same weight, so near
            rows, of which there are more, weigh more; in v2 all rows have the same weight.
        skip: nearest rows below that are not predicted; the paper: 0, v2: 2, here 1, the rows that share pixels
            as long as patch is at most twice stride.
        blocks: residual blocks of the context network; v2: 5.
        width: channels within these blocks; v2: 256.
        out: width in which predictions and patches are compared; 0 takes the encoder's own vectors as the paper does,
            v2: 64. The paper's are its third stage's mean, 1024 wide; here the last stage's.
        scale: multiplies the predictions; the paper: 1, v2: 0.1.
    """

    canvas: int = 256
    cells: int = 7
    patch: int = 64
    stride: int = 32
    subcrop: int = 60
    flip: float = 0.5
    grey: bool = True
    steps: int = 5
    skip: int = 1
    blocks: int = 5
    width: int = 256
    out: int = 0
    scale: float = 1.0

    paper: ClassVar[str] = "van den Oord et al. 2018, arXiv:1807.03748"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("shared_pixels", "Rows that overlap with the context are not predicted.", {"skip": 0}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "skip": Choice((0, 1, 2)),
        "out": Choice((0, 64)),
        "scale": LogUniform(0.05, 1.0),
    }

    def __post_init__(self) -> None:
        if min(self.cells, self.patch, self.stride, self.subcrop, self.width) < 1 or min(self.blocks, self.out) < 0:
            raise InputError(
                "cpc_image: cells, patch, stride, subcrop and width must be at least 1; blocks and out at least 0."
            )
        if self.subcrop > self.patch or (self.patch - self.subcrop) % 2:
            raise InputError(
                f"cpc_image: subcrop is {self.subcrop}; it must be patch, {self.patch}, or less by an even number."
            )
        if self.canvas < self.span:
            raise InputError(
                f"cpc_image: the grid needs {self.span} px ((cells - 1) stride + patch), canvas has {self.canvas}; "
                "enlarge canvas or shrink cells, stride or patch."
            )
        if not 0 <= self.skip < self.steps < self.cells:
            raise InputError(
                f"cpc_image: skip is {self.skip} and steps is {self.steps}; skip must be below steps, and steps below "
                f"cells, {self.cells}."
            )
        if not 0 <= self.flip <= 1 or self.scale <= 0:
            raise InputError("cpc_image: flip must be between 0 and 1, scale above 0.")

    @property
    def span(self) -> int:
        """Side in px of the square that the grid touches."""
        return (self.cells - 1) * self.stride + self.patch

    @property
    def channels(self) -> int:
        """Channels of a patch as the encoder sees it."""
        return 1 if self.grey else 3

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Positives]:
        """n images -> "patches" [n cells cells, c, p, p], row by row, image by image; queries and patches to find."""
        x = self.prepared(raw["image"])
        if self.flip:
            x = images.random_flip(x, rng, self.flip)
        gap, jitter = self.stride - self.subcrop, (self.patch - self.subcrop) // 2
        grid = {"cells": self.cells, "patch": self.subcrop, "gap": gap, "jitter": jitter}
        top, left = patches.random_grids(len(x), self.canvas, rng, **grid)
        return {"patches": self.cut(x, top, left)}, self._below(len(x), x.device)

    def prepared(self, x: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] -> the pictures that patches are cut from, [n, channels, h, w]."""
        x = images.to_float(x)
        return images.normalise(colour.grey(x), GREY_MEAN, GREY_STD) if self.grey else images.normalise(x)

    def cut(self, x: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Subcrops with the given corners [n, k], padded to patches [n k, c, p, p]."""
        margin = (self.patch - self.subcrop) // 2
        cells = patches.cut(x, top, left, self.subcrop).flatten(0, 1)
        return F.pad(cells, (margin,) * 4) if margin else cells

    def _below(self, n: int, device: torch.device) -> Positives:
        place = torch.arange(n * self.cells**2, device=device).view(n, self.cells, self.cells)
        rows = [(place[:, :-k].flatten(), place[:, k:].flatten()) for k in range(self.skip + 1, self.steps + 1)]
        above, below = zip(*rows)
        return Positives(torch.cat(above), torch.cat(below))

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return PredictiveModel(encoder(Field("image", (self.channels, self.patch, self.patch))), self)

    def loss(self, outputs: Predictions, targets: Positives) -> tuple[Tensor, dict[str, Tensor]]:
        """One per prediction. Accuracy: whether its own patch is the nearest on all ranks."""
        predicted, vectors = outputs
        keys, offset = gather(vectors)
        loss, top1 = info_nce_and_top1(predicted, keys, targets.key + offset, 1.0)
        return loss, {"accuracy": top1}

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / (batch * self.cells**2)}

    def show(self, inputs: dict[str, Tensor], outputs: Predictions, targets: Positives) -> Panel:
        """Some predictions: the patch that they start from, the one to find, and the one that they find."""
        some = torch.linspace(
            0, len(outputs.predicted) - 1, min(32, len(outputs.predicted)), device=outputs.predicted.device
        ).long()
        found = (outputs.predicted[some].float() @ outputs.vectors.float().T).argmax(1)
        query, key = targets.query[some], targets.key[some]
        rows = ((key - query) // self.cells).tolist()
        captions = [f"{k} rows below, " + ("found" if right else "mistaken") for k, right in zip(rows, found == key)]
        seen = inputs["patches"].float()
        seen = images.denormalise(seen, GREY_MEAN, GREY_STD) if self.grey else images.denormalise(seen)
        seen = seen.expand(-1, 3, -1, -1)
        return Panel({"from": seen[query], "its answer": seen[key], "found": seen[found]}, captions)


class Predictions(NamedTuple):
    """Predictions [q, d], in the order of the targets, and the vectors of all patches [m, d]."""

    predicted: Tensor
    vectors: Tensor


class PredictiveModel(TaskModel):
    """Encoder of patches, context network, and for each row below one linear prediction without a bias (equation 3)."""

    def __init__(self, encoder: Encoder, task: CPCImage) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.context = nn.Sequential(*[ContextBlock(encoder.dim, task.width) for _ in range(task.blocks)], nn.ReLU())
        self.target = nn.Linear(encoder.dim, task.out) if task.out else nn.Identity()
        width = task.out or encoder.dim
        self.predict = nn.ModuleList(nn.Linear(encoder.dim, width, bias=False) for _ in range(task.skip, task.steps))

    def forward(self, patches: Tensor) -> Predictions:
        """[n cells cells, c, p, p], row by row, image by image."""
        task, vectors = self.task, self.encoder(patches)
        grid = vectors.view(-1, task.cells, task.cells, self.encoder.dim)
        context = self.context(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        steps = range(task.skip + 1, task.steps + 1)
        predicted = [predict(context[:, :-k]).flatten(0, 2) for k, predict in zip(steps, self.predict)]
        return Predictions(torch.cat(predicted) * task.scale, self.target(vectors))

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """Mean over patches that are spread evenly over the canvas."""
        x, task = self.task.prepared(raw["image"]), self.task
        top, left = patches.even_grid(task.canvas, task.subcrop, task.cells, x.device)
        layers = self.encoder.layers(task.cut(x, top.expand(len(x), -1), left.expand(len(x), -1)))
        return {name: vectors.view(len(x), -1, vectors.shape[1]).mean(1) for name, vectors in layers.items()}


class ContextBlock(nn.Module):
    """Residual block over a grid [n, dim, rows, columns]: an output sees its own row and the one above only."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.row = nn.Sequential(nn.Conv2d(dim, width, 1), nn.ReLU(), nn.Conv2d(width, width, (1, 3), padding=(0, 1)))
        self.column = nn.Sequential(nn.Conv2d(width, width, (2, 1)), nn.ReLU(), nn.Conv2d(width, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.column(F.pad(self.row(x), (0, 0, 1, 0)))
        return out
