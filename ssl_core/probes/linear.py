"""The linear probe: how much a linear classifier reads out of frozen features.

    features -> standardise -> ridge logistic regression, its strength chosen on held-out training rows

Most pretext papers report it. Here it is a convex problem with one solution, so that no learning rate is tuned.
Every step is full batch in chunks of rows: 1,347 x 512 takes about half a second on a CPU core, ImageNet's
1.28 million x 2048 x 1000 needs a GPU that holds the features (10 GB) and about a minute.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_core.errors import InputError
from ssl_core.probes.logistic import Classifier, fit, fit_in_span

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Ridge strengths per sample that `linear_probe` tries, strongest first."""
_LOOSE = 1e-3
"""Gradient per sample at which a fit is good enough to count correct answers."""
_CHOICE_ROWS = 50_000
"""Rows that choose the strength; the final fit uses all."""


class Probed(NamedTuple):
    """What a linear probe returns.

    Attributes:
        predictions: [m] int64.
        penalty: the chosen strength, per sample.
        holdout: accuracy with it on the held-out part of the training set.
    """

    predictions: Tensor
    penalty: float
    holdout: float


class Standardiser(NamedTuple):
    """Centres features and gives each dimension unit variance; a dimension that does not vary becomes 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standardiser:
        """From the rows of x [n, d]."""
        std, mean = torch.std_mean(x, dim=0, correction=0)
        varies = std > 1e-6 * x.abs().amax().clamp_min(1e-30)
        return cls(mean, torch.where(varies, 1 / std.clamp_min(1e-30), torch.zeros_like(std)))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


def linear_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, *, classes: int, holdout: float = 0.2, seed: int = 0
) -> Probed:
    """Fit on train_x [n, d], train_y [n] int64; predict test_x [m, d].

    The strength is the one with the best accuracy on a random `holdout` part of the training set (the stronger one wins
    a tie); the final fit uses all of it.
    """
    if len(train_x) < 2:
        raise InputError(f"A linear probe needs at least 2 labelled samples to train on; there are {len(train_x)}.")
    scale = Standardiser.of(train_x)
    x = scale(train_x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:_CHOICE_ROWS].to(x.device)
    holdout_rows, fit_rows = order.tensor_split([max(1, round(holdout * len(order)))])
    penalty, accuracy = _choose(x[fit_rows], train_y[fit_rows], x[holdout_rows], train_y[holdout_rows], classes)
    final = fit(x[None], train_y[None], classes, penalty * len(x), steps=100)
    return Probed(final.predict(scale(test_x))[0], penalty, accuracy)


def _choose(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, classes: int) -> tuple[float, float]:
    """The best of PENALTIES on the held-out rows, and its accuracy; each fit starts from the one before."""
    best, found = (PENALTIES[0], -1.0), None
    for penalty in PENALTIES:
        found = fit(x[None], y[None], classes, penalty * len(x), start=found, steps=60, tolerance=_LOOSE)
        accuracy = (found.predict(held_x)[0] == held_y).double().mean().item()
        best = max(best, (penalty, accuracy), key=lambda pair: pair[1])
    return best


def draw_shots(labels: Tensor, classes: int, shots: int, draws: int, seed: int) -> Tensor:
    """[draws, rows] indices with `shots` random samples of each class, or all of a smaller class.

    A function of labels and seed alone, so that every representation is evaluated on the same draws.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + shots)
    members = [torch.nonzero(labels.cpu() == label).flatten() for label in range(classes)]
    return torch.stack(
        [
            torch.cat([rows[torch.randperm(len(rows), generator=generator)[:shots]] for rows in members])
            for _ in range(draws)
        ]
    )


def few_shot(train_x: Tensor, train_y: Tensor, test_x: Tensor, chosen: Tensor, *, classes: int) -> Tensor:
    """[draws, m] int64: predictions for test_x of probes that see only the labels of `chosen` [draws, rows].

    Features are standardised by all of train_x, which needs no labels; the penalty is scikit-learn's default, C = 1.
    """
    scale = Standardiser.of(train_x)
    chosen = chosen.to(train_x.device)
    classifier: Classifier = fit_in_span(scale(train_x[chosen]), train_y[chosen], classes, 1.0, tolerance=_LOOSE)
    test = scale(test_x)
    return torch.cat([Classifier(w[None], b[None]).predict(test) for w, b in zip(*classifier)])
