"""Context encoder: Pathak, Krahenbuhl, Donahue, Darrell & Efros 2016, https://arxiv.org/abs/1604.07379.

A region of the picture is blanked and the network paints it from its surroundings. Features are best learnt from
regions of any shape at any place: a hole that is always in the middle can be painted from the pixels of its rim alone,
and a network that has learnt this sees little in a picture without the hole.

The paper's inpainting adds an adversary that distinguishes painted from real pictures, which sharpens them. The paper
learns its features without one, so it is off by default. If it is on, its gradient reaches the encoder reversed (Ganin
& Lempitsky 2014), so that one optimizer trains both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.decoders import ChannelwiseLinear, PixelDecoder, last_map
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import Weighted, r_squared
from ssl_core.ops import images
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

BLOCKS = 5
"""Squares that region "blocks" blanks; the paper: "a number of smaller, possibly overlapping" ones."""
KNOTS = 16
"""Px between the knots of the noise whose minima are region "random"; the authors' code: 1 / 0.06."""


class Contest(NamedTuple):
    """Outputs of a model with an adversary."""

    pixels: Tensor
    """[n, 3, s, s]."""
    real: Tensor
    """[n] logits of the adversary that real pictures are real."""
    painted: Tensor
    """[n] logits of the adversary that painted pictures are real."""


@dataclass(frozen=True)
class ContextEncoder:
    """What is in the region that was blanked? Its pixels, by regression from its surroundings.

    Attributes:
        canvas: side in px of the square crop that the reader returns and the network sees; the paper: 227, and 128 to
            inpaint.
        region: "random" blanks any shape anywhere (the paper: silhouettes of another data set, its code: minima of
            smooth noise, as here), "blocks" some squares, "central" one in the middle. The paper tries all three.
        share: of the picture's area that is blanked, for blocks at most; the paper: 0.25.
        overlap: central: px of the context around the hole that are painted too, with ten times the weight, so that the
            two fit together; the paper: 7; its code: 4, within the square.
        adversarial: weight of the adversary; the paper: 0.001 to inpaint, 0 for features. The paper trains the painter
            at ten times its adversary's rate; its code uses the non-saturating loss. Here both learn at one rate, by
            the minimax of equation 2. The paper's adversary has batch norm and sees the painted region alone where that
            is central; here it has none and sees the whole picture.
        flip: chance of a left-right mirror first; the paper: 0.5. 0 for writing and digits.
    """

    canvas: int = 224
    region: Literal["random", "blocks", "central"] = "random"
    share: float = 0.25
    overlap: int = 7
    adversarial: float = 0.0
    flip: float = 0.5

    paper: ClassVar[str] = "Pathak et al. 2016, arXiv:1604.07379"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("middle_rim", "The region has any shape and place.", {"region": "central"}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "region": Choice(("random", "blocks")),
        "share": Uniform(0.1, 0.5),
    }

    def __post_init__(self) -> None:
        if self.canvas < 8 or self.overlap < 0:
            raise InputError("context_encoder: canvas must be at least 8 px, overlap at least 0.")
        if self.region not in ("random", "blocks", "central"):
            raise InputError(f"context_encoder: region is {self.region!r}; it can be random, blocks or central.")
        if not 0.02 <= self.share <= 0.9:
            raise InputError(f"context_encoder: share is {self.share}; it must be between 0.02 and 0.9.")
        if not 0 <= self.adversarial < 1 or not 0 <= self.flip <= 1:
            raise InputError("context_encoder: adversarial must be at least 0 and below 1, flip between 0 and 1.")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Weighted]:
        """n images -> "images" [n, 3, s, s], blanked with the mean colour; the whole pictures, of which only the holes
        count.

        An adversary gets the whole pictures as "real".
        """
        x = images.normalise(images.random_flip(images.to_float(raw["image"]), rng, self.flip))
        holes = self._holes(len(x), rng)
        inputs = {"images": x * ~holes}
        return inputs | ({"real": x} if self.adversarial else {}), Weighted(x, holes.float())

    def _holes(self, n: int, rng: Generator) -> Tensor:
        """[n, 1, s, s] bool."""
        if self.region == "random":
            return self._lows(n, rng)
        place = torch.arange(self.canvas, device=rng.device)
        if self.region == "central":
            side = round(self.canvas * self.share**0.5)
            corner = torch.full((2, n, 1, 1), (self.canvas - side) // 2, device=rng.device)
        else:
            side = max(1, int(self.canvas * (self.share / BLOCKS) ** 0.5))
            corner = torch.randint(self.canvas - side + 1, (2, n, BLOCKS, 1), generator=rng, device=rng.device)
        rows, columns = ((place >= corner) & (place < corner + side)).unbind()
        return torch.any(rows.unsqueeze(3) & columns.unsqueeze(2), 1, keepdim=True)

    def _lows(self, n: int, rng: Generator) -> Tensor:
        """Where smooth noise is lowest: [n, 1, s, s] bool, `share` of each picture."""
        knots = max(4, self.canvas // KNOTS)
        coarse = torch.randn(n, 1, knots, knots, generator=rng, device=rng.device)
        smooth = F.interpolate(coarse, (self.canvas, self.canvas), mode="bicubic", align_corners=True)
        step = max(1, self.canvas // 64)  # a sample of the pixels gives the level, without a search in all
        some = smooth[..., ::step, ::step].flatten(1)
        level = some.kthvalue(max(1, round(self.share * some.shape[1])), 1).values
        return smooth <= level.view(-1, 1, 1, 1)

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the painter sees; only the adversary sees the whole pictures."""
        return inputs["images"], inputs["images"]

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return PaintingModel(encoder(self.sample["image"]), self)

    def loss(self, outputs: Tensor | Contest, targets: Weighted) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error in the hole and its overlap, and the adversary's own cross-entropy; R²: in the hole.

        The squared error is weighted and then divided by the number of pixels painted, as in the paper's code: divided
        by the sum of weights, it would count for less against the adversary wherever there is an overlap.
        """
        pixels = outputs.pixels if isinstance(outputs, Contest) else outputs
        weights = self._weights(targets.weights)
        error = (pixels - targets.values).square().mean(1, keepdim=True)
        painting = (error * weights).sum((1, 2, 3)) / (weights > 0).sum((1, 2, 3)).clamp_min(1)
        metrics = {"r2": r_squared(pixels, targets)}
        if not isinstance(outputs, Contest):
            return painting, metrics
        contest = F.softplus(-outputs.real) + F.softplus(outputs.painted)
        metrics["adversary_accuracy"] = ((outputs.real > 0).float() + (outputs.painted < 0).float()) / 2
        return (1 - self.adversarial) * painting + contest, metrics

    def _weights(self, holes: Tensor) -> Tensor:
        if self.region != "central" or not self.overlap:
            return holes
        around = F.max_pool2d(holes, 2 * self.overlap + 1, 1, self.overlap)
        return holes + 10 * (around - holes)

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor | Contest, targets: Weighted) -> Panel:
        pixels = outputs.pixels if isinstance(outputs, Contest) else outputs
        share = r_squared(pixels, targets).tolist()
        painted = torch.where(targets.weights > 0, pixels, targets.values)
        columns = {"seen": inputs["images"], "painted": painted, "true": targets.values}
        shown = {title: images.denormalise(pictures) for title, pictures in columns.items()}
        return Panel(shown, [f"{100 * part:.0f} % R²" for part in share])


class PaintingModel(TaskModel):
    """Encoder; linear layers over places and over channels, which carry features into the hole; a decoder.

    Beside them the adversary, if there is one, which sees whole pictures without knowing the hole.
    """

    def __init__(self, encoder: Encoder, task: ContextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.reversal = task.adversarial
        channels, side = last_map(encoder, task.sample["image"].shape)
        self.spread = nn.Sequential(ChannelwiseLinear(channels, side), nn.Conv2d(channels, channels, 1), nn.ReLU(True))
        self.decoder = PixelDecoder(channels, side, task.canvas)
        self.adversary = _adversary() if task.adversarial else None

    def forward(self, images: Tensor, real: Tensor | None = None) -> Tensor | Contest:
        """[n, 3, s, s] with holes, and whole for the adversary -> pixels [n, 3, s, s]."""
        *_, maps = self.encoder.stages(images).values()
        pixels: Tensor = self.decoder(self.spread(maps))
        if self.adversary is None:
            return pixels
        reversed_gradient = (1 + self.reversal) * pixels.detach() - self.reversal * pixels
        return Contest(pixels, self.adversary(real).flatten(), self.adversary(reversed_gradient).flatten())

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        return self.encoder.layers(images.normalise(images.to_float(raw["image"])))


def _adversary() -> nn.Sequential:
    """[n, 3, s, s] -> a logit each, positive for true pictures: strided convolutions as in DCGAN, without norm."""
    layers: list[nn.Module] = []
    for before, after in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1))
