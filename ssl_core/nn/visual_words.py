"""Visual words: what the bag-of-words tasks of Gidaris et al. 2020 share (arXiv:2002.12247, arXiv:2012.11552).

a teacher's map [n, d, h, w] -> every place takes part in its nearest words -> a histogram of words per image
the student, which sees a disturbed image, predicts the histogram: soft-target cross-entropy
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.clusters import closeness, k_means, nearest
from ssl_core.nn.contrast import gather
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.frozen import packed, saved_encoder, unpacked
from ssl_core.nn.heads import r_squared
from ssl_core.nn.momentum import Queue
from ssl_core.types import Field

SCORES = 2**22
"""Shares of places in words that are held at a time where only the largest of each image is kept."""


class Bags(NamedTuple):
    """What a bag-of-words task answers: logits and true shares of each word, both [n, ..., words]."""

    logits: Tensor
    bags: Tensor


class WordHead(nn.Module):
    """[..., dim] -> logits [..., words]: gamma x . w / |w| with one learned gamma (BoWNet, equation 4).

    Words of any frequency get weights of one length, normalised in every forward pass.
    """

    def __init__(self, dim: int, words: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(words, dim))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        # Lengths divide the products, of which there are fewer than weights; normalised weights would be copied often.
        length: Tensor = torch.linalg.vector_norm(self.weight, dim=1)
        return F.linear(x, self.weight) * (self.scale / length.clamp_min(1e-12))


class WordsToWeights(nn.Module):
    """Words [words, dim] -> weights [words, out] of a linear head for them: OBoW's dynamic predictor (section 3.4).

    The words change all the time, and a head of fixed weights would always be that of earlier ones. Two layers turn
    each word, as a unit vector, into a weight vector of length `scale`.
    """

    def __init__(self, dim: int, out: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        layers = [nn.Linear(dim, 2 * out, bias=False), nn.BatchNorm1d(2 * out), nn.ReLU(inplace=True)]
        self.mlp = nn.Sequential(*layers, nn.Linear(2 * out, out))

    def forward(self, words: Tensor) -> Tensor:
        return self.scale * F.normalize(self.mlp(F.normalize(words, dim=1)), dim=1)


class LateWords(nn.Module):
    """Words of a teacher that learns: places of the images that it saw of late, in a queue (OBoW, section 3.3).

    In training each image leaves one place of its map, averaged with the places around it, which becomes a word when
    `after_step` is called. All ranks hold the same words.
    """

    spread: Tensor
    """[], running mean of the squared distance of a place to its nearest word; OBoW starts it at 0.5."""
    counted: Tensor
    """[] int64, batches in it."""

    def __init__(self, words: int, dim: int, sharpness: float, decay: float) -> None:
        """sharpness: of the soft assignment, against `spread`, which keeps `decay` of itself at each step."""
        super().__init__()
        self.sharpness, self.decay = sharpness, decay
        self.queue = Queue(words, dim)
        self.register_buffer("spread", torch.tensor(0.5))
        self.register_buffer("counted", torch.zeros((), dtype=torch.long))
        self._waiting: list[Tensor] = []

    @torch.no_grad()
    def bags(self, maps: Tensor, pick: Tensor) -> Tensor:
        """[n, h, w, d] -> how strongly each word occurs at the place where it does most: [n, words], sums are 1.

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
        """Takes in what was left since the last call, on all ranks."""
        if not self._waiting:
            return
        self.queue.enqueue()
        least = gather(torch.stack(self._waiting))[0].mean()
        self._waiting.clear()
        self.counted += 1
        # A plain mean at first, since a run may be over before OBoW's has forgotten where it started.
        self.spread.lerp_(least, (1 / self.counted).clamp_min(1 - self.decay))


def surroundings(maps: Tensor, pick: Tensor) -> Tensor:
    """One place of each map, averaged with its neighbours: [n, h, w, d] -> [n, d].

    3 x 3 places, or as many as a smaller map has; pick [n] in [0, 1) says which of those that lie wholly inside.
    """
    kernel = (min(3, maps.shape[1]), min(3, maps.shape[2]))
    means = F.avg_pool2d(maps.permute(0, 3, 1, 2), kernel, stride=1).flatten(2)
    place = (pick * means.shape[2]).long().clamp_max(means.shape[2] - 1)
    return means.gather(2, place.view(-1, 1, 1).expand(-1, means.shape[1], 1))[:, :, 0]


class Teacher(nn.Module):
    """A frozen encoder and the words of one of its layers, from an artefact that `fit_words` made."""

    words: Tensor
    """[words, d]."""
    spread: Tensor
    """[], mean squared distance of a place to its nearest word."""

    def __init__(self, tensors: Mapping[str, Tensor], field: Field, layer: str, words: int, border: int = 0) -> None:
        """InputError: the artefact is of another layer or number of words."""
        super().__init__()
        self.layer, self.border = layer, border
        self.register_buffer("words", tensors["words"], persistent=False)
        self.register_buffer("spread", tensors["spread"], persistent=False)
        self.frozen = unpacked(tensors, field)
        if self.words.shape != (words, self.frozen.network.dims.get(layer)):
            raise InputError(
                f"The vocabulary holds {len(self.words)} words of {self.words.shape[1]} numbers, which are not the "
                f"{words} of layer {layer!r} that the task asks for; leave task.vocabulary empty to have it made anew."
            )

    @torch.no_grad()
    def maps(self, pictures: Tensor) -> Tensor:
        """[n, 3, s, s] -> places of the layer's map, [n, h, w, d] float32, without the border."""
        return places(self.frozen.network, pictures, self.layer, self.border)

    @torch.no_grad()
    def bags(self, pictures: Tensor, binary: bool = False) -> Tensor:
        """[n, 3, s, s] -> shares of each word among the places, each of which takes its nearest: [n, words].

        binary: all words that occur get the same share.
        """
        maps = self.maps(pictures)
        found, _ = nearest(maps.flatten(0, 2), self.words)
        bags = histogram(found.view(len(maps), -1), len(self.words))
        return F.normalize((bags > 0).float(), p=1.0, dim=1) if binary else bags

    @torch.no_grad()
    def soft_maps(self, pictures: Tensor, sharpness: float) -> Tensor:
        """[n, 3, s, s] -> each place's share in each word, [n, words, h, w]; sharpness: against `spread`."""
        maps = self.maps(pictures)
        shares, _ = soft_words(maps.flatten(0, 2), self.words, sharpness / self.spread.clamp_min(1e-12))
        return shares.view(*maps.shape[:3], -1).permute(0, 3, 1, 2)


def places(encoder: Encoder, pictures: Tensor, layer: str, border: int) -> Tensor:
    """A layer's map as [n, h, w, d] float32, its outermost `border` places left out, which see padding.

    Raises:
        InputError: the encoder has no such layer.
    """
    if layer not in encoder.dims:
        raise InputError(f"the teacher has no layer {layer!r}; set task.layer to one of {', '.join(encoder.dims)}.")
    return inner(encoder.stages(pictures)[layer], border)


def inner(maps: Tensor, border: int) -> Tensor:
    """[n, d, h, w] -> [n, h', w', d] float32 without the border; a map of few places keeps one at least."""
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
    """What a bag-of-words task answers in `loss`: soft-target cross-entropy [n] and metrics.

    "r2" is that of the shares. "perplexity" is how many words share an image's bag, "batch_perplexity" how many
    those of the whole batch: near 1 the vocabulary has collapsed, and with it the question.
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


def fit_words(
    teacher: str,
    pictures: Iterator[Tensor],
    rng: Generator,
    layer: str,
    border: int = 0,
    *,
    field: Field,
    words: int,
    vectors: int,
) -> dict[str, Tensor]:
    """A saved model's encoder and the k-means centres of the places of its maps: what `Teacher` is made of.

    teacher: the model's folder. pictures: batches [n, 3, s, s] as the teacher sees them, without end.
    vectors: places that k-means gets for each word.
    """
    spec, encoder = saved_encoder(Path(teacher), field, seed=rng.initial_seed())
    encoder = encoder.to(rng.device).eval()
    found: list[Tensor] = []
    with torch.no_grad():
        while sum(map(len, found)) < vectors * words:
            found.append(places(encoder, next(pictures), layer, border).flatten(0, 2))
    centres, spread = k_means(torch.cat(found), words, rng)
    return {"words": centres, "spread": spread, **packed(spec, encoder)}
