"""95 % intervals of a score: over test samples, over draws of labels, and of a paired difference."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_core.errors import InputError

_Z = 1.959963984540054
"""97.5 % point of the normal distribution."""


class Interval(NamedTuple):
    """A score and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson(right: int, n: int) -> Interval:
    """Accuracy on n samples with Wilson's score interval, which is sound near 0 and 1 and for small n."""
    if n < 1:
        raise InputError("There are no test samples, so there is no accuracy; evaluate on at least one.")
    share, z2 = right / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))  # rounding


def over_draws(values: Tensor) -> Interval:
    """Mean of [draws] scores with Student's t interval: how it varies with the choice of labels."""
    n, mean = len(values), float(values.double().mean())
    if n < 2:
        raise ValueError(f"An interval over draws needs at least 2 of them; there are {n}.")
    half = _t_quantile(n - 1) * float(values.double().std()) / sqrt(n)
    return Interval(mean, mean - half, mean + half)


def normal_mean(values: Tensor) -> Interval:
    """Mean of [n] independent scores with the normal interval."""
    n, mean = len(values), float(values.double().mean())
    half = _Z * float(values.double().std(correction=0)) / sqrt(n)
    return Interval(mean, mean - half, mean + half)


def paired_bootstrap(difference: Tensor, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of per-sample differences [n] with the percentile bootstrap over samples (Efron & Tibshirani 1993)."""
    if len(difference) < 1:
        raise ValueError("There are no samples to compare on; give at least one.")
    means = bootstrap_means(difference.unsqueeze(1), resamples, seed)
    return percentiles(float(difference.double().mean()), means.squeeze(1))


def bootstrap_means(values: Tensor, resamples: int, seed: int) -> Tensor:
    """[resamples, c] means of the columns of values [n, c], each over n samples drawn with replacement.

    The draws depend on n and seed alone, so all columns, also those of other calls, are resampled together.
    """
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    block = max(1, (1 << 22) // n)
    means = []
    for start in range(0, resamples, block):
        drawn = torch.randint(n, (min(block, resamples - start), n), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        means.append(times @ values / n)
    return torch.cat(means)


def percentiles(mean: float, resampled: Tensor) -> Interval:
    """`mean` with the 2.5 % and 97.5 % points of its resamples."""
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean, low, high)


def _t_quantile(freedom: int) -> float:
    """97.5 % point of Student's t: the first three exactly, then the Cornish-Fisher series (error below 0.004)."""
    exact = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305}
    if freedom in exact:
        return exact[freedom]
    z, v = _Z, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (power + 1) for power, term in enumerate(terms))
