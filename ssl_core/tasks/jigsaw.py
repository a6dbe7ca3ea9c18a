"""Jigsaw: Noroozi & Favaro 2016, https://arxiv.org/abs/1603.09246.

Nine tiles of an image are shown in one of N orders, and the network predicts which. It sees each tile alone and joins
their features only after the encoder (the paper's context-free network), so that no layer of the encoder can compare
borders. The orders are an artefact, chosen one by one so that each differs from all others in as many places as
possible.

Tiles are cut at random within their cells, so that lines do not continue from tile to tile; each is standardised, since
lighting varies over the picture; an image is shown in several orders, so that no tile is known by a fixed place. The
lens shifts colours outwards: the paper greys some images and shifts the channels of a tile against each other, which
weakens this shortcut without closing it (`grey` 1 does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import factorial
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from ssl_core import artefact
from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ClassifierHead, classify
from ssl_core.ops import colour, images, patches
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


def fit_permutations(task: Jigsaw, batches: Iterator[Raw], rng: Generator) -> dict[str, Tensor]:
    """The orders in which tiles are shown; uses no data."""
    return {"permutations": most_different(task.permutations, task.grid**2, rng)}


@dataclass(frozen=True)
class Jigsaw:
    """In which of N orders are the tiles?

    Attributes:
        canvas: side in px of the square crop that the reader returns; it must hold the tiles, grid tile + (grid - 1)
            gap + 2 jitter. The paper: 225, its code: 255.
        grid: tiles on each side; the paper: 3. A 2x2 puzzle has 24 orders at most.
        tile: side of a tile in px; the paper: 64.
        gap: px between tiles; the paper: 11 on average, in cells of 75 px; its code: 21, in cells of 85 px. 0 lets
            lines continue.
        jitter: each tile moves by at most so many px on each axis; the paper and its code: anywhere in its cell.
        permutations: how many orders there are; the paper: 1000, its published model: 100. Chosen by the least
            distance, then the paper's total.
        per_image: orders in which each image is shown in one batch; its tiles are encoded once for all of them. The
            paper shows an image in 69 orders on average, over the epochs.
        grey: share of images that lose their colours; the paper: 0.3. Their channels are not shifted, since the grey
            would show it.
        channel_jitter: each colour channel of a tile moves by at most so many px on its own; the paper: 2.
        standardise: each tile to channel means 0 and root mean square 1 over its channels together; the paper: mean and
            deviation of each tile; its code: means only.
        embed: width of the layer on each tile's vector; the paper's fc6: 512, its published model: 1024; both with
            dropout where here is batch norm.
        hidden: width of the layer over all tiles; the paper's fc7: 4096.
        representation: "tiles" averages over tiles that cover the canvas, what the encoder was trained on; "canvas"
            shows the whole canvas at once.
        permutation_set: digest of the orders, an artefact; empty to fit it before training.
    """

    canvas: int = 255
    grid: Literal[2, 3] = 3
    tile: int = 64
    gap: int = 21
    jitter: int = 10
    permutations: int = 1000
    per_image: int = 1
    grey: float = 0.3
    channel_jitter: int = 2
    standardise: bool = True
    embed: int = 512
    hidden: int = 4096
    representation: Literal["tiles", "canvas"] = "tiles"
    permutation_set: str = ""

    paper: ClassVar[str] = "Noroozi & Favaro 2016, arXiv:1603.09246"
    artefacts: ClassVar[Mapping[str, artefact.Fit]] = {"permutation_set": fit_permutations}
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("edge_continuity", "Tiles stand apart and are moved at random.", {"gap": 0, "jitter": 0}),
        Shortcut("luminance", "Each tile is standardised.", {"standardise": False}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "grey": Uniform(0.0, 1.0),
        "per_image": Choice((1, 2, 4)),
    }

    def __post_init__(self) -> None:
        if self.grid not in (2, 3):
            raise InputError(f"jigsaw: grid is {self.grid}; it can be 2 or 3.")
        if self.tile < 4 or min(self.gap, self.jitter, self.channel_jitter) < 0:
            raise InputError("jigsaw: tile must be at least 4 px; gap, jitter and channel_jitter at least 0.")
        if min(self.per_image, self.embed, self.hidden) < 1:
            raise InputError("jigsaw: per_image, embed and hidden must be at least 1.")
        if self.span > self.canvas:
            raise InputError(
                f"jigsaw: the tiles need {self.span} px (grid tile + (grid - 1) gap + 2 jitter), canvas has "
                f"{self.canvas}; enlarge canvas or shrink tile, gap or jitter."
            )
        if not 2 <= self.permutations <= factorial(self.grid**2):
            raise InputError(
                f"jigsaw: permutations is {self.permutations}; {self.grid**2} tiles have 2 to "
                f"{factorial(self.grid**2)} orders."
            )
        if not 0 <= self.grey <= 1:
            raise InputError(f"jigsaw: grey is {self.grey}; it must be a share between 0 and 1.")
        if self.representation not in ("tiles", "canvas"):
            raise InputError(f"jigsaw: representation is {self.representation!r}; it can be tiles or canvas.")

    @property
    def span(self) -> int:
        """Side in px of the square that the tiles may touch."""
        return patches.grid_span(self.grid, self.tile, self.gap, self.jitter)

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def orders(self, device: torch.device) -> Tensor:
        """[permutations, tiles]: which tile is shown at each place.

        Raises:
            InputError: the artefact is for another puzzle.
        """
        found = artefact.load(self.permutation_set, device)["permutations"]
        if found.shape != (self.permutations, self.grid**2):
            raise InputError(
                f"jigsaw: permutation_set holds {found.shape[0]} orders of {found.shape[1]} tiles, the task needs "
                f"{self.permutations} of {self.grid**2}; leave permutation_set empty to fit it anew."
            )
        return found

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images of t tiles, k orders each -> "tiles" [t n, 3, p, p] and "order" [k n, t], its rows; labels [k n]."""
        x = raw["image"]
        n, count = len(x), self.grid**2
        tiles = self._cut(x, rng)
        orders = self.orders(x.device)
        labels = torch.randint(len(orders), (n * self.per_image,), generator=rng, device=x.device)
        first = torch.arange(0, n * count, count, device=x.device).repeat_interleave(self.per_image)
        return {"tiles": self.scaled(tiles), "order": first.unsqueeze(1) + orders[labels]}, labels

    def _cut(self, x: Tensor, rng: Generator) -> Tensor:
        """Tiles in [0, 1] at their places in the picture, row by row: [t n, 3, p, p]."""
        n, limit = len(x), self.canvas - self.tile
        shape = {"cells": self.grid, "patch": self.tile, "gap": self.gap, "jitter": self.jitter}
        corners = torch.stack(patches.random_grids(n, self.canvas, rng, **shape)).unsqueeze(2)
        greyed = images.uniform((n, 1, 1, 1), 0, 1, rng) < self.grey
        if self.channel_jitter:
            reach = (2, n, 3, self.grid**2)
            moved = torch.randint(2 * self.channel_jitter + 1, reach, generator=rng, device=x.device)
            # a grey of shifted channels would have ghosts, which reveal the lens's shift
            moved = moved.sub_(self.channel_jitter).mul_(~greyed.squeeze(3))
            corners = (corners + moved).clamp_(0, limit)
        top, left = corners.expand(-1, -1, 3, -1)
        tiles = images.to_float(patches.cut_channels(x, top, left, self.tile).flatten(2, 3))
        tiles = torch.where(greyed, colour.grey(tiles), tiles)
        return tiles.view(n, 3, -1, self.tile, self.tile).transpose(1, 2).flatten(0, 1)

    def scaled(self, x: Tensor) -> Tensor:
        """Tiles in [0, 1] to the network's range."""
        return images.standardise(x) if self.standardise else images.normalise(x)

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """All tiles of each puzzle but the last, and the tiles shown next to them: [k n, t - 1, 3, p, p]."""
        shown = inputs["tiles"][inputs["order"]]
        return shown[:, :-1], shown[:, 1:]

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return TilesModel(encoder(Field("image", (3, self.tile, self.tile))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return classify(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / self.permutations}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        """The puzzle, and the tiles where the answer puts them."""
        shown = images.shown_standardised(inputs["tiles"])[inputs["order"]]
        answers = outputs.argmax(1)
        back = self.orders(answers.device)[answers].argsort(1)
        solved = shown[torch.arange(len(shown), device=answers.device).unsqueeze(1), back]
        captions = [f"order {true}, answered {answer}" for true, answer in zip(targets.tolist(), answers.tolist())]
        return Panel({"puzzle": self._pasted(shown), "as answered": self._pasted(solved)}, captions)

    def _pasted(self, tiles: Tensor) -> Tensor:
        """[q, t, 3, p, p] -> [q, 3, grid p, grid p]."""
        grid = tiles.view(-1, self.grid, self.grid, *tiles.shape[2:])
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class TilesModel(TaskModel):
    """One encoder for all tiles, each on its own; a layer on each tile's vector, one over all of them, N outputs."""

    def __init__(self, encoder: Encoder, task: Jigsaw) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.embed = nn.Sequential(
            nn.Linear(encoder.dim, task.embed, bias=False), nn.BatchNorm1d(task.embed), nn.ReLU()
        )
        self.head = ClassifierHead(task.grid**2 * task.embed, task.permutations, (task.hidden,), norm=True)

    def forward(self, tiles: Tensor, order: Tensor) -> Tensor:
        """tiles [m, 3, p, p], order [q, t] rows of it -> logits [q, permutations]."""
        vectors = self.embed(self.encoder(tiles))
        logits: Tensor = self.head(vectors[order].flatten(1))
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """Deterministic: tiles evenly spread, in colour, their channels unmoved."""
        x, task = raw["image"], self.task
        if task.representation == "canvas":
            return self.encoder.layers(task.scaled(images.to_float(x)))
        top, left = patches.even_grid(task.canvas, task.tile, task.grid, x.device)
        tiles = patches.cut(x, top.expand(len(x), -1), left.expand(len(x), -1), task.tile)
        layers = self.encoder.layers(task.scaled(images.to_float(tiles.flatten(0, 1))))
        return {name: vectors.view(len(x), task.grid**2, -1).mean(1) for name, vectors in layers.items()}


def most_different(count: int, tiles: int, rng: Generator) -> Tensor:
    """`count` permutations of `tiles` places, int64 [count, tiles], chosen greedily.

    The first is random. Each further one has the largest Hamming distance to the nearest one before; ties go to the
    largest total distance (the paper's criterion), then to the first in a random order. All candidates are compared at
    once.
    """
    every = _all_permutations(tiles, rng.device)
    every = every[torch.rand(len(every), generator=rng, device=rng.device).argsort()].T.contiguous()
    nearest = torch.full_like(every[0], tiles)
    total = torch.zeros_like(nearest, dtype=torch.int32)
    picked = [every[:, :1]]
    for _ in range(count - 1):
        distance = (every != picked[-1]).view(torch.uint8).sum(0, dtype=torch.uint8)
        total += distance
        torch.minimum(nearest, distance, out=nearest)
        best = total.add(nearest.int(), alpha=tiles * count + 1).argmax(0, keepdim=True)
        picked.append(every.index_select(1, best))
    return torch.cat(picked, 1).T.long().contiguous()


def _all_permutations(tiles: int, device: torch.device) -> Tensor:
    """uint8 [tiles!, tiles]: the largest tile put into every place of every order of the others."""
    found = torch.zeros(1, 1, dtype=torch.uint8, device=device)
    for last in range(1, tiles):
        new = torch.full_like(found[:, :1], last)
        found = torch.cat([torch.cat([found[:, :place], new, found[:, place:]], 1) for place in range(last + 1)])
    return found
