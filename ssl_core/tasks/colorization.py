"""Colorization: Zhang, Isola & Efros 2016, https://arxiv.org/abs/1603.08511.

The network sees the lightness of each pixel (L of Lab) and predicts its colour (a and b), as a distribution over 313
colours for each cell of a grid. For that it must recognise what it sees: grass, skin, brick. Colours are classes, since
many objects have several; each true colour is spread over its nearest classes.

Most of a photograph is nearly grey, and so is the safe answer. Rare colours therefore weigh more in the loss, by an
artefact: the prior of colours in the corpus. The annealed mean, between the mean and the mode, decodes the answer.

Grey pictures teach nothing and are left out. A cell's colour is that of its mean light, since JPEG stores colours at
half the resolution and lenses shift them by a pixel or so. The encoder never sees colours, not even in the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ssl_core import artefact
from ssl_core.errors import InputError
from ssl_core.nn.dense import DenseHead
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import Weighted, r_squared
from ssl_core.ops import images, lab
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

COLOURS = len(lab.BINS)
PRIOR_IMAGES = 10_000
"""Pictures with colours that the prior is computed from; the paper: all of ImageNet."""
PATIENCE = 20
"""Batches without any picture with colours after which the corpus counts as grey."""


def fit_prior(task: Colorization, batches: Iterator[Raw], rng: Generator) -> dict[str, Tensor]:
    """How often each of the 313 colours occurs in pictures that are not grey: "prior" [313], sum 1.

    Smoothed by a Gaussian of `sigma`, as in the paper, so that no colour's weight depends on a few pixels.

    Raises:
        InputError: the corpus has no colours.
    """
    counts, seen, tried = torch.zeros(COLOURS, dtype=torch.float64), 0, 0
    while seen < PRIOR_IMAGES:
        ab = task.make_batch(next(batches), rng)[1]
        coloured = task.coloured(ab)
        nearest = lab.encode(ab, 1).bins[coloured].flatten()
        counts += torch.bincount(nearest, minlength=COLOURS).cpu()
        seen, tried = seen + int(coloured.sum()), tried + 1
        if tried == PATIENCE and not seen:
            raise InputError(
                f"colorization: {PATIENCE} batches held no picture with colours; train on a corpus of colour pictures, "
                "or choose another task."
            )
    bins = torch.tensor(lab.BINS, dtype=torch.float64)
    distance = torch.cdist(bins, bins)
    spread = torch.softmax(distance.square() / (-2 * task.sigma**2), 1)
    prior = counts @ spread
    return {"prior": (prior / prior.sum()).float()}


@dataclass(frozen=True)
class Colorization:
    """Which colours does this grey picture have? 313 answers for each cell of a grid.

    Attributes:
        canvas: side in px of the square crop that the reader returns and the network sees; the paper's code: 176 of
            256.
        flip: mirror images at random, as the paper's code does.
        stride: side in px of a cell; it must divide canvas. The paper: 4, with features of stride 8; those of a ResNet
            have 32, and cells of 4 px take as long as the ResNet-18 itself; the paper's code takes one pixel of each
            cell, here its mean light.
        hidden: channels of the layers between the encoder's last maps and the answers; the paper: 256.
        neighbours: nearest classes over which a colour is spread; the paper: 5, its code: 10.
        sigma: width of the Gaussian for this spreading, and for the prior's smoothing, in units of Lab; the paper: 5.
        uniform: share of a uniform distribution mixed into the prior; weights are the inverse of the mixture; the
            paper: 0.5. At 1 all colours weigh the same, and answers turn grey.
        temperature: of the annealed mean that decodes the answer; the paper: 0.38. 1 is the mean, near 0 the mode.
        grey: pictures in which no cell's a or b is further than this from 0 are left out; the paper's code: 5.
        prior: digest of the prior over colours, an artefact; empty to fit it before training.
    """

    canvas: int = 176
    flip: bool = True
    stride: int = 8
    hidden: int = 256
    neighbours: int = 5
    sigma: float = 5.0
    uniform: float = 0.5
    temperature: float = 0.38
    grey: float = 5.0
    prior: str = ""

    paper: ClassVar[str] = "Zhang et al. 2016, arXiv:1603.08511"
    artefacts: ClassVar[Mapping[str, artefact.Fit]] = {"prior": fit_prior}
    shortcuts: ClassVar[tuple[Shortcut, ...]] = ()
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "uniform": Uniform(0.1, 1.0),
        "neighbours": Choice((1, 5, 10)),
    }

    def __post_init__(self) -> None:
        if self.canvas < 8 or self.stride < 1 or self.canvas % self.stride:
            raise InputError(
                f"colorization: stride is {self.stride} px and canvas {self.canvas} px; canvas must be at least 8 and "
                "a multiple of stride."
            )
        if self.hidden < 1 or not 1 <= self.neighbours <= COLOURS:
            raise InputError(f"colorization: hidden must be at least 1, neighbours must be between 1 and {COLOURS}.")
        if min(self.sigma, self.temperature) <= 0:
            raise InputError("colorization: sigma and temperature must be above 0.")
        if not 0 < self.uniform <= 1:
            raise InputError(
                f"colorization: uniform is {self.uniform}; it is a share and must be above 0 and at most 1."
            )
        if self.grey < 0:
            raise InputError(f"colorization: grey is {self.grey}; it must be at least 0.")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "lightness" [n, 1, canvas, canvas] in -1 to 1; a and b of each cell, [n, 2, cells, cells]."""
        light = lab.light(images.random_flip(raw["image"], rng, self.flip / 2))
        cells = lab.from_light(F.avg_pool2d(light, self.stride))
        return {"lightness": _scaled(lab.lightness(light))}, cells[:, 1:]

    def coloured(self, ab: Tensor) -> Tensor:
        """[n]: whether a picture has colours."""
        return ab.abs().amax((1, 2, 3)) > self.grey

    def weights(self, device: torch.device) -> Tensor:
        """[313]: each colour's weight in the loss, 1 on average over the prior (equation 4)."""
        prior = artefact.load(self.prior, device)["prior"]
        weights = 1 / torch.lerp(prior, torch.full_like(prior, 1 / COLOURS), self.uniform)
        return weights / (weights * prior).sum()

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return ColourModel(encoder(Field("image", (1, self.canvas, self.canvas))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with the spread colour, weighted by the nearest class (equation 2); 0 for grey pictures."""
        true, counts = (
            lab.encode(targets, self.neighbours, self.sigma),
            self.coloured(targets).float().view(-1, 1, 1, 1),
        )
        logs = outputs.movedim(1, -1).log_softmax(-1)
        each = -(true.shares * logs.gather(-1, true.bins)).sum(-1) * self.weights(logs.device)[true.bins[..., 0]]
        decoded = lab.annealed_mean(logs.detach().movedim(-1, 1), self.temperature)
        return each.mean((1, 2)) * counts.flatten(), {"r2": r_squared(decoded, Weighted(targets, counts))}

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        lightness = inputs["lightness"].float().add(1).mul(50)
        decoded = lab.annealed_mean(outputs, self.temperature)
        columns = {
            "seen": lab.paint(lightness, torch.zeros_like(targets)),
            "its colours": lab.paint(lightness, targets),
            "answered": lab.paint(lightness, decoded),
        }
        off = (decoded - targets).square().sum(1).sqrt().mean((1, 2)).tolist()
        return Panel(columns, [f"off by {distance:.0f} on average" for distance in off])


class ColourModel(TaskModel):
    """Encoder of lightness, and a head that predicts for each cell."""

    def __init__(self, encoder: Encoder, task: Colorization) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = DenseHead(encoder.dim, task.hidden, COLOURS, task.canvas // task.stride)

    def forward(self, lightness: Tensor) -> Tensor:
        """[n, 1, s, s] -> logits [n, 313, cells, cells]."""
        *_, last = self.encoder.stages(lightness).values()
        logits: Tensor = self.head(last)
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        return self.encoder.layers(_scaled(lab.lightness(lab.light(raw["image"]))))


def _scaled(lightness: Tensor) -> Tensor:
    """L to the network's range, -1 to 1; the paper subtracts 50. Changes its argument in place."""
    return lightness.div_(50).sub_(1)
