"""Visual words: what the bag-of-words tasks of Gidaris et al. 2020 share (arXiv:2002.12247, arXiv:2012.11552).

a teacher's map [n, d, h, w] -> each place is assigned to its nearest words -> a histogram of words per image
the student, which sees a changed image, predicts the histogram: soft-target cross-entropy
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core import artefact
from ssl_core.errors import InputError
from ssl_core.nn.clusters import closeness, k_means, nearest
from ssl_core.nn.contrast import gather
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.frozen import pack, saved_encoder, unpack
from ssl_core.nn.heads import r_squared
from ssl_core.nn.momentum import Queue
from ssl_core.types import Field, Raw

SCORES = 2**22
"""Assignments of places to words that are computed at a time, where only the largest of each image is kept."""


class TaughtWords(Protocol):
    """Fields and methods of a task whose visual words come from a frozen teacher."""

    @property
    def teacher(self) -> str:
        """A saved model, as the user wrote it; a folder while words are fitted."""
        ...

    @property
    def layer(self) -> str:
        """The teacher's layer whose places are described by words."""
        ...

    @property
    def border(self) -> int:
        """Outermost places of that layer's map that are left out."""
        ...

    @property
    def words(self) -> int:
        """Number of words."""
        ...

    @property
    def vectors(self) -> int:
        """Places per word that k-means is fitted on."""
        ...

    @property
    def vocabulary(self) -> str:
        """Digest of the artefact of `fit_vocabulary`: teacher and words."""
        ...

    @property
    def field(self) -> Field:
        """What the teacher sees."""
        ...

    def plain(self, x: Tensor) -> Tensor:
        """Whole images as the teacher sees them; x uint8, from the reader."""
        ...


def check_taught_words(name: str, task: TaughtWords) -> None:
    """Rejects fields of a task that are out of bounds.

    Raises:
        InputError: a field is out of bounds; the message has the task and the field.
    """
    if task.words < 2 or task.vectors < 1 or task.border < 0:
        raise InputError(f"{name}: words must be at least 2, vectors at least 1 and border at least 0.")
    if "@" in task.teacher:
        raise InputError(
            f"{name}: teacher {task.teacher} may become another model under the same run key; name a version, "
            "such as models:/NAME/3."
        )


class Bags(NamedTuple):
    """Outputs of a bag-of-words task: logits and true shares of each word, both [n, ..., words]."""

    logits: Tensor
    bags: Tensor


class WordHead(nn.Module):
    """[..., dim] -> logits [..., words]: gamma x . w / |w| with one learned gamma (BoWNet, equation 4).

    The weights of frequent and rare words have the same length, normalised in every forward pass.
    """

    def __init__(self, dim: int, words: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(words, dim))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        # Lengths divide the products, of which there are fewer than weights; normalising the weights would copy them.
        length: Tensor = torch.linalg.vector_norm(self.weight, dim=1)
        return F.linear(x, self.weight) * (self.scale / length.clamp_min(1e-12))


class WordsToWeights(nn.Module):
    """Words [words, dim] -> weights [words, out] of a linear head for them: OBoW's dynamic predictor (section 3.4).

    The words change all the time, and a head of learnt weights would always lag behind. Two layers turn each word, as a
    unit vector, into a weight vector of length `scale`.
    """

    def __init__(self, dim: int, out: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        layers = [nn.Linear(dim, 2 * out, bias=False), nn.BatchNorm1d(2 * out), nn.ReLU(inplace=True)]
        self.mlp = nn.Sequential(*layers, nn.Linear(2 * out, out))

    def forward(self, words: Tensor) -> Tensor:
        return self.scale * F.normalize(self.mlp(F.normalize(words, dim=1)), dim=1)


class RecentWords(nn.Module):
    """Words of a teacher that learns: a queue of places of the images that it saw last (OBoW, section 3.3).

    In training one place of each image's map, averaged with the places around it, becomes a word when `after_step` is
    called. All ranks have the same words.
    """

    spread: Tensor
    """[], running mean of the squared distance of a place to its nearest word; OBoW starts it at 0.5."""
    counted: Tensor
    """[] int64, batches in `spread`."""

    def __init__(self, words: int, dim: int, sharpness: float, decay: float) -> None:
        """sharpness: of the soft assignment, relative to `spread`. decay: share of `spread` that each step keeps."""
        super().__init__()
        self.sharpness, self.decay = sharpness, decay
        self.queue = Queue(words, dim)
        self.register_buffer("spread", torch.tensor(0.5))
        self.register_buffer("counted", torch.zeros((), dtype=torch.long))
        self._waiting: list[Tensor] = []

    @torch.no_grad()
    def bags(self, maps: Tensor, pick: Tensor) -> Tensor:
        """[n, h, w, d] -> each word's largest assignment over places: [n, words], normalised to sum 1.

        pick: [n] in [0, 1), chooses the places that become words.
        """
        sharpness = self.sharpness / self.spread.clamp_min(1e-12)
        some = max(1, SCORES // (maps[0, ..., 0].numel() * len(self.queue.keys)))
        made = [self._strongest(piece, sharpness) for piece in torch.split(maps, some)]
        if self.training:
            self._waiting.append(torch.cat([least for _, least in made]).mean())
            self.queue.add(surroundings(maps, pick))
        return F.normalize(torch.cat([bags for bags, _ in made]), p=1.0, dim=1)

    def _strongest(self, maps: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
        shares, least = soft_words(maps.flatten(0, 2), self.queue.keys, sharpness)
        return shares.view(len(maps), -1, len(self.queue.keys)).amax(1), least

    @torch.no_grad()
    def after_step(self) -> None:
        """Adds the words and distances since the last call, of all ranks."""
        if not self._waiting:
            return
        self.queue.enqueue()
        least = gather(torch.stack(self._waiting))[0].mean()
        self._waiting.clear()
        self.counted += 1
        # A plain mean at first, since a short run may end before OBoW's mean has forgotten its start.
        self.spread.lerp_(least, (1 / self.counted).clamp_min(1 - self.decay))


def surroundings(maps: Tensor, pick: Tensor) -> Tensor:
    """One place of each map, averaged with its neighbours: [n, h, w, d] -> [n, d].

    3 x 3 places, or as many as a smaller map has; pick [n] in [0, 1) chooses among those that are wholly inside.
    """
    kernel = (min(3, maps.shape[1]), min(3, maps.shape[2]))
    means = F.avg_pool2d(maps.permute(0, 3, 1, 2), kernel, stride=1).flatten(2)
    place = (pick * means.shape[2]).long().clamp_max(means.shape[2] - 1)
    return means.gather(2, place.view(-1, 1, 1).expand(-1, means.shape[1], 1))[:, :, 0]


class Teacher(nn.Module):
    """A frozen encoder and the words of one of its layers, from the artefact of a task."""

    words: Tensor
    """[words, d]."""
    spread: Tensor
    """[], mean squared distance of a place to its nearest word."""

    def __init__(self, task: TaughtWords) -> None:
        """Raises InputError if the artefact is for another layer or number of words."""
        super().__init__()
        self.layer, self.border = task.layer, task.border
        tensors = artefact.load(task.vocabulary)
        self.register_buffer("words", tensors["words"], persistent=False)
        self.register_buffer("spread", tensors["spread"], persistent=False)
        self.frozen = unpack(tensors, task.field)
        if self.words.shape != (task.words, self.frozen.network.dims.get(task.layer)):
            raise InputError(
                f"The vocabulary holds {len(self.words)} words of {self.words.shape[1]} numbers, which are not the "
                f"{task.words} of layer {task.layer!r} that the task needs; leave task.vocabulary empty to fit it anew."
            )

    @torch.no_grad()
    def maps(self, pictures: Tensor) -> Tensor:
        """[n, 3, s, s] -> places of the layer's map, [n, h, w, d] float32, without the border."""
        return places(self.frozen.network, pictures, self.layer, self.border)

    @torch.no_grad()
    def bags(self, pictures: Tensor, binary: bool = False) -> Tensor:
        """[n, 3, s, s] -> share of places whose nearest word is each word: [n, words].

        binary: all words that occur get the same share.
        """
        maps = self.maps(pictures)
        nearest_words, _ = nearest(maps.flatten(0, 2), self.words)
        bags = histogram(nearest_words.view(len(maps), -1), len(self.words))
        return F.normalize((bags > 0).float(), p=1.0, dim=1) if binary else bags

    @torch.no_grad()
    def soft_maps(self, pictures: Tensor, sharpness: float) -> Tensor:
        """[n, 3, s, s] -> assignment of each place to each word, [n, words, h, w]; sharpness: relative to `spread`."""
        maps = self.maps(pictures)
        shares, _ = soft_words(maps.flatten(0, 2), self.words, sharpness / self.spread.clamp_min(1e-12))
        return shares.view(*maps.shape[:3], -1).permute(0, 3, 1, 2)


def places(encoder: Encoder, pictures: Tensor, layer: str, border: int) -> Tensor:
    """A layer's map as [n, h, w, d] float32, without its outermost `border` places, which see padding.

    Raises:
        InputError: the encoder has no such layer.
    """
    if layer not in encoder.dims:
        raise InputError(f"The teacher has no layer {layer!r}; set task.layer to one of {', '.join(encoder.dims)}.")
    return without_border(encoder.stages(pictures)[layer], border)


def without_border(maps: Tensor, border: int) -> Tensor:
    """[n, d, h, w] -> [n, h', w', d] float32 without the border; a small map keeps at least one place."""
    rows, columns = (min(border, (side - 1) // 2) for side in maps.shape[2:])
    cut = maps[:, :, rows : maps.shape[2] - rows, columns : maps.shape[3] - columns]
    return cut.permute(0, 2, 3, 1).float()


def histogram(words: Tensor, count: int) -> Tensor:
    """Word of each place [n, m] -> shares of the words [n, count], which sum to 1."""
    share = torch.full(words.shape, 1 / words.shape[1], device=words.device)
    return torch.zeros(len(words), count, device=words.device).scatter_add_(1, words, share)


def soft_words(x: Tensor, words: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """softmax over the words of -sharpness |x - word|^2 and the least |x - word|^2; x [m, d] -> [m, words], [m]."""
    near = closeness(x, words)
    least = (x.float().square().sum(1) - 2 * near.amax(1)).clamp_min_(0)
    return near.mul_(2 * sharpness).softmax(1), least


def match_bags(answer: Bags) -> tuple[Tensor, dict[str, Tensor]]:
    """What a bag-of-words task returns from `loss`: soft-target cross-entropy [n] and metrics.

    "r2" is that of the shares. "perplexity" is the effective number of words in an image's bag, "batch_perplexity"
    that of the whole batch: near 1 the vocabulary has collapsed, and there is nothing to learn.
    """
    logits, bags = (x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1) for x in answer)
    log_shares = logits.log_softmax(-1)
    loss = -(bags * log_shares).sum(-1).mean(1)
    with torch.no_grad():
        whole = bags.mean(1)
        metrics = {
            "r2": r_squared(log_shares.exp(), bags),
            "perplexity": torch.special.entr(whole).sum(1).exp(),
            "batch_perplexity": torch.special.entr(whole.mean(0)).sum().exp().expand(len(loss)),
        }
    return loss, metrics


def fit_vocabulary(task: TaughtWords, batches: Iterator[Raw], rng: Generator) -> dict[str, Tensor]:
    """The teacher's encoder, and the k-means centres of the places of its maps of whole images.

    `Teacher` is built from them; batches hold "image" [n, 3, h, w] and are endless.
    """
    spec, encoder = saved_encoder(Path(task.teacher), task.field, seed=rng.initial_seed())
    encoder = encoder.to(rng.device).eval()
    vectors: list[Tensor] = []
    with torch.no_grad():
        while sum(map(len, vectors)) < task.vectors * task.words:
            pictures = task.plain(next(batches)["image"])
            vectors.append(places(encoder, pictures, task.layer, task.border).flatten(0, 2))
    centres, spread = k_means(torch.cat(vectors), task.words, rng)
    return {"words": centres, "spread": spread, **pack(spec, encoder)}


def beside_originals(views: Tensor, originals: Tensor) -> Tensor:
    """Views [k n, 3, s, s], then their originals, resized to the views: [(k + 1) n, 3, s, s]."""
    return torch.cat([views, F.adaptive_avg_pool2d(originals, views.shape[-1])])
