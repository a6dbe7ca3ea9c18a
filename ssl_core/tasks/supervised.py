"""The supervised reference: training with labels, as He, Zhang, Ren & Sun 2015, https://arxiv.org/abs/1512.03385.

No pretext task: the answers are the corpus's labels, which the pretext tasks of this folder never see. It is in the
same list, so that the same encoder, reader, loop and probes give the reference for the others. It is no upper bound: a
representation is shaped by its training labels, and with few of them a pretext task on the unlabelled rest may be
better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ClassifierHead, classify
from ssl_core.ops import images
from ssl_core.ops.views import Augmentation, check_views, random_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class Supervised:
    """No pretext task but the reference: which label does the image have?

    Attributes:
        canvas: side in px of the square crop that the reader returns; the view is cut from it.
        size: side in px of the view, what the network sees; the paper: 224.
        classes: number of distinct labels in the corpus, where every sample needs one; the paper: 1000.
        smoothing: label smoothing, the share of each target spread evenly over classes; the paper: 0, a common choice:
            0.1.
        min_area: smallest share of the canvas that the view shows; the usual 0.08.
        max_ratio: the view's sides before resizing differ by at most this factor; the usual 4/3.
        flip: chance of a left-right mirror; the paper: 0.5. 0 for writing and digits.
        jitter: strength of colour jitter of brightness, contrast and saturation, for the hue a quarter of it; the
            paper changes colours in another way, the usual recipe not at all.
        jitter_chance: chance that a view is jittered.
        grey: chance that a view loses its colours; the paper: none.
        degrees: rotation by at most so many degrees; the paper: none.
        shear: shear by at most so many degrees; the paper: none.
        translate: shift by up to this share of the side, black filled in; the paper: none.
        zoom: scale by up to this factor, up or down; the paper: none, which is 1.
        elastic: smooth elastic distortion; standard deviation of the shifts, as a share of half the side; the
            paper: none.
    """

    canvas: int = 256
    size: int = 224
    classes: int = 1000
    smoothing: float = 0.0
    min_area: float = 0.08
    max_ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.0
    jitter_chance: float = 0.8
    grey: float = 0.0
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0

    paper: ClassVar[str] = "He et al. 2015, arXiv:1512.03385"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = ()
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "min_area": LogUniform(0.08, 0.8),
        "smoothing": Choice((0.0, 0.1)),
        "jitter": Uniform(0.0, 0.8),
    }

    def __post_init__(self) -> None:
        if min(self.canvas, self.size) < 8 or self.classes < 2:
            raise InputError("supervised: canvas and size must be at least 8 px, classes at least 2.")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"supervised: smoothing is {self.smoothing}; it must be at least 0 and below 1.")
        check_views("supervised", self)

    @property
    def sample(self) -> Mapping[str, Field]:
        shape = (3, self.canvas, self.canvas)
        return {"image": Field("image", shape), "label": Field("label", (), limit=self.classes)}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "images" [n, 3, size, size]; the numbers of their classes, [n]."""
        jitter = (self.jitter, self.jitter, self.jitter, self.jitter / 4)
        views = random_views(raw["image"], self.size, rng, Augmentation.of(self, jitter), views=1)
        return {"images": views}, raw["label"]

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return SupervisedModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return classify(outputs, targets, self.smoothing)

    def chance(self, batch: int) -> dict[str, float]:
        """For classes of equal size; otherwise always predicting the largest class reaches more."""
        return {"accuracy": 1 / self.classes}

    def show(self, inputs: dict[str, Tensor], outputs: Tensor, targets: Tensor) -> Panel:
        pairs = zip(targets.tolist(), outputs.argmax(1).tolist())
        captions = [f"class {true}, taken for {answer}" for true, answer in pairs]
        return Panel({"input": images.denormalise(inputs["images"])}, captions)


class SupervisedModel(TaskModel):
    """Encoder and one linear layer on its pooled last stage."""

    def __init__(self, encoder: Encoder, task: Supervised) -> None:
        super().__init__()
        self.size = task.size
        self.encoder = encoder
        self.head = ClassifierHead(encoder.dim, task.classes)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, size, size] -> logits [n, classes]."""
        logits: Tensor = self.head(self.encoder(images))
        return logits

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        return self.encoder.layers(images.normalise(images.resize(raw["image"], self.size)))
