"""Image position (after MP3): Zhai, Jaitly, Ramapuram, Busbridge, Likhomanenko, Cheng, Talbott, Huang, Goh & Susskind
2022, https://arxiv.org/abs/2207.07611.

A ViT gets the patches of a picture as a set, without their positions, and predicts where each was. All patches attend
to a few visible ones only, so that most cannot be fitted together edge by edge and must be placed by what they show.

The patches come in random order, cut from within the picture with random gaps, so that neither the order nor a rim nor
a line from patch to patch gives the place away. Light and the lens, which differ from the middle of a photo to its
edges, would: patches are standardised and lose two of their colours, as in context prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.encoders.vit import ViT
from ssl_core.nn.heads import ClassifierHead, classify
from ssl_core.ops import colour, images, patches
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class ImagePosition:
    """Where in the picture was each patch? One answer of cells^2 per patch; needs a ViT without positions.

    Attributes:
        canvas: side in px of the square crop that the reader returns; it must hold the grid, cells patch + (cells - 1)
            gap + 2 jitter. The grid's place in it is drawn per image.
        cells: patches along a side; the paper: 14.
        patch: side of a patch in px, the same as encoder.patch; the paper: 16.
        gap: px between patches; the paper: 0.
        jitter: each patch moves by at most so many px on each axis, at most half the gap; the paper: 0.
        shown: share of the patches that the network gets; the paper: 1.
        seen: share of those to which the others can attend; the paper: 0.25.
        colour: "drop" keeps one random channel of a patch and makes the others noise; "project" removes the axis from
            green to magenta; "keep", as in the paper, leaves all chromatic aberration.
        standardise: each patch to channel means 0 and root mean square 1, where channels are dropped the one that is
            kept; the paper: no.
        flip: chance of a left-right mirror first; the paper: 0.5. 0 for writing and digits.
    """

    canvas: int = 256
    cells: int = 14
    patch: int = 16
    gap: int = 2
    jitter: int = 1
    shown: float = 1.0
    seen: float = 0.25
    colour: Literal["drop", "project", "keep"] = "drop"
    standardise: bool = True
    flip: float = 0.5

    paper: ClassVar[str] = "Zhai et al. 2022, arXiv:2207.07611"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("chromatic_aberration", "Two colour channels become noise, or are projected.", {"colour": "keep"}),
        Shortcut("luminance", "Each patch is standardised.", {"standardise": False}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "seen": Uniform(0.1, 0.75),
        "shown": Uniform(0.5, 1.0),
        "colour": Choice(("drop", "project", "keep")),
    }

    def __post_init__(self) -> None:
        if self.cells < 2 or self.patch < 1 or not 0 <= 2 * self.jitter <= self.gap:
            raise InputError(
                "image_position: cells must be at least 2, patch at least 1, and gap at least twice jitter, so that "
                "patches share no pixel."
            )
        if self.canvas < self.span:
            raise InputError(
                f"image_position: the grid needs {self.span} px (cells patch + (cells - 1) gap + 2 jitter), canvas has "
                f"{self.canvas}; enlarge canvas or shrink cells, patch, gap or jitter."
            )
        if not 0 < self.seen <= 1 or not 0 < self.shown <= 1 or not 0 <= self.flip <= 1:
            raise InputError("image_position: shown and seen must be shares above 0, flip must be between 0 and 1.")
        if self.colour not in ("drop", "project", "keep"):
            raise InputError(f"image_position: colour is {self.colour!r}; it can be drop, project or keep.")

    @property
    def span(self) -> int:
        """Side in px of the square that the grid may touch."""
        return patches.grid_span(self.cells, self.patch, self.gap, self.jitter)

    @property
    def counts(self) -> tuple[int, int]:
        """Patches that the network gets of an image, and how many of them are visible to the others."""
        shown = max(1, round(self.shown * self.cells**2))
        return shown, max(1, round(self.seen * shown))

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "patches" [n m, 3, p, p], an image's m in random order, visible ones first; places [n m]."""
        x = images.random_flip(raw["image"], rng, self.flip)
        corners = patches.random_grids(
            len(x), self.canvas, rng, cells=self.cells, patch=self.patch, gap=self.gap, jitter=self.jitter
        )
        order = images.uniform((len(x), self.cells**2), 0, 1, rng).argsort(1)[:, : self.counts[0]]
        top, left = (corner.gather(1, order) for corner in corners)
        cells = self._scaled(images.to_float(patches.cut(x, top, left, self.patch).flatten(0, 1)))
        if self.colour == "drop":
            cells = colour.drop_channels(cells, rng)
        elif self.colour == "project":
            cells = colour.project_green_magenta(cells)
        return {"patches": cells}, order.flatten()

    def _scaled(self, x: Tensor) -> Tensor:
        """Patches [m, 3, p, p] in [0, 1] to the network's range."""
        return images.standardise(x, self.colour == "drop") if self.standardise else images.normalise(x)

    def whole(self, x: Tensor) -> Tensor:
        """Pictures [n, 3, canvas, canvas] uint8 as [n, 3, cells patch, cells patch], their patches as in training.

        Deterministic: no jitter; where training dropped channels, all three are shown at a third of their value.
        """
        top, left = patches.even_grid(self.canvas, self.patch, self.cells, x.device)
        cells = patches.cut(x, top.expand(len(x), -1), left.expand(len(x), -1), self.patch).flatten(0, 1)
        cells = self._scaled(images.to_float(cells))
        if self.colour == "project":
            cells = colour.project_green_magenta(cells)
        return self._laid_out(cells / 3 if self.colour == "drop" else cells, torch.arange(len(top), device=x.device))

    def _laid_out(self, cells: Tensor, places: Tensor) -> Tensor:
        """Patches [n m, 3, p, p] at places [m] or [n, m] of pictures [n, 3, cells p, cells p]; 0 where none is."""
        rows = cells.permute(0, 2, 3, 1).reshape(-1, places.shape[-1], 3 * self.patch**2)
        grid = rows.new_zeros(len(rows), self.cells**2, rows.shape[2])
        return patches.join(
            grid.scatter(1, places.expand(rows.shape[:2]).unsqueeze(2).expand_as(rows), rows), self.patch
        )

    def build(self, encoder: EncoderFactory) -> TaskModel:
        side = self.cells * self.patch
        return PositionModel(encoder(Field("image", (3, side, side))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return classify(outputs, targets)

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / self.cells**2}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        cells = images.shown_standardised(inputs["patches"])
        true, answers = (places.view(-1, self.counts[0]) for places in (targets, outputs.argmax(1)))
        right = (true == answers).sum(1).tolist()
        columns = {"true": self._laid_out(cells, true), "answered": self._laid_out(cells, answers)}
        return Panel(columns, [f"{count} of {self.counts[0]} in their place" for count in right])


class PositionModel(TaskModel):
    """A ViT without positions and one linear layer over each patch."""

    def __init__(self, encoder: Encoder, task: ImagePosition) -> None:
        super().__init__()
        if not isinstance(encoder, ViT):
            raise InputError("image_position shows patches as a set, which needs a ViT; set encoder.name to vit_small.")
        if encoder.positions is not None:
            raise InputError(
                "image_position predicts positions, so the encoder must not have them; set encoder.positions to none."
            )
        if encoder.patches.kernel_size != (task.patch, task.patch):
            raise InputError(
                f"image_position: task.patch is {task.patch} and encoder.patch {encoder.patches.kernel_size[0]}; "
                "they must be the same."
            )
        self.task = task
        self.encoder = encoder
        self.head = ClassifierHead(encoder.dim, task.cells**2)

    def forward(self, patches: Tensor) -> Tensor:
        """[n m, 3, p, p] -> logits [n m, cells^2]."""
        shown, seen = self.task.counts
        tokens = self.encoder.tokens(patches).view(-1, shown, self.encoder.dim)
        encoded = self.encoder.encode(tokens, seen)[:, -shown:]
        logits: Tensor = self.head(encoded.flatten(0, 1))
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """All patches of the canvas, each visible to all."""
        return self.encoder.layers(self.task.whole(raw["image"]))
