"""Ridge-regularised multinomial logistic regression, many problems at once, by L-BFGS.

    minimise over W, b:   sum_i cross_entropy(x_i W + b, y_i) + penalty / 2 * |W|^2         (the bias is free)

A leading dimension of problems (the draws of a few-shot probe) is solved together: each has its own curvature memory
and step length, and stops moving once it has converged. The objective is that of
scikit-learn's LogisticRegression(C=1/penalty).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[p, m] parameters -> [p] values and [p, m] gradients, of p independent problems."""

_HISTORY = 8
_HALVINGS = 25
_CHUNK_ROWS = 1 << 16


class Classifier(NamedTuple):
    """p linear classifiers."""

    weight: Tensor
    """[p, d, c]."""
    bias: Tensor
    """[p, 1, c]."""

    def predict(self, x: Tensor) -> Tensor:
        """[p, n] int64 for x [n, d] that all share, or [p, n, d]."""
        return (x @ self.weight + self.bias).argmax(-1)


def fit(
    x: Tensor,
    y: Tensor,
    classes: int,
    penalty: float,
    *,
    start: Classifier | None = None,
    steps: int = 200,
    tolerance: float = 1e-4,
) -> Classifier:
    """Classifiers of x [p, n, d] with labels y [p, n].

    Rows are taken in chunks, so memory above x itself stays bounded for millions of rows.
    start: warm start, e.g. the solution for a similar penalty. tolerance: largest gradient per sample at the end.
    """
    problems, rows, dim = x.shape
    hot = y if rows > _CHUNK_ROWS else torch.nn.functional.one_hot(y, classes).to(x.dtype)

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = _unpack(theta, dim, classes)
        value = penalty / 2 * weight.square().sum((1, 2))
        slope, slope_bias = penalty * weight, torch.zeros_like(bias)
        for part in range(0, rows, _CHUNK_ROWS):
            xs, truth = x[:, part : part + _CHUNK_ROWS], hot[:, part : part + _CHUNK_ROWS]
            truth = truth if truth.is_floating_point() else torch.nn.functional.one_hot(truth, classes).to(x.dtype)
            log_p = (_few_columns(weight.mT, xs.mT) + bias).log_softmax(-1)
            value = value - (log_p * truth).sum((1, 2))
            error = log_p.exp() - truth
            slope = slope + _few_columns(error.mT, xs)
            slope_bias = slope_bias + error.sum(1, keepdim=True)
        return value, torch.cat([slope.flatten(1), slope_bias.flatten(1)], 1)

    theta = x.new_zeros(problems, (dim + 1) * classes)
    if start is not None:
        theta = torch.cat([start.weight.flatten(1), start.bias.flatten(1)], 1)
    return Classifier(*_unpack(minimise(objective, theta, steps, tolerance * rows), dim, classes))


def _few_columns(few: Tensor, many: Tensor) -> Tensor:
    """The transpose of few @ many; many.mT @ few.mT, a product with few columns, takes a CPU 2 to 12 times as long."""
    return (few @ many).mT


def fit_in_span(x: Tensor, y: Tensor, classes: int, penalty: float, *, tolerance: float = 1e-4) -> Classifier:
    """`fit` for fewer rows than dimensions: the optimum lies in the span of the rows, so only that is searched.

    x [p, n, d], y [p, n]; exact up to the solver's tolerance.
    """
    if x.shape[1] >= x.shape[2]:
        return fit(x, y, classes, penalty, tolerance=tolerance)
    directions, sizes, basis = torch.linalg.svd(x, full_matrices=False)
    inner = fit(directions * sizes.unsqueeze(1), y, classes, penalty, tolerance=tolerance)
    return Classifier(basis.transpose(1, 2) @ inner.weight, inner.bias)


def minimise(objective: Objective, theta: Tensor, steps: int, tolerance: float) -> Tensor:
    """L-BFGS with backtracking (Nocedal & Wright, algorithms 7.4 and 3.1) on p smooth convex problems, [p, m]."""
    value, slope = objective(theta)
    moves: list[Tensor] = []
    bends: list[Tensor] = []
    for _ in range(steps):
        if bool((slope.abs().amax(1) <= tolerance).all()):
            break
        direction = -_inverse_hessian_times(slope, moves, bends)
        new, new_value, new_slope = _search(objective, theta, value, slope, direction, first=not moves)
        if bool((new == theta).all()):
            break
        moves.append(new - theta)
        bends.append(new_slope - slope)
        del moves[:-_HISTORY], bends[:-_HISTORY]
        theta, value, slope = new, new_value, new_slope
    return theta


def _inverse_hessian_times(slope: Tensor, moves: list[Tensor], bends: list[Tensor]) -> Tensor:
    """The two-loop recursion; a pair without positive curvature (of a converged problem) is ignored."""
    q, alphas = slope, []
    curvatures = [(move * bend).sum(1, keepdim=True) for move, bend in zip(moves, bends)]
    inverses = [torch.where(c > 0, 1 / c.clamp_min(1e-30), torch.zeros_like(c)) for c in curvatures]
    for move, bend, inverse in zip(reversed(moves), reversed(bends), reversed(inverses)):
        alphas.append(inverse * (move * q).sum(1, keepdim=True))
        q = q - alphas[-1] * bend
    if moves:
        size = bends[-1].square().sum(1, keepdim=True)
        scale = curvatures[-1] / size.clamp_min(1e-30)
        q = torch.where(scale > 0, scale, torch.ones_like(scale)) * q
    for move, bend, inverse, alpha in zip(moves, bends, inverses, reversed(alphas)):
        q = q + move * (alpha - inverse * (bend * q).sum(1, keepdim=True))
    return q


def _search(
    objective: Objective, theta: Tensor, value: Tensor, slope: Tensor, direction: Tensor, *, first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Halves each problem's step until its value falls enough; a problem whose value cannot fall does not move."""
    descent = (slope * direction).sum(1)
    step = torch.ones_like(value)
    if first:
        step = 1 / slope.abs().sum(1).clamp_min(1)
    for _ in range(_HALVINGS):
        new = theta + step[:, None] * direction
        new_value, new_slope = objective(new)
        falls = new_value <= value + 1e-4 * step * descent
        if bool(falls.all()):
            return new, new_value, new_slope
        step = torch.where(falls, step, step / 2)
    new = torch.where(falls[:, None], new, theta)
    return new, torch.where(falls, new_value, value), torch.where(falls[:, None], new_slope, slope)


def _unpack(theta: Tensor, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    weight, bias = theta[:, : dim * classes], theta[:, dim * classes :]
    return weight.reshape(-1, dim, classes), bias.reshape(-1, 1, classes)
