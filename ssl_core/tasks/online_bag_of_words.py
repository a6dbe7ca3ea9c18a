"""Online bags of visual words (OBoW): Gidaris, Bursuc, Puy, Komodakis, Cord & Perez 2020, https://arxiv.org/abs/2012.11552.

BoWNet in one run, without an artefact: the teacher is a momentum copy of the student, and the words are recent places
of its maps. The student sees small crops and patches and predicts how strongly each word occurs in the whole image, so
that it must know what goes with what it sees. Its head is generated from the current words.

Two layers have words, with a prediction for each. A place is assigned to all words, more to nearer ones; an image's
share of a word is that of its strongest place, so that large plain regions do not fill the bag. The map's border is
left out, since places there see padding. Ranks exchange their words, so that all have the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.momentum import momentum_copy, momentum_update, rising_momentum
from ssl_core.nn.visual_words import Bags, RecentWords, WordsToWeights, beside_originals, match_bags, without_border
from ssl_core.ops import images, patches
from ssl_core.ops.views import Augmentation, check_views, random_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform

Answers: TypeAlias = tuple[tuple[Bags, ...], ...]
"""For the crops and, if there are any, the patches: for each layer, Bags of [n, pictures of an image, words]."""

CELLS = 3
"""Cells along a side of the grid from which patches are drawn."""


@dataclass(frozen=True)
class OnlineBagOfWords:
    """Which visual words does the whole image contain, seen from a small part of it? The words change as it learns.

    Attributes:
        canvas: side in px of the square crop that the reader returns; crops and patches are cut from it.
        size: side in px of what the teacher sees, the whole canvas; the paper: 224, the middle 224 of 256.
        crops: crops of each image; the paper: 2.
        crop: side in px of a crop; the paper: 160.
        min_area: smallest share of the canvas that a crop shows; the paper: 0.08.
        max_area: largest share of the canvas that a crop shows; the paper: 0.6.
        patches: patches of each image, from a grid of 3 x 3; the paper: 5, and 0 in its plain form.
        patch: side in px of a patch; the paper: 96.
        frame: side in px of the picture from which patches are cut; the paper: 256.
        frame_area: smallest share of the canvas that this picture shows; the paper: 0.6.
        shift: each patch is moved by at most so many px on each axis; the paper: 24.
        max_ratio: sides of crops and of the patches' picture differ by at most this factor; the usual 4/3.
        flip: chance of a left-right mirror, the teacher's picture included; the paper: 0.5. 0 for writing and digits.
        jitter: strength of colour jitter of brightness, contrast and saturation, for the hue a quarter of it; the
            paper: 0.4.
        jitter_chance: chance that a picture of the student's is jittered; the paper: 0.8.
        grey: chance that it loses its colours; the paper: 0.2.
        blur: chance that a crop is blurred, sigma 0.1 to 2 px; the paper: 0.5. The kernel is a tenth of the side
            long as in SimCLR.
        degrees: rotation by at most so many degrees; the paper: none.
        shear: shear by at most so many degrees; the paper: none.
        translate: shift by up to this share of the side, black filled in; the paper: none.
        zoom: scale by up to this factor, up or down; the paper: none, which is 1.
        elastic: smooth elastic distortion; standard deviation of the shifts, as a share of half the side; the
            paper: none.
        layer: the teacher's layer whose places become words; the paper: conv5, here stage4.
        lower: a second such layer with its own words, or "" for none; the paper: conv4, here stage3.
        words: how many words a layer has, over all workers; each image adds one per step. The paper: 8192. The first
            words are Gaussian vectors of length 1 (non-negative in its code); they are replaced after words / batch
            steps.
        sharpness: how strongly a place prefers its nearest word, relative to the running mean of the squared distance
            to it; the paper: 15, for ResNet-18 10.
        decay: share of itself that this mean keeps at each step; the paper: 0.99. A batch is added after
            its step, and the mean starts as a plain one; in the paper it is added before, and the mean starts at 0.5.
        border: rim of the teacher's maps that is left out, in places; the paper: 1.
        scale: length of the weights that the head generates from a word; the paper: 8, for ResNet-18 5.
        momentum: share of its own weights that the teacher keeps at the first step; the paper: 0.99.
        horizon: steps in which this rises to 1 by half a cosine; 0 keeps it. The paper: all steps of the run, about a
            million. A task does not know how long its run is: set it to train.steps or somewhat more.
    """

    canvas: int = 256
    size: int = 224
    crops: int = 2
    crop: int = 160
    min_area: float = 0.08
    max_area: float = 0.6
    patches: int = 5
    patch: int = 96
    frame: int = 256
    frame_area: float = 0.6
    shift: int = 24
    max_ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.4
    jitter_chance: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0
    layer: str = "stage4"
    lower: str = "stage3"
    words: int = 8192
    sharpness: float = 15.0
    decay: float = 0.99
    border: int = 1
    scale: float = 8.0
    momentum: float = 0.99
    horizon: int = 1_000_000

    paper: ClassVar[str] = "Gidaris et al. 2020, arXiv:2012.11552"
    matching: ClassVar[Matching] = Matching("originals")
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "colour_histogram", "Colour jitter and grey change the student's colours.", {"jitter": 0.0, "grey": 0.0}
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "sharpness": LogUniform(5.0, 30.0),
        "scale": LogUniform(3.0, 16.0),
        "momentum": Choice((0.97, 0.99, 0.996)),
        "max_area": Uniform(0.4, 1.0),
        "jitter": Uniform(0.0, 0.8),
    }

    def __post_init__(self) -> None:
        self._check_sizes()
        if self.words < 2 or self.border < 0 or self.horizon < 0 or min(self.sharpness, self.scale) <= 0:
            raise InputError(
                "online_bag_of_words: words must be at least 2, border and horizon at least 0; "
                "sharpness and scale must be above 0."
            )
        if not self.layer or self.layer == self.lower:
            raise InputError(
                "online_bag_of_words: layer must name a layer of the encoder, and lower another one or none."
            )
        check_views("online_bag_of_words", self, decay=1, momentum=1)

    def _check_sizes(self) -> None:
        if min(self.canvas, self.size, self.crop, self.patch) < 8 or self.crops < 1 or self.shift < 0:
            raise InputError(
                "online_bag_of_words: canvas, size, crop and patch must be at least 8 px, crops at least 1, "
                "shift at least 0."
            )
        if not 0 <= self.patches <= CELLS**2:
            raise InputError(f"online_bag_of_words: patches is {self.patches}; the grid has 0 to {CELLS**2}.")
        if self.patch + self.shift > self.frame:
            raise InputError(
                f"online_bag_of_words: a patch of {self.patch} px and a shift of {self.shift} do not fit the frame of "
                f"{self.frame}; raise frame."
            )
        if not 0 < self.min_area <= self.max_area <= 1 or not 0 < self.frame_area <= 1:
            raise InputError(
                "online_bag_of_words: min_area, max_area and frame_area are shares and must be above 0 and at most 1; "
                "min_area must be at most max_area."
            )

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    @property
    def layers(self) -> tuple[str, ...]:
        """The teacher's layers whose places become words, the shallow one first."""
        return (self.lower, self.layer) if self.lower else (self.layer,)

    def plain(self, x: Tensor) -> Tensor:
        """The whole canvas as the teacher sees it; x [n, 3, canvas, canvas] bytes."""
        return images.normalise(images.resize(x, self.size))

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], None]:
        """n images -> "views" [crops n, 3, crop, crop] and "patches" [patches n, 3, patch, patch], the first of every
        image before the second and so on; "originals" [n, 3, size, size].

        "pick" [n, layers] in [0, 1) chooses the places that become words. Forward makes the bags.
        """
        x = raw["image"]
        of_crops = Augmentation.of(self, self._jitter, self.max_area, self.blur)
        views = random_views(x, self.crop, rng, of_crops, self.crops)
        originals = self.plain(images.random_flip(x, rng, self.flip))
        inputs = {
            "views": views,
            "originals": originals,
            "pick": images.uniform((len(x), len(self.layers)), 0, 1, rng),
        }
        if self.patches:
            inputs["patches"] = self._patches(x, rng)
        return inputs, None

    def _patches(self, x: Tensor, rng: Generator) -> Tensor:
        """[patches n, 3, patch, patch]: the first patch of every image, then the second, and so on."""
        of_frames = replace(Augmentation.of(self, self._jitter), min_area=self.frame_area)
        frames = random_views(x, self.frame, rng, of_frames, views=1)
        grid = {"cells": CELLS, "patch": self.patch, "jitter": self.shift, "count": self.patches}
        corners = patches.some_of_grid(len(x), self.frame, rng, **grid)
        return patches.cut(frames, *corners, self.patch).transpose(0, 1).flatten(0, 1)

    @property
    def _jitter(self) -> tuple[float, float, float, float]:
        return (self.jitter, self.jitter, self.jitter, self.jitter / 4)

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Crops and originals: which original is a crop of?"""
        pictures = beside_originals(inputs["views"], inputs["originals"])
        return pictures, pictures

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return OnlineBagModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Answers, targets: None) -> tuple[Tensor, dict[str, Tensor]]:
        """Crops and patches weigh the same, however many there are; so do layers. Metrics are means over both."""
        parts = [[match_bags(bags) for bags in layers] for layers in outputs]
        loss = torch.stack([torch.stack([each for each, _ in layers]).mean(0) for layers in parts]).sum(0)
        metrics = [each for layers in parts for _, each in layers]
        return loss, {name: torch.stack([each[name] for each in metrics]).mean(0) for name in metrics[0]}

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Answers, targets: None) -> Panel:
        n = len(inputs["originals"])
        columns = {name: inputs[name][:n] for name in ("views", "patches", "originals") if name in inputs}
        logits, bags = outputs[0][-1]
        captions = [
            f"strongest word {true}, answered {answer}"
            for true, answer in zip(bags[:, 0].argmax(1).tolist(), logits[:, 0].argmax(1).tolist())
        ]
        return Panel({name.removesuffix("s"): images.denormalise(x) for name, x in columns.items()}, captions)


class LayerWords(nn.Module):
    """The words of one of the teacher's layers, and the head that is generated from them."""

    def __init__(self, dim: int, out: int, task: OnlineBagOfWords) -> None:
        """dim: width of the layer. out: width of the student's vectors."""
        super().__init__()
        self.late = RecentWords(task.words, dim, task.sharpness, task.decay)
        self.head = WordsToWeights(dim, out, task.scale)

    def forward(self, maps: Tensor, pick: Tensor) -> tuple[Tensor, Tensor]:
        """Places [n, h, w, dim] and picks [n] -> weights [words, out] and bags [n, words]."""
        return self.head(self.late.queue.keys), self.late.bags(maps, pick)


class OnlineBagModel(TaskModel):
    """The student, the teacher (its momentum copy), and the words of each layer."""

    steps: Tensor

    def __init__(self, encoder: Encoder, task: OnlineBagOfWords) -> None:
        super().__init__()
        strange = [name for name in task.layers if name not in encoder.dims]
        if strange:
            raise InputError(
                f"The encoder has no layer {strange[0]!r}; set task.layer and task.lower to some of "
                f"{', '.join(encoder.dims)}."
            )
        self.task = task
        self.encoder = encoder
        self.slow = momentum_copy(encoder)
        self.words = nn.ModuleList(LayerWords(encoder.dims[name], encoder.dim, task) for name in task.layers)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, views: Tensor, originals: Tensor, pick: Tensor, patches: Tensor | None = None) -> Answers:
        """Takes what `OnlineBagOfWords.make_batch` returns."""
        with torch.no_grad():
            stages = self.slow.stages(originals)
            maps = [without_border(stages[name], self.task.border) for name in self.task.layers]
        heads = [words(*each) for words, *each in zip(self.words, maps, pick.unbind(1))]
        shown = [self.encoder(x) for x in ([views] if patches is None else [views, patches])]
        return tuple(tuple(_matched(x, *layer) for layer in heads) for x in shown)

    def after_step(self) -> None:
        self.steps += 1
        momentum, horizon = self.task.momentum, self.task.horizon
        momentum_update(
            self.slow, self.encoder, rising_momentum(momentum, self.steps, horizon) if horizon else momentum
        )
        for module in self.words.modules():
            if isinstance(module, RecentWords):
                module.after_step()

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`, as the student sees it."""
        return self.encoder.layers(self.task.plain(raw["image"]))


def _matched(x: Tensor, weights: Tensor, bags: Tensor) -> Bags:
    """x [k n, d], the first picture of every image, then the second, and so on -> logits and bags [n, k, words]."""
    logits = F.linear(x, weights).view(-1, *bags.shape).transpose(0, 1)
    return Bags(logits, bags.unsqueeze(1).expand_as(logits))
