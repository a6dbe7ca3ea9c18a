"""Exemplar by metric learning: Kolesnikov, Zhai & Beyer 2019, https://arxiv.org/abs/1901.09005.

Every image is a class of its own (Dosovitskiy et al. 2014), whose samples are several heavily distorted crops of it. A
classifier of that many classes does not scale, so a triplet loss takes its place: the crops of one image must be
nearer to each other than to those of any other image, by a margin.

The vectors are normalised sample by sample. (The paper's released code divides by the norm over the batch.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.triplet import semi_hard_triplet_and_top1
from ssl_core.ops import colour, images
from ssl_core.ops.views import Augmentation, check_views, random_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class ExemplarTriplet:
    """Which crops show the same image? Triplets with semi-hard negatives over all ranks.

    Attributes:
        canvas: side in px of the square crop that the reader returns; crops are cut from it.
        size: side in px of a crop, what the network sees; the paper: 224.
        views: crops per image; the paper: 8.
        min_area: smallest share of the canvas that a crop shows; the paper: 0.05.
        max_ratio: a crop's sides before resizing differ by at most this factor; the paper: 4/3.
        flip: chance of a left-right mirror; the paper: 0.5. 0 for writing and digits.
        degrees: rotation by at most so many degrees; the paper: none. (Dosovitskiy 2014: 20.)
        elastic: smooth elastic distortion; standard deviation of the shifts, as a share of half the side; the
            paper: none.
        brightness: strength of brightness jitter; the paper adds up to 32/255, here it is a factor.
        jitter: strength of contrast and saturation jitter; the paper: 0.5.
        hue: largest turn of the hue, as a share of the circle; the paper: 0.2.
        grey: chance that an image loses its colours before it is cropped; the paper: 0.66; its code takes the
            channels' mean, here luma.
        standardise: each crop to mean 0 and deviation 1 over its three channels together; the paper's code: yes. It
            undoes much of the jitter of brightness and contrast, so that colours alone give away a tenth of the
            answers. If false, pictures are normalised by ImageNet's mean and deviation.
        margin: by how much a squared distance to a negative must exceed that to a positive; the paper: 0.5.
        out: width of the embedding; the paper: 1000.
    """

    canvas: int = 256
    size: int = 224
    views: int = 8
    min_area: float = 0.05
    max_ratio: float = 4 / 3
    flip: float = 0.5
    degrees: float = 0.0
    elastic: float = 0.0
    brightness: float = 0.125
    jitter: float = 0.5
    hue: float = 0.2
    grey: float = 0.66
    standardise: bool = False
    margin: float = 0.5
    out: int = 1000

    paper: ClassVar[str] = "Kolesnikov et al. 2019, arXiv:1901.09005"
    matching: ClassVar[Matching] = Matching("views")
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "colour_histogram",
            "Each crop's brightness, contrast, saturation and hue are changed.",
            {"brightness": 0.0, "jitter": 0.0, "hue": 0.0},
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "margin": Uniform(0.2, 1.0),
        "min_area": LogUniform(0.05, 0.5),
        "views": Choice((2, 4, 8)),
        "jitter": Uniform(0.0, 0.8),
    }

    def __post_init__(self) -> None:
        if min(self.canvas, self.size) < 8 or self.out < 1 or self.views < 2:
            raise InputError(
                "exemplar_triplet: canvas and size must be at least 8 px, out at least 1, views at least 2."
            )
        check_views("exemplar_triplet", self, brightness=1)
        if not 0 < self.margin <= 4:
            raise InputError(
                f"exemplar_triplet: margin is {self.margin}; it must be above 0 and at most 4, the largest squared "
                "distance of unit vectors."
            )

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], None]:
        """n images -> "views" [views n, 3, size, size]: the first crop of every image, then the second, and so on."""
        x = raw["image"]
        if self.grey:
            x = colour.random_grey(images.to_float(x), rng, self.grey)
        each_crop = Augmentation(
            min_area=self.min_area,
            max_ratio=self.max_ratio,
            flip=self.flip,
            degrees=self.degrees,
            elastic=self.elastic,
            jitter=(self.brightness, self.jitter, self.jitter, self.hue),
        )
        return {"views": random_views(x, self.size, rng, each_crop, self.views, self.scaled)}, None

    def scaled(self, x: Tensor) -> Tensor:
        """Crops in [0, 1] to the network's range."""
        return _standardised(x) if self.standardise else images.normalise(x)

    def shown(self, x: Tensor) -> Tensor:
        """Crops in the network's range to [0, 1]; one that was standardised gets mean 0.5 and deviation 0.2."""
        return images.shown_standardised(x) if self.standardise else images.denormalise(x)

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return TripletModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Tensor, targets: None) -> tuple[Tensor, dict[str, Tensor]]:
        """One per crop. Accuracy: whether its nearest other crop, on all ranks, shows the same image."""
        loss, top1 = semi_hard_triplet_and_top1(outputs, self.views, self.margin)
        return loss, {"accuracy": top1}

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": (self.views - 1) / (self.views * batch - 1)}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: None) -> Panel:
        n = len(outputs) // self.views
        z = F.normalize(outputs.float(), dim=1)
        distance = (2 - 2 * z[:n] @ z.T).clamp_min(0)
        distance[:, :n].fill_diagonal_(float("inf"))
        nearest = distance.argmin(1)
        captions = [
            f"squared distance {distance[i, found]:.2f}, "
            + ("found" if found % n == i else f"mistaken for {found % n}")
            for i, found in enumerate(nearest.tolist())
        ]
        crops = self.shown(inputs["views"])
        return Panel({"crop": crops[:n], "another of it": crops[n : 2 * n], "nearest": crops[nearest]}, captions)


class TripletModel(TaskModel):
    """Encoder and a linear embedding, which is discarded after training."""

    def __init__(self, encoder: Encoder, task: ExemplarTriplet) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, task.out)

    def forward(self, views: Tensor) -> Tensor:
        """[views n, 3, size, size] -> embeddings [views n, out], not normalised."""
        z: Tensor = self.head(self.encoder(views))
        return z

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        return self.encoder.layers(self.task.scaled(images.resize(raw["image"], self.task.size)))


def _standardised(x: Tensor) -> Tensor:
    """Each of [n, 3, h, w] in [0, 1] to mean 0 and deviation 1, as TensorFlow's per_image_standardization.

    Its floor, here of bytes, keeps a flat image from becoming noise.
    """
    x = x - x.mean((1, 2, 3), keepdim=True)
    deviation = x.square().mean((1, 2, 3), keepdim=True).sqrt_()
    return x.div_(deviation.clamp_min_(1 / (255 * x[0].numel() ** 0.5)))
