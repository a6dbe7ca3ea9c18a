"""SimCLR: Chen, Kornblith, Norouzi & Hinton 2020, https://arxiv.org/abs/2002.05709.

Two random views of each image; each view must find the other among all views of the batch (NT-Xent). The
encoder learns to ignore what the views do not share. Two crops of one picture share their colours, so without strong
colour jitter and grey the colour histogram would solve the task.

The augmentations are the paper's ImageNet recipe. For digits or other writing turn `flip`, `jitter` and `grey` off
and the small affine warps on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.nn.contrast import nt_xent_and_top1
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ProjectionHead
from ssl_core.ops import images
from ssl_core.ops.views import Augmentation, check_views, random_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class SimCLR:
    """Which two views show the same image? Contrastive, with the other views of the batch as negatives, over all ranks.

    Attributes:
        canvas: side in px of the square crop that the reader returns; views are cut from it.
        size: side in px of a view, what the network sees; the paper: 224.
        min_area: smallest share of the canvas that a view shows; the paper: 0.08.
        max_ratio: a view's sides before resizing differ by at most this factor; the paper: 4/3.
        flip: chance of a left-right mirror; the paper: 0.5. 0 for writing and digits.
        jitter: strength of colour jitter; 1 is the paper's ImageNet value (brightness, contrast and saturation 0.8,
            hue 0.2), 0.5 its CIFAR value, 0 none.
        jitter_chance: chance that a view is jittered; the paper: 0.8.
        grey: chance that a view loses its colours; the paper: 0.2.
        blur: chance of a Gaussian blur, sigma 0.1 to 2 px; the paper: 0.5, none on CIFAR.
        degrees: rotation by at most so many degrees; the paper: none.
        shear: shear by at most so many degrees; the paper: none.
        translate: shift by up to this share of the side, black filled in; the paper: none.
        zoom: scale by up to this factor, up or down; the paper: none, which is 1.
        elastic: smooth elastic distortion (Simard 2003); standard deviation of the shifts, as a share of half the
            side; the paper: none. 0.1 for handwriting, whose strokes vary more than their place.
        temperature: divides the cosine similarities; the paper: 0.1, and 0.5 on CIFAR.
        hidden: width of the projection head's hidden layers; the paper: the encoder's, 2048.
        out: width of the projection; the paper: 128.
        layers: linear layers in the projection head; the paper: 2. Each is followed by batch norm, as in the authors'
            repository; the paper's equation has none.
    """

    canvas: int = 256
    size: int = 224
    min_area: float = 0.08
    max_ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 1.0
    jitter_chance: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0
    temperature: float = 0.1
    hidden: int = 2048
    out: int = 128
    layers: int = 2

    paper: ClassVar[str] = "Chen et al. 2020, arXiv:2002.05709"
    matching: ClassVar[Matching] = Matching("views")
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "colour_histogram", "Colour jitter and grey change each view's colours.", {"jitter": 0.0, "grey": 0.0}
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "temperature": LogUniform(0.05, 1.0),
        "min_area": LogUniform(0.05, 0.5),
        "jitter": Uniform(0.0, 1.0),
        "blur": Choice((0.0, 0.5)),
    }

    def __post_init__(self) -> None:
        if min(self.canvas, self.size) < 8 or min(self.hidden, self.out, self.layers) < 1:
            raise InputError("simclr: canvas and size must be at least 8 px; hidden, out and layers at least 1.")
        check_views("simclr", self, jitter=2)
        if self.temperature <= 0:
            raise InputError(f"simclr: temperature is {self.temperature}; it must be above 0.")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], None]:
        """n images -> "views" [2 n, 3, size, size]: the first view of every image, then the second of every image."""
        strength = self.jitter
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        views = random_views(raw["image"], self.size, rng, Augmentation.of(self, jitter, blur=self.blur))
        return {"views": views}, None

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return ViewModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Tensor, targets: None) -> tuple[Tensor, dict[str, Tensor]]:
        """Accuracy: the share of an image's two views whose nearest other view, on all ranks, is its partner."""
        first, second = outputs.chunk(2)
        loss, top1 = nt_xent_and_top1(first, second, self.temperature)
        return loss, {"accuracy": top1}

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / (2 * batch - 1)}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: None) -> Panel:
        first, second = images.denormalise(inputs["views"]).chunk(2)
        z1, z2 = torch.nn.functional.normalize(outputs.float(), dim=1).chunk(2)
        scores = z1 @ z2.T
        nearest = scores.argmax(1)
        captions = [
            f"cosine {own:.2f}, " + ("found" if found == i else f"mistaken for {found}")
            for i, (own, found) in enumerate(zip(scores.diagonal().tolist(), nearest.tolist()))
        ]
        return Panel({"view": first, "its other view": second, "nearest": second[nearest]}, captions)


class ViewModel(TaskModel):
    """Encoder and projection head; the head is discarded after training."""

    def __init__(self, encoder: Encoder, task: SimCLR) -> None:
        super().__init__()
        self.size = task.size
        self.encoder = encoder
        self.head = ProjectionHead(encoder.dim, task.hidden, task.out, layers=task.layers, last_norm=True)

    def forward(self, views: Tensor) -> Tensor:
        """[2 n, 3, size, size] -> projections [2 n, out]."""
        z: Tensor = self.head(self.encoder(views))
        return z

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        x = images.resize(raw["image"], self.size)
        return self.encoder.layers(images.normalise(x))
