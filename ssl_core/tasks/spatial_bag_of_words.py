"""Bags of words, place by place: after Gidaris et al. 2020 (BoWNet), https://arxiv.org/abs/2002.12247.

BoWNet for every place of the student's last map, for dense tasks: which visual words does the teacher see there?
Student and teacher see the same crop, so that places correspond; the student's is recoloured and has a box of another
image pasted in. A place is assigned to several words, more to nearer ones (soft assignment), since neighbouring words
are alike; where the student's map is coarser than the teacher's, a place has a small bag of words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ssl_core import artefact
from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.visual_words import (
    Bags,
    Teacher,
    WordHead,
    beside_originals,
    check_taught_words,
    fit_vocabulary,
    match_bags,
)
from ssl_core.ops import images
from ssl_core.ops.mixing import cutmix
from ssl_core.ops.views import Augmentation, augment, check_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class SpatialBagOfWords:
    """Which visual words does each place of the unchanged image contain?

    Attributes:
        canvas: side in px of the square crop that the reader returns.
        size: side in px of what student and teacher see; the paper: 224.
        teacher: the saved model whose features make the words: a folder, models:/NAME/VERSION or runs:/RUN/encoder.
            Empty: this run's own network, untrained.
        layer: the teacher's layer whose features make the words; the paper: conv4 or conv5, here stage3 or stage4.
        words: how many visual words there are; the paper: 2048 on CIFAR-100, 20000 on ImageNet.
        vectors: places of the teacher's maps per word that k-means is fitted on; the paper: all of the training set.
        sharpness: how strongly a place prefers its nearest word, relative to the mean squared distance to it; OBoW: 15.
        min_area: smallest share of the canvas that both networks see; the paper crops for the student only and gives no
            number.
        max_ratio: the crop's sides differ by at most this factor; the usual 4/3.
        flip: chance of a left-right mirror; the paper: 0.5. 0 for writing and digits.
        jitter: strength of colour jitter of brightness, contrast and saturation, for the hue a quarter of it; the
            paper jitters and gives no number, OBoW: 0.4.
        jitter_chance: chance that a view is jittered; OBoW: 0.8.
        grey: chance that a view loses its colours; the paper: yes, OBoW: 0.2.
        blur: chance of a Gaussian blur, sigma 0.1 to 2 px; the paper: none.
        cutmix: chance that a box of another image is pasted into the view, and its words into the bags; the paper mixes
            and gives no number, CutMix itself (Yun 2019): 1 on ImageNet, 0.5 on CIFAR. Whether, where and how large is
            drawn per image; Yun draws once per batch.
        vocabulary: digest of teacher and words, an artefact; empty to fit it before training.
    """

    canvas: int = 256
    size: int = 224
    teacher: str = ""
    layer: str = "stage3"
    words: int = 2048
    vectors: int = 64
    sharpness: float = 15.0
    min_area: float = 0.2
    max_ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.4
    jitter_chance: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    cutmix: float = 0.5
    vocabulary: str = ""

    paper: ClassVar[str] = "after Gidaris et al. 2020, arXiv:2002.12247"
    artefacts: ClassVar[Mapping[str, artefact.Fit]] = {"vocabulary": fit_vocabulary}
    matching: ClassVar[Matching] = Matching("originals")
    saved_models: ClassVar[tuple[str, ...]] = ("teacher",)
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "colour_histogram",
            "Colour jitter and grey change the student's colours, and CutMix brings in another image's.",
            {"jitter": 0.0, "grey": 0.0, "cutmix": 0.0},
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "min_area": LogUniform(0.08, 0.8),
        "jitter": Uniform(0.0, 0.8),
        "cutmix": Choice((0.0, 0.5, 1.0)),
    }

    def __post_init__(self) -> None:
        if min(self.canvas, self.size) < 8 or self.sharpness <= 0:
            raise InputError("spatial_bag_of_words: canvas and size must be at least 8 px; sharpness must be above 0.")
        check_views("spatial_bag_of_words", self, cutmix=1)
        check_taught_words("spatial_bag_of_words", self)

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    @property
    def border(self) -> int:
        """Places that are left out of the teacher's map: none, since they correspond to the student's."""
        return 0

    @property
    def field(self) -> Field:
        """What both networks see."""
        return Field("image", (3, self.size, self.size))

    def plain(self, x: Tensor) -> Tensor:
        """The whole canvas as the networks see it; x [n, 3, canvas, canvas] bytes."""
        return images.normalise(images.resize(x, self.size))

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], None]:
        """n images -> "originals", "views" of the same crops [n, 3, size, size]; "own" [n, 1, size, size], 0 if pasted.

        The teacher makes the bags from the originals, in forward.
        """
        area, ratio = self.min_area, self.max_ratio
        x = images.random_resized_crop(raw["image"], self.size, rng, min_area=area, max_ratio=ratio, flip=self.flip)
        jitter = (self.jitter, self.jitter, self.jitter, self.jitter / 4)
        recoloured = Augmentation(jitter=jitter, jitter_chance=self.jitter_chance, grey=self.grey, blur=self.blur)
        views, own = cutmix(images.normalise(augment(x, rng, recoloured)), rng, self.cutmix)
        return {"views": views, "originals": images.normalise(x), "own": own}, None

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Views and originals: which original is a view of?"""
        pictures = beside_originals(inputs["views"], inputs["originals"])
        return pictures, pictures

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return PlaceModel(encoder(self.field), self)

    def loss(self, outputs: Bags, targets: None) -> tuple[Tensor, dict[str, Tensor]]:
        return match_bags(outputs)

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Bags, targets: None) -> Panel:
        views, originals = (images.denormalise(inputs[name]) for name in ("views", "originals"))
        right = (outputs.logits.argmax(-1) == outputs.bags.argmax(-1)).float().mean(1)
        captions = [f"the first word is right at {share:.0%} of the places" for share in right.tolist()]
        return Panel({"view": views, "original": originals}, captions)


class PlaceModel(TaskModel):
    """The student, its head on every place, and the teacher, which is neither trained nor saved with them."""

    def __init__(self, encoder: Encoder, task: SpatialBagOfWords) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.last = next(reversed(encoder.dims))
        self.head = WordHead(encoder.dims[self.last], task.words)
        self.teacher = Teacher(task)

    def forward(self, views: Tensor, originals: Tensor, own: Tensor) -> Bags:
        """views, originals [n, 3, s, s], own [n, 1, s, s] -> logits and bags [n, places of the last map, words]."""
        maps = self.encoder.stages(views)[self.last]
        bags = self._bags(originals, own, maps.shape[2:])
        return Bags(self.head(maps.flatten(2).mT), bags)

    @torch.no_grad()
    def _bags(self, originals: Tensor, own: Tensor, grid: torch.Size) -> Tensor:
        words = self.teacher.soft_maps(originals, self.task.sharpness)
        mixed = torch.lerp(words.roll(1, 0), words, F.adaptive_avg_pool2d(own, (words.shape[2], words.shape[3])))
        return F.adaptive_avg_pool2d(mixed, (grid[0], grid[1])).flatten(2).mT

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        return self.encoder.layers(self.task.plain(raw["image"]))
