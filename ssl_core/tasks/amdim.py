"""AMDIM: Bachman, Hjelm & Buchwalter 2019, https://arxiv.org/abs/1906.00910.

Maximises mutual information between features of two views of an image, at several scales: the features of the whole
first view must match each place of the second view and no place of any other image, and so must the features of one
place of the first view. The paper's maps are 1x1, 5x5 and 7x7; here they are the encoder's own:

    whole    the last stage, pooled                                             the paper's 1x1
    coarse   the deepest stage of more than one place, at most 5x5              the paper's 5x5
    fine     the stage before it, at most 7x7                                   the paper's 7x7

    loss = nce(whole, coarse) + nce(whole, fine) + nce(coarse, coarse), each the mean of both directions

The paper's further loss, over mixtures of features, is optional there and absent here.
The paper's encoder has no batch norm and no padding; a place in a residual network's map sees more of its surroundings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.contrast import gather
from ssl_core.nn.encoders import Encoder
from ssl_core.ops import images
from ssl_core.ops.views import Augmentation, check_views, random_views
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform


@dataclass(frozen=True)
class AMDIM:
    """Which places show the same image? Contrastive at several scales, against all places of the batch on all ranks.

    Attributes:
        canvas: side in px of the square crop that the reader returns; views are cut from it. The paper cuts from the
            whole picture and shrinks to 146 px to test.
        size: side in px of a view, what the network sees; the paper: 128.
        min_area: smallest share of the canvas that a view shows; the paper: 0.3.
        max_ratio: a view's sides before resizing differ by at most this factor; the paper: 1.4.
        flip: chance that an image is mirrored, both views alike; the paper: 0.5. 0 for writing and digits.
        degrees: rotation by at most so many degrees; the paper: none.
        elastic: smooth elastic distortion; standard deviation of the shifts, as a share of half the side; the
            paper: none.
        jitter: strength of colour jitter of brightness, contrast and saturation; the paper: 0.4.
        hue: largest turn of the hue, as a share of the circle; the paper: 0.1.
        jitter_chance: chance that a view is jittered; the paper: 0.8.
        grey: chance that a view loses its colours; the paper: 0.25.
        coarse: most places along a side of the coarse map; the paper: 5.
        fine: most places along a side of the fine map; the paper: 7.
        out: width in which places are compared; the paper: 1536. The paper's encoder ends that wide, so that its
            1x1 features are compared directly; here they too get an embedding, which is discarded.
        clip: scores s become clip tanh(s / clip); the paper: 20.
        penalty: weight of the mean squared score, before clipping; the paper: 0.04; its released code also had 0.05.
    """

    canvas: int = 146
    size: int = 128
    min_area: float = 0.3
    max_ratio: float = 1.4
    flip: float = 0.5
    degrees: float = 0.0
    elastic: float = 0.0
    jitter: float = 0.4
    hue: float = 0.1
    jitter_chance: float = 0.8
    grey: float = 0.25
    coarse: int = 5
    fine: int = 7
    out: int = 1536
    clip: float = 20.0
    penalty: float = 0.04

    paper: ClassVar[str] = "Bachman et al. 2019, arXiv:1906.00910"
    matching: ClassVar[Matching] = Matching("views")
    shortcuts: ClassVar[tuple[Shortcut, ...]] = (
        Shortcut(
            "colour_histogram",
            "Colour jitter and grey change each view's colours.",
            {"jitter": 0.0, "hue": 0.0, "grey": 0.0},
        ),
    )
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "clip": Choice((10.0, 20.0)),
        "penalty": LogUniform(0.01, 0.1),
        "min_area": LogUniform(0.1, 0.5),
        "jitter": Uniform(0.0, 0.8),
    }

    def __post_init__(self) -> None:
        if min(self.canvas, self.size) < 8 or min(self.coarse, self.fine, self.out) < 1:
            raise InputError("amdim: canvas and size must be at least 8 px; coarse, fine and out at least 1.")
        check_views("amdim", self)
        if self.clip <= 0 or self.penalty < 0:
            raise InputError("amdim: clip must be above 0, penalty must be at least 0.")

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], None]:
        """n images -> "views" [2 n, 3, size, size], the first of every image, then the second; "place" [2 n].

        A place lies in [0, 1): which of a view's coarse places is compared with those of the other view.
        """
        x = images.random_flip(raw["image"], rng, self.flip) if self.flip else raw["image"]
        each_view = Augmentation(
            min_area=self.min_area,
            max_ratio=self.max_ratio,
            degrees=self.degrees,
            elastic=self.elastic,
            jitter=(self.jitter, self.jitter, self.jitter, self.hue),
            jitter_chance=self.jitter_chance,
            grey=self.grey,
        )
        views = random_views(x, self.size, rng, each_view)
        return {"views": views, "place": images.uniform((len(views),), 0, 1, rng)}, None

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return InfomaxModel(encoder(Field("image", (3, self.size, self.size))), self)

    def loss(self, outputs: Scales, targets: None) -> tuple[Tensor, dict[str, Tensor]]:
        """Accuracy: whether the place on all ranks with the best score for the whole view is of the other view.

        Each image has two answers, one from each view.
        """
        losses, right = [], []
        for here, there in ((0, 1), (1, 0)):
            whole, place, coarse, fine = (part.chunk(2) for part in outputs)
            for source, target in ((whole, coarse), (whole, fine), (place, coarse)):
                loss, top1 = self._nce(source[here], target[there])
                losses.append(loss)
                right.append(top1)
        return torch.stack(losses).sum(0) / 2, {"accuracy": (right[0] + right[3]) / 2}

    def _nce(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Noise-contrastive estimation from vectors [n, d] to their images' places [n, l, d]; loss and top-1 [n].

        The negatives of a vector are all places of all other images, and no places of its own.
        """
        target, offset = gather(target)
        n, (m, places, d) = len(source), target.shape
        scores = (source @ target.flatten(0, 1).T * d**-0.5).view(n, m, places)
        penalty = self.penalty * scores.square().mean((1, 2))
        scores = self.clip * torch.tanh(scores / self.clip)
        own = torch.arange(offset, offset + n, device=scores.device).view(n, 1, 1)
        positive = scores.gather(1, own.expand(-1, 1, places))[:, 0]
        negative = scores.scatter(1, own.expand(-1, 1, places), -torch.inf).flatten(1)
        total = torch.logaddexp(positive, negative.logsumexp(1, keepdim=True))
        top1 = positive.detach().amax(1) > negative.detach().amax(1)
        return (total - positive).mean(1) + penalty, top1.float()

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 1 / batch}

    def show(self, inputs: dict[str, Tensor], outputs: Scales, targets: None) -> Panel:
        first, second = images.denormalise(inputs["views"]).chunk(2)
        whole, coarse = outputs.whole.chunk(2)[0].float(), outputs.coarse.chunk(2)[1].float()
        best = torch.einsum("nd,mld->nml", whole, coarse).amax(2).argmax(1)
        captions = ["found" if i == found else f"mistaken for {found}" for i, found in enumerate(best.tolist())]
        return Panel({"view": first, "its other view": second, "best place in": second[best]}, captions)


class Scales(NamedTuple):
    """First views, then second ones: the whole [2 n, d], one coarse place [2 n, d], all places [2 n, l, d]."""

    whole: Tensor
    place: Tensor
    coarse: Tensor
    fine: Tensor


class InfomaxModel(TaskModel):
    """Encoder and an embedding for each scale, which are discarded after training."""

    def __init__(self, encoder: Encoder, task: AMDIM) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.scales = _local_stages(encoder, task.size)
        self.whole = Embedding(encoder.dims[list(encoder.dims)[-1]], task.out)
        self.coarse, self.fine = (Embedding(encoder.dims[name], task.out) for name in self.scales)

    def forward(self, views: Tensor, place: Tensor) -> Scales:
        """views [2 n, 3, size, size], place [2 n] as `AMDIM.make_batch` returns them."""
        maps = self.encoder.stages(views)
        whole = self.whole(_places(maps[list(maps)[-1]], 1))[:, 0]
        coarse = self.coarse(_places(maps[self.scales[0]], self.task.coarse))
        fine = self.fine(_places(maps[self.scales[1]], self.task.fine))
        row = torch.arange(len(views), device=place.device)
        chosen = coarse[row, (place * coarse.shape[1]).long()]
        return Scales(whole, chosen, coarse, fine)

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The whole canvas, resized to `size`."""
        return self.encoder.layers(images.normalise(images.resize(raw["image"], self.task.size)))


class Embedding(nn.Module):
    """Two layers and a shortcut on every place [n, l, before]; starts as the identity where it is wider.

    On rows: 1x1 convolutions of maps take a CPU 1.4 times as long in bf16, and 3 times where l is 1.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Linear(before, after, bias=False)
        self.second = nn.Linear(after, after, bias=False)
        self.shortcut = nn.Linear(before, after)
        self.norm = nn.BatchNorm1d(after)
        nn.init.zeros_(self.second.weight)
        if after >= before:
            nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
            with torch.no_grad():
                self.shortcut.weight.fill_diagonal_(1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        out: Tensor = self.norm(self.second(self.first(rows).relu()) + self.shortcut(rows))
        return out.view(*x.shape[:2], -1)


def _local_stages(encoder: Encoder, size: int) -> tuple[str, str]:
    """Names of the deepest stage whose map has more than one place, and of the stage before it."""
    with torch.no_grad():
        maps = encoder.eval().stages(torch.zeros(1, 3, size, size))
    encoder.train()
    local = [name for name, features in maps.items() if features[0, 0].numel() > 1]
    if len(local) < 2:
        raise InputError(
            f"amdim: at task.size {size} all but {len(local)} of this encoder's stages have maps of a single place, "
            "and two larger maps are needed; raise task.size, or set encoder.stem to cifar."
        )
    return local[-1], local[-2]


def _places(maps: Tensor, side: int) -> Tensor:
    """[n, c, h, w], averaged down to at most side x side places -> [n, places, c]."""
    rows, columns = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, (min(side, rows), min(side, columns))).flatten(2).mT
