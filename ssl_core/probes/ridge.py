"""Ridge regression: quantities from features, and the choice of the penalty, all in closed form.

    minimise over W, b:   sum_i counts_i |x_i W + b - y_i|^2 + penalty |W|^2         (the bias is free)

    x -> one eigendecomposition -> any number of targets and penalties

Leaving out row i needs no other fit: its error on row i is that of the whole fit over 1 - h_i, where h_i is the share
of y_i in its own prediction (Allen 1974). Float64. The smaller of the two Gram matrices, of features or of rows, is
decomposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES: tuple[float, ...] = tuple(10.0 ** (power / 2) for power in range(4, -11, -1))
"""Strengths per row that `Ridge.choose` tries, strongest first: 100 to 1e-5."""


class Linear(NamedTuple):
    """A linear function of features."""

    weight: Tensor
    """[d, k]."""
    bias: Tensor
    """[k]."""

    def __call__(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, k], float64."""
        return x.double() @ self.weight + self.bias


class Ridge(NamedTuple):
    """The decomposition of features.

    Attributes:
        mean: [d], mean of the rows.
        axes: [d, r] directions in feature space.
        rows: [n, r] the centred rows along them, each times the root of its count.
        squares: [r] sum of the squares of each column of `rows`.
        counts: [n, 1], the weight of each row.
    """

    mean: Tensor
    axes: Tensor
    rows: Tensor
    squares: Tensor
    counts: Tensor

    @classmethod
    def of(cls, x: Tensor, counts: Tensor | None = None) -> Ridge:
        """x: [n, d] features, as they are: standardise them first. counts: [n, 1]; each row once by default."""
        x = x.double()
        counts = torch.ones_like(x[:, :1]) if counts is None else counts.double()
        mean = (counts * x).sum(0) / counts.sum()
        x = (x - mean) * counts.sqrt()
        if x.shape[1] <= x.shape[0]:
            squares, axes = torch.linalg.eigh(x.mT @ x)
            return cls(mean, axes, x @ axes, squares.clamp_min(0), counts)
        squares, across = torch.linalg.eigh(x @ x.mT)
        some = squares > 1e-12 * squares[-1]
        squares, across = squares[some], across[:, some]
        return cls(mean, x.mT @ (across / squares.sqrt()), across * squares.sqrt(), squares, counts)

    def fit(self, y: Tensor, penalty: float) -> Linear:
        """y: [n, k] quantities."""
        centre, along = self._along(y)
        weight = self.axes @ (along / (self.squares + penalty).unsqueeze(1))
        return Linear(weight, centre - self.mean @ weight)

    def leave_one_out(self, y: Tensor, penalties: Sequence[float]) -> Tensor:
        """[penalties, n, k]: each row of y [n, k] as predicted by a fit to all other rows. Counts must be above 0."""
        centre, along = self._along(y)
        inverses = 1 / (self.squares + torch.tensor(penalties, dtype=torch.float64, device=y.device).unsqueeze(1))
        own = self.rows.square() @ inverses.mT + self.counts / self.counts.sum()
        found = []
        for share, own_share in zip(inverses, own.mT):
            error = centre + (self.rows @ (share.unsqueeze(1) * along)) / self.counts.sqrt() - y
            found.append(y + error / (1 - own_share).clamp_min(1e-12).unsqueeze(1))
        return torch.stack(found)

    def choose(self, y: Tensor) -> float:
        """The penalty with the least leave-one-out squared error, one for all columns of y [n, k].

        The strongest wins a tie.
        """
        weight = float(self.counts.sum())
        penalties = [strength * weight for strength in PENALTIES]
        errors = (self.counts * (self.leave_one_out(y, penalties) - y).square()).sum((1, 2))
        return penalties[int(errors.argmin())]

    def _along(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of y, [k], and the products of its deviations with each axis, [r, k]."""
        y = y.double()
        centre = (self.counts * y).sum(0) / self.counts.sum()
        return centre, self.rows.mT @ (self.counts.sqrt() * (y - centre))
