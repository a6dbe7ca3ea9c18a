"""MoCo: He, Fan, Wu, Xie & Girshick 2019, https://arxiv.org/abs/1911.05722; v2: https://arxiv.org/abs/2003.04297.

Two random views of each image. The encoder makes a query from the first; its momentum copy makes a key from the second.
The query must find its key among the keys of earlier batches, which are in a queue, so that the number of negatives
does not depend on the batch size.

Query and key are of one batch and the negatives of others, so batch norm's statistics over the batch would distinguish
them. So both encoders take statistics over parts of the batch, and keys are shuffled into other parts. The paper does
the same over its eight GPUs (shuffling BN); here it also works on one device, and no pictures are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn

from ssl_core.errors import InputError
from ssl_core.nn.contrast import info_nce_and_top1, normalise
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import ProjectionHead
from ssl_core.nn.momentum import Queue, momentum_copy, momentum_update
from ssl_core.nn.split_norm import split_batch_norm
from ssl_core.ops import images
from ssl_core.ops.views import Augmentation, check_views, random_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class MoCo:
    """Which key did the other view of this image make? Contrastive, with negatives from a queue. Defaults are v2's.

    Attributes:
        canvas: side in px of the square crop that the reader returns; views are cut from it.
        size: side in px of a view, what the network sees; the paper: 224.
        min_area: smallest share of the canvas that a view shows; the paper: 0.2.
        max_ratio: a view's sides before resizing differ by at most this factor; the paper: 4/3.
        flip: chance of a left-right mirror; the paper: 0.5. 0 for writing and digits.
        jitter: strength of colour jitter of brightness, contrast and saturation; the paper: 0.4.
        hue: largest turn of the hue, as a share of the circle; v2: 0.1, v1: 0.4.
        jitter_chance: chance that a view is jittered; v2: 0.8, v1: 1.
        grey: chance that a view loses its colours; the paper: 0.2.
        blur: chance of a Gaussian blur, sigma 0.1 to 2 px; v2: 0.5, v1: 0. The kernel is a tenth of the side
            long as in SimCLR.
        degrees: rotation by at most so many degrees; the paper: none.
        shear: shear by at most so many degrees; the paper: none.
        translate: shift by up to this share of the side, black filled in; the paper: none.
        zoom: scale by up to this factor, up or down; the paper: none, which is 1.
        elastic: smooth elastic distortion; standard deviation of the shifts, as a share of half the side; the
            paper: none.
        queue: keys of earlier batches that are the negatives, over all workers; the paper: 65536.
        momentum: share of its own weights that the key encoder keeps at each step; the paper: 0.999. Runs of a few
            hundred steps need less.
        temperature: divides the cosine similarities; v2: 0.2, v1: 0.07.
        splits: equal parts of a worker's batch over which batch norm takes its statistics, with keys shuffled; the
            paper: one per GPU, of 8. With 1 the statistics of the whole batch give the answer away. No effect on
            encoders without batch norm.
        hidden: width of the projection head's hidden layers; v2: 2048.
        out: width of the projection; the paper: 128.
        layers: linear layers in the projection head; v2: 2, v1: 1.
    """

    canvas: int = 256
    size: int = 224
    min_area: float = 0.2
    max_ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.4
    hue: float = 0.1
    jitter_chance: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0
    queue: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    splits: int = 8
    hidden: int = 2048
    out: int = 128
    layers: int = 2

    paper: ClassVar[str] = "He et al. 2019, arXiv:1911.05722; v2: Chen et al. 2020, arXiv:2003.04297"
    matching: ClassVar[Matching] = Matching("views", queued=True)
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "batch_statistics",
            "Batch norm sees parts of a batch, and a key's part differs from its query's.",
            {"splits": 1},
        ),
        Shortcut(
            "colour_histogram",
            "Colour jitter and grey change each view's colours.",
            {"jitter": 0.0, "hue": 0.0, "grey": 0.0},
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "temperature": LogUniform(0.05, 0.5),
        "momentum": Choice((0.99, 0.996, 0.999)),
        "min_area": LogUniform(0.08, 0.5),
        "jitter": Uniform(0.0, 0.8),
    }

    def __post_init__(self) -> None:
        if min(self.canvas, self.size) < 8 or min(self.queue, self.splits, self.hidden, self.out, self.layers) < 1:
            raise InputError(
                "moco: canvas and size must be at least 8 px; queue, splits, hidden, out and layers at least 1."
            )
        check_views("moco", self, momentum=1)
        if self.temperature <= 0:
            raise InputError(f"moco: temperature is {self.temperature}; it must be above 0.")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], None]:
        """n images -> "views" [2 n, 3, size, size], first the queries', then the keys'; "groups" [2 n].

        A group is a part of the batch that batch norm sees together: 0 to splits - 1 are queries, the rest keys.
        """
        jitter = (self.jitter, self.jitter, self.jitter, self.hue)
        views = random_views(raw["image"], self.size, rng, Augmentation.of(self, jitter, blur=self.blur))
        n = len(raw["image"])
        group = torch.arange(n, device=views.device).mul_(self.splits).div_(n, rounding_mode="floor")
        shuffled = group[images.uniform((n,), 0, 1, rng).argsort()]
        return {"views": views, "groups": torch.cat([group, shuffled.add_(self.splits)])}, None

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Each view, and the mean picture of its group."""
        views, groups = inputs["views"], inputs["groups"]
        same = (groups.unsqueeze(1) == groups).float()
        return views, torch.einsum("qg,gchw->qchw", same / same.sum(1, keepdim=True), views)

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return QueueModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: KeyedQueries, targets: None) -> tuple[Tensor, dict[str, Tensor]]:
        """Accuracy: whether the query's own key is nearer than every key in the queue."""
        query, key, queue = outputs
        own = torch.arange(len(query), device=query.device)
        others = own.expand(len(own), -1)  # keys of the same batch are no negatives
        loss, top1 = info_nce_and_top1(query, torch.cat([key, queue]), own, self.temperature, exclude=others)
        return loss, {"accuracy": top1}

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / (self.queue + 1)}

    def show(self, inputs: dict[str, Tensor], outputs: KeyedQueries, targets: None) -> Panel:
        query, key, queue = outputs
        own = (query * key).sum(1, keepdim=True)
        nearer = (query @ queue.T > own).sum(1)
        captions = [
            f"cosine {cosine:.2f}, {count} of {len(queue)} keys are nearer"
            for cosine, count in zip(own[:, 0].tolist(), nearer.tolist())
        ]
        first, second = images.denormalise(inputs["views"]).chunk(2)
        return Panel({"query": first, "key": second}, captions)


class KeyedQueries(NamedTuple):
    """Unit vectors: each query [n, out], its key [n, out], and the negatives [queue, out]."""

    query: Tensor
    key: Tensor
    queue: Tensor


class QueueModel(TaskModel):
    """Encoder and head, their momentum copy, and the queue; after training the encoder is kept."""

    def __init__(self, encoder: Encoder, task: MoCo) -> None:
        super().__init__()
        self.task = task
        self.encoder = split_batch_norm(encoder, task.splits)
        self.head = ProjectionHead(encoder.dim, task.hidden, task.out, layers=task.layers, norm=False)
        self.slow = momentum_copy(nn.Sequential(self.encoder, self.head))
        self.queue = Queue(task.queue, task.out)

    def forward(self, views: Tensor, groups: Tensor) -> KeyedQueries:
        """views [2 n, 3, size, size], groups [2 n] as `MoCo.make_batch` returns them."""
        first, second = views.chunk(2)
        query = normalise(self.head(self.encoder(first)))
        with torch.no_grad():
            order = groups.chunk(2)[1].argsort(stable=True)
            key = normalise(self.slow(second[order]))[order.argsort()]
        if self.training:
            self.queue.add(key)
        return KeyedQueries(query, key, self.queue.keys)

    def after_step(self) -> None:
        momentum_update(self.slow, nn.Sequential(self.encoder, self.head), self.task.momentum)
        self.queue.enqueue()

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        x = images.resize(raw["image"], self.task.size)
        return self.encoder.layers(images.normalise(x))
