"""k nearest neighbours by cosine: a probe without training (Wu et al. 2018, https://arxiv.org/abs/1805.01978).

features -> L2-normalise -> cosine in chunks -> the k nearest -> votes, weighted by exp(cosine / temperature)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError

_CHUNK_BYTES = 1 << 28
"""Memory for the similarities of one chunk."""


class Neighbours(NamedTuple):
    """The nearest keys of each query, nearest first."""

    similarity: Tensor
    """[m, k] cosine."""
    ids: Tensor
    """[m, k] int64, rows of the keys."""


def neighbours(queries: Tensor, keys: Tensor, k: int, *, exclude_self: bool = False) -> Neighbours:
    """The k keys [n, d] of highest cosine to each query [m, d], by brute force in chunks of queries.

    exclude_self: queries and keys are the same rows, and no row is its own neighbour.
    """
    available = len(keys) - exclude_self
    if available < 1:
        raise InputError(f"There are {len(keys)} samples to search; neighbours need at least {1 + exclude_self}.")
    k = min(k, available)
    unit_keys = F.normalize(keys, dim=1)
    rows = max(1, _CHUNK_BYTES // (4 * len(keys)))
    found = []
    for start in range(0, len(queries), rows):
        similarity = F.normalize(queries[start : start + rows], dim=1) @ unit_keys.T
        if exclude_self:
            own = torch.arange(len(similarity), device=similarity.device)
            similarity[own, own + start] = -torch.inf
        found.append(similarity.topk(k, dim=1))
    return Neighbours(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))


def vote(nearest: Neighbours, labels: Tensor, classes: int, temperature: float | None = 0.07) -> Tensor:
    """Each query's class by its neighbours' votes: [m] int64.

    labels: [n] int64 of the keys. A vote weighs exp(similarity / temperature) (Wu 2018, section 3.4); without a
    temperature all weigh the same, and a tie goes to the lower class.
    """
    if temperature is None:
        weights = torch.ones_like(nearest.similarity)
    else:
        weights = ((nearest.similarity - nearest.similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(len(weights), classes, device=weights.device, dtype=weights.dtype)
    # One neighbour rank at a time: adding all at once sums in no fixed order on a GPU.
    for rank in range(weights.shape[1]):
        votes.scatter_add_(1, labels[nearest.ids[:, rank, None]], weights[:, rank, None])
    return votes.argmax(1)


def knn(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, *, classes: int, k: int = 20, temperature: float | None = 0.07
) -> Tensor:
    """[m] int64: the class of each row of test_x [m, d] by its k nearest of train_x [n, d], labelled train_y [n]."""
    return vote(neighbours(test_x, train_x, k), train_y, classes, temperature)


def leave_one_out(x: Tensor, y: Tensor, *, classes: int, k: int = 20, temperature: float | None = 0.07) -> Tensor:
    """[n] bool: whether each row is classified correctly by its neighbours among the other rows.

    Ranks layers without using the test set.
    """
    return vote(neighbours(x, x, k, exclude_self=True), y, classes, temperature) == y
