"""Bags of visual words (BoWNet): Gidaris, Bursuc, Komodakis, Perez & Cord 2020, https://arxiv.org/abs/2002.12247.

The teacher, a network trained earlier without labels, assigns each place of an image to the nearest of a few thousand
visual words; how often each word occurs is the image's bag of words. The student sees the image cropped, recoloured and
mixed with another one, and predicts the bag: what is in the image, whatever it looks like now.

The words are k-means centres of the teacher's features, an artefact that also holds the teacher. The paper's first
teacher is a RotNet; then the student becomes the teacher of the next round (set `teacher` to its model). The teacher
sees the plain image, so that colours alone would give away much of the bag; hence the recolouring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

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
from ssl_core.ops.views import Augmentation, check_views, random_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class BagOfWords:
    """Which visual words does the unchanged image contain, and how often (with `binary`: whether at all)?

    Attributes:
        canvas: side in px of the square crop that the reader returns; the student's view is cut from it.
        size: side in px of what student and teacher see; the paper: 224, on CIFAR 32.
        teacher: the saved model whose features make the words: a folder, models:/NAME/VERSION or runs:/RUN/encoder;
            the paper: RotNet, then the student of the round before. Empty: this run's own network, untrained.
        layer: the teacher's layer whose features make the words; the paper: conv4 or conv5, here stage3 or stage4.
        words: how many visual words there are; the paper: 2048 on CIFAR-100, 20000 on ImageNet.
        vectors: places of the teacher's maps per word that k-means is fitted on; the paper: all of the training set.
        border: rim of the teacher's map that is left out, in places, since it sees padding; the paper: 0, its
            successor OBoW: 1.
        binary: a word counts once, however many places show it; if false, as often as it occurs. Both bags are
            normalised to sum 1. The paper has both: counts on CIFAR-100 and MiniImageNet, presence on ImageNet.
        min_area: smallest share of the canvas that the student sees; the paper crops and gives no number.
        max_ratio: the crop's sides differ by at most this factor; the usual 4/3.
        flip: chance of a left-right mirror; the paper: 0.5. 0 for writing and digits.
        jitter: strength of colour jitter of brightness, contrast and saturation, for the hue a quarter of it; the
            paper jitters and gives no number, OBoW: 0.4.
        jitter_chance: chance that a view is jittered; OBoW: 0.8.
        grey: chance that a view loses its colours; the paper: yes, OBoW: 0.2.
        degrees: rotation by at most so many degrees; the paper: none.
        shear: shear by at most so many degrees; the paper: none.
        translate: shift by up to this share of the side, black filled in; the paper: none.
        zoom: scale by up to this factor, up or down; the paper: none, which is 1.
        elastic: smooth elastic distortion; standard deviation of the shifts, as a share of half the side; the
            paper: none.
        cutmix: chance that a box of another image is pasted into the view and its bag mixed in; the paper mixes and
            gives no number, CutMix itself (Yun 2019): 1 on ImageNet, 0.5 on CIFAR. Whether, where and how large is
            drawn per image; Yun draws once per batch.
        vocabulary: digest of teacher and words, an artefact; empty to fit it before training.
    """

    canvas: int = 256
    size: int = 224
    teacher: str = ""
    layer: str = "stage3"
    words: int = 20000
    vectors: int = 64
    border: int = 0
    binary: bool = False
    min_area: float = 0.08
    max_ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.4
    jitter_chance: float = 0.8
    grey: float = 0.2
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0
    cutmix: float = 0.5
    vocabulary: str = ""

    paper: ClassVar[str] = "Gidaris et al. 2020, arXiv:2002.12247"
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
        if min(self.canvas, self.size) < 8:
            raise InputError("bag_of_words: canvas and size must be at least 8 px.")
        check_views("bag_of_words", self, cutmix=1)
        check_taught_words("bag_of_words", self)

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    @property
    def field(self) -> Field:
        """What both networks see."""
        return Field("image", (3, self.size, self.size))

    def plain(self, x: Tensor) -> Tensor:
        """The whole canvas as the teacher sees it; x [n, 3, canvas, canvas] bytes."""
        return images.normalise(images.resize(x, self.size))

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], None]:
        """n images -> "views", mixed with the image before, and "originals", [n, 3, size, size]; "own" [n], its share.

        The teacher makes the bags from the originals, in forward.
        """
        x = raw["image"]
        jitter = (self.jitter, self.jitter, self.jitter, self.jitter / 4)
        views = random_views(x, self.size, rng, Augmentation.of(self, jitter), views=1)
        views, own = cutmix(views, rng, self.cutmix)
        return {"views": views, "originals": self.plain(x), "own": own.mean((1, 2, 3))}, None

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Views and originals: which original is a view of?"""
        pictures = beside_originals(inputs["views"], inputs["originals"])
        return pictures, pictures

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return BagModel(encoder(self.field), self)

    def loss(self, outputs: Bags, targets: None) -> tuple[Tensor, dict[str, Tensor]]:
        return match_bags(outputs)

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Bags, targets: None) -> Panel:
        views, originals = (images.denormalise(inputs[name]) for name in ("views", "originals"))
        answers, true = outputs.logits.argmax(1).tolist(), outputs.bags.max(1)
        what = "is there, share of the bag" if self.binary else "fills"
        captions = [
            f"word {word} {what} {share:.0%}, answered {answer}"
            for word, share, answer in zip(true.indices.tolist(), true.values.tolist(), answers)
        ]
        return Panel({"view": views, "mixed in": originals.roll(1, 0), "original": originals}, captions)


class BagModel(TaskModel):
    """The student, its head, and the teacher, which is neither trained nor saved with them."""

    def __init__(self, encoder: Encoder, task: BagOfWords) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.head = WordHead(encoder.dim, task.words)
        self.teacher = Teacher(task)

    def forward(self, views: Tensor, originals: Tensor, own: Tensor) -> Bags:
        """views, originals [n, 3, size, size], own [n] as `BagOfWords.make_batch` returns them."""
        bags = self.teacher.bags(originals, self.task.binary)
        mixed = torch.lerp(bags.roll(1, 0), bags, own.unsqueeze(1))
        return Bags(self.head(self.encoder(views)), mixed)

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        return self.encoder.layers(self.task.plain(raw["image"]))
