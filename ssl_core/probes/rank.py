"""Measures that need no labels: how many dimensions a representation uses, and how it is spread over the sphere.

RankMe: Garrido et al. 2023, https://arxiv.org/abs/2210.02885. Alignment and uniformity: Wang & Isola 2020,
https://arxiv.org/abs/2005.10242. Spread: Chen & He 2021, https://arxiv.org/abs/2011.10566, section 4.1.
"""

from __future__ import annotations

from math import exp
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError

_RANK_ROWS = 25_600
"""Samples that RankMe is measured on, as in the paper; more change it little."""
_PAIR_ROWS = 8_192
"""Samples whose pairs uniformity is measured on: 33 million pairs."""


def rank_me(x: Tensor) -> float:
    """exp of the entropy of the normalised singular values of x [n, d]: 1 (collapse) to min(n, d).

    The features are not centred (equation 3 of the paper). The singular values are the roots of the d x d Gram
    matrix's eigenvalues in float64: exact to about 1e-8 of the largest, and quick for many rows.
    """
    rows = x[:_RANK_ROWS].double()
    small = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    return _effective_rank(torch.linalg.eigvalsh(small).clamp_min(0).sqrt())


def _effective_rank(singular: Tensor) -> float:
    total = singular.sum()
    if total <= 0:
        return 1.0
    shares = singular / total + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def alignment(x: Tensor, y: Tensor, power: float = 2.0) -> float:
    """Mean distance^power of positive pairs on the unit sphere, rows of x and y [n, d]: 0 is best, 4 opposite."""
    return float((F.normalize(x, dim=1) - F.normalize(y, dim=1)).norm(dim=1).pow(power).double().mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """log mean over pairs of exp(-t distance^2) on the unit sphere, x [n, d]: 0 in one point, near -2t when uniform."""
    if len(x) < 2:
        raise InputError(f"Uniformity is about pairs, and there are {len(x)} samples; give at least 2.")
    unit = F.normalize(x[:_PAIR_ROWS].double(), dim=1)
    n = len(unit)
    parts = (unit[start : start + 1024] for start in range(0, n, 1024))
    kernel = sum(float((-2 * t * (1 - part @ unit.T)).exp().sum()) for part in parts)
    return float(torch.tensor((kernel - n) / (n * (n - 1)), dtype=torch.float64).clamp_min(exp(-4 * t)).log())


class Collapse(NamedTuple):
    """The collapse gate.

    Attributes:
        spread: standard deviation of the normalised features times sqrt(d): 1 on the whole sphere, 0 in one point.
        rank: RankMe of the centred normalised features.
        reason: what is wrong, in one sentence; empty when nothing is.
    """

    spread: float
    rank: float
    reason: str

    @property
    def collapsed(self) -> bool:
        return bool(self.reason)


def collapse(x: Tensor, least_spread: float = 1e-2, least_rank: float = 1.5) -> Collapse:
    """Whether the features x [n, d] are nearly the same for every sample, or differ along a single line."""
    if not bool(torch.isfinite(x).all()):
        return Collapse(float("nan"), float("nan"), "The features hold NaN or infinity; the model is broken.")
    unit = F.normalize(x.double(), dim=1)
    centred = unit - unit.mean(0)
    spread = float(centred.square().sum(1).mean().sqrt())
    rank = rank_me(centred)
    if spread < least_spread:
        reason = f"All features are nearly the same (spread {spread:.2g}; it must be at least {least_spread:g})."
    elif rank < least_rank:
        reason = f"The features differ along one direction only (rank {rank:.2f}; it must be at least {least_rank:g})."
    else:
        reason = ""
    return Collapse(spread, rank, reason)
