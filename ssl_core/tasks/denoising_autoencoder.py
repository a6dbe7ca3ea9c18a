"""Denoising autoencoder: Vincent, Larochelle, Bengio & Manzagol 2008, https://doi.org/10.1145/1390156.1390294, and
Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html.

The network sees a damaged picture and restores the clean one. To fill in what was lost it must know what pictures look
like; but for single pixels the mean of their neighbours does as well. So noise here damages whole squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.decoders import PixelDecoder, last_map
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import Weighted, r_squared, regress
from ssl_core.ops import images
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class DenoisingAutoencoder:
    """What did the picture look like before it was damaged? Its pixels, by regression.

    Attributes:
        canvas: side in px of the square crop that the reader returns and the network sees.
        noise: "masking" blackens, "salt_pepper" makes black or white, "gaussian" adds; the papers try all three, on
            stacks of shallow autoencoders trained layer by layer; here the whole encoder learns at once.
        level: masking and salt_pepper: chance that a square is damaged, in all channels; the papers: 0.1, 0.25 and 0.4,
            and exactly this share of the inputs. gaussian: the standard deviation, black to white being 1; the papers:
            0.05 to 5.
        block: side in px of the squares that noise damages; the papers: 1, single pixels, which local smoothing
            restores.
        error: "squared", or "cross_entropy" of each pixel, as the papers use for writing.
        untouched: weight of undamaged pixels in the loss; the papers: 1, and also 0.5 and 0 (emphasis).
        flip: chance of a left-right mirror first; the papers: none, and 0 for writing and digits.
    """

    canvas: int = 224
    noise: Literal["masking", "salt_pepper", "gaussian"] = "masking"
    level: float = 0.4
    block: int = 16
    error: Literal["squared", "cross_entropy"] = "squared"
    untouched: float = 1.0
    flip: float = 0.5

    paper: ClassVar[str] = "Vincent et al. 2008, doi:10.1145/1390156.1390294"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut("local_smoothing", "Noise damages squares, whose middle no neighbour gives away.", {"block": 1}),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "level": Uniform(0.1, 0.75),
        "block": Choice((4, 8, 16, 32)),
        "untouched": Choice((0.0, 0.5, 1.0)),
    }

    def __post_init__(self) -> None:
        if self.canvas < 8 or not 1 <= self.block <= self.canvas:
            raise InputError(
                "denoising_autoencoder: canvas must be at least 8 px, block must be between 1 px and canvas."
            )
        if self.noise not in ("masking", "salt_pepper", "gaussian"):
            raise InputError(
                f"denoising_autoencoder: noise is {self.noise!r}; it can be masking, salt_pepper or gaussian."
            )
        if self.error not in ("squared", "cross_entropy"):
            raise InputError(f"denoising_autoencoder: error is {self.error!r}; it can be squared or cross_entropy.")
        if self.level <= 0 or (self.noise != "gaussian" and self.level >= 1):
            raise InputError(
                f"denoising_autoencoder: level is {self.level}; it must be above 0, and below 1 where it is a chance."
            )
        if not 0 <= self.untouched <= 1 or not 0 <= self.flip <= 1:
            raise InputError("denoising_autoencoder: untouched and flip must be between 0 and 1.")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Weighted]:
        """n images -> "images" [n, 3, canvas, canvas], damaged; the clean ones in [0, 1] and where they are damaged."""
        clean = images.random_flip(images.to_float(raw["image"]), rng, self.flip)
        damaged, struck = self._damage(clean, rng)
        return {"images": images.normalise(damaged)}, Weighted(clean, struck)

    def _damage(self, x: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """Damaged pictures [n, 3, s, s], and 1 where they are damaged, else 0: [n, 1, s, s]."""
        cells = -(-self.canvas // self.block) + (self.block > 1)
        if self.noise == "gaussian":
            noise = torch.randn(len(x), 3, cells, cells, generator=rng, device=x.device).mul_(self.level)
            return x + self._squares(noise, rng), torch.ones_like(x[:, :1])
        drawn = self._squares(images.uniform((len(x), 1, cells, cells), 0, 1, rng), rng)
        struck = drawn < self.level
        white = (drawn < self.level / 2).float() if self.noise == "salt_pepper" else torch.zeros_like(drawn)
        return torch.where(struck, white, x), struck.float()

    def _squares(self, cells: Tensor, rng: Generator) -> Tensor:
        """A value for each square -> for each pixel; the corner of the squares is drawn per image."""
        if self.block == 1:
            return cells
        corner = torch.randint(self.block, (2, len(cells), 1), generator=rng, device=rng.device)
        row, column = (corner + torch.arange(self.canvas, device=rng.device)) // self.block
        image = torch.arange(len(cells), device=rng.device).view(-1, 1, 1)
        return cells.movedim(1, 3)[image, row.unsqueeze(2), column.unsqueeze(1)].movedim(3, 1)

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return DenoisingModel(encoder(self.sample["image"]), self)

    def loss(self, outputs: Tensor, targets: Weighted) -> tuple[Tensor, dict[str, Tensor]]:
        """R²: of the damaged pixels. Signal to noise in dB: of the whole picture."""
        clean, struck = targets
        restored = self._restored(outputs)
        weights = struck + self.untouched * (1 - struck)
        if self.error == "squared":
            loss, _ = regress(outputs, Weighted(clean, weights))
        else:
            each = F.binary_cross_entropy_with_logits(outputs, clean, reduction="none")
            loss = (each * weights).flatten(1).sum(1) / (3 * weights.flatten(1).sum(1)).clamp_min(1e-6)
        squared = (restored - clean).square().flatten(1).mean(1).clamp_min(1e-10)
        return loss, {"r2": r_squared(restored, targets), "psnr": -10 * squared.log10()}

    def _restored(self, outputs: Tensor) -> Tensor:
        """Outputs as pictures, without gradient."""
        return outputs.detach().sigmoid() if self.error == "cross_entropy" else outputs.detach()

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Weighted) -> Panel:
        captions = [f"{value:.1f} dB" for value in self.loss(outputs, targets)[1]["psnr"].tolist()]
        restored = self._restored(outputs).clamp(0, 1)
        return Panel(
            {"damaged": images.denormalise(inputs["images"]), "restored": restored, "clean": targets.values}, captions
        )


class DenoisingModel(TaskModel):
    """Encoder and a decoder of its last feature map, without skip connections."""

    def __init__(self, encoder: Encoder, task: DenoisingAutoencoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = PixelDecoder(*last_map(encoder, task.sample["image"].shape), task.canvas)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, s, s] -> pixels, or their logits, [n, 3, s, s]."""
        *_, maps = self.encoder.stages(images).values()
        pixels: Tensor = self.decoder(maps)
        return pixels

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        return self.encoder.layers(images.normalise(images.to_float(raw["image"])))
