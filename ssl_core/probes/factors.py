"""How well features predict the factors behind the samples: names by a linear probe, quantities by ridge regression.

    features and factors of the training part -> probes -> factors of the test part, with an interval for each score

A name is scored by accuracy, a quantity by R²: 1 for the quantity itself, 0 for its mean. A periodic quantity, such as
an angle, is a point on a circle. All quantities of one layer share one decomposition of its features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi

import torch
from torch import Tensor

from ssl_core.probes.intervals import Interval, bootstrap_means, percentiles, wilson
from ssl_core.probes.linear import Standardiser, linear_probe
from ssl_core.probes.ridge import Ridge

Factors = Mapping[str, Tensor]
"""Factor -> the number of each sample's name, [n] int64, or each sample's quantities, [n, k] float64."""

RESAMPLES = 2000
"""Resamples of the test part for the interval of an R²."""


def on_circle(values: Tensor, period: float) -> Tensor:
    """[n] -> [n, 2], points on the unit circle; values a period apart are the same point."""
    turn = 2 * pi * values.double() / period
    return torch.stack([turn.cos(), turn.sin()], 1)


def read_out(x: Tensor, factors: Factors, test_x: Tensor, test_factors: Factors, seed: int = 0) -> dict[str, Interval]:
    """Score of each factor with its 95 % interval over test samples.

    x, test_x: [n, d], [m, d] features. factors, test_factors: the same factors for both; a name of the test part that
    `factors` lacks is never predicted, so it counts as wrong. The interval is Wilson's for a name, else a bootstrap.
    """
    scores = {name: _accuracy(x, y, test_x, test_factors[name], seed) for name, y in factors.items() if y.ndim == 1}
    quantities = [name for name, y in factors.items() if y.ndim > 1]
    if quantities:
        scale = Standardiser.of(x.double())
        ridge, test = Ridge.of(scale(x.double())), scale(test_x.double())
        predicted = [ridge.fit(factors[name], ridge.choose(factors[name]))(test) for name in quantities]
        scores |= zip(quantities, _r_squared(predicted, [test_factors[name] for name in quantities], seed))
    return {name: scores[name] for name in factors}


def best_layers(layers: Mapping[str, Tensor], factors: Factors, seed: int = 0) -> dict[str, str]:
    """Factor -> the layer that predicts it best on one random half of the samples after fitting on the other half.

    layers: shallow to deep, each [n, d] with n >= 4; the deepest wins a tie.
    """
    if len(layers) == 1:
        return dict.fromkeys(factors, next(iter(layers)))
    n = len(next(iter(layers.values())))
    fit, held = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    fit_y, held_y = ({name: y[rows.to(y.device)] for name, y in factors.items()} for rows in (fit, held))
    scores = {
        layer: read_out(x[fit.to(x.device)], fit_y, x[held.to(x.device)], held_y, seed) for layer, x in layers.items()
    }
    return {name: max(reversed(scores), key=lambda layer: scores[layer][name].mean) for name in factors}


def _accuracy(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, seed: int) -> Interval:
    answers = linear_probe(x, y, test_x, classes=int(y.max()) + 1, seed=seed).predictions
    return wilson(int((answers == test_y).sum()), len(test_y))


def _r_squared(answers: Sequence[Tensor], truths: Sequence[Tensor], seed: int) -> list[Interval]:
    """R², 0 where nothing varies, of several quantities of the same samples [m, k]."""
    errors = [(answer - truth).square().sum(1) for answer, truth in zip(answers, truths)]
    squares = [(truth - truth.mean(0)).square().sum(1) for truth in truths]
    values = torch.stack([*errors, *squares], 1)
    shares, resampled = (_share(means) for means in (values.mean(0).cpu(), bootstrap_means(values, RESAMPLES, seed)))
    return [percentiles(share, column) for share, column in zip(shares.tolist(), resampled.unbind(1))]


def _share(means: Tensor) -> Tensor:
    """[..., 2 q] mean squared errors and mean squared deviations of q quantities -> [..., q]."""
    error, variance = means.chunk(2, -1)
    return torch.where(variance > 0, 1 - error / variance, torch.zeros_like(error))
