"""Heads on a pooled representation: classifiers, and the projection head of contrastive methods."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _hidden(before: int, after: int, norm: bool) -> list[nn.Module]:
    """Linear, batch norm, ReLU; the linear layer has a bias only where no norm would cancel it."""
    linear = nn.Linear(before, after, bias=not norm)
    return [linear, nn.BatchNorm1d(after), nn.ReLU(inplace=True)] if norm else [linear, nn.ReLU(inplace=True)]


def _mlp(dims: Sequence[int], norm: bool) -> list[nn.Module]:
    return [layer for before, after in pairwise(dims) for layer in _hidden(before, after, norm)]


def _check_dims(dims: Sequence[int]) -> None:
    if any(dim < 1 for dim in dims):
        raise ValueError(f"A head got layers of {', '.join(map(str, dims))} channels; each needs at least one.")


class ProjectionHead(nn.Module):
    """SimCLR's projection (https://arxiv.org/abs/2002.05709): `layers` linear layers, all but the last with ReLU.

    [n, dim] -> [n, out], not normalised. `last_norm` ends in a batch norm that learns a scale and no shift, as in
    SimCLR's repository; batch norm anywhere needs more than one sample per rank while training.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 2048,
        out: int = 128,
        *,
        layers: int = 2,
        norm: bool = True,
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"A projection head got layers={layers}; it needs at least 1.")
        dims = [dim] + [hidden] * (layers - 1)
        _check_dims([*dims, out])
        modules = [*_mlp(dims, norm), nn.Linear(dims[-1], out, bias=not last_norm)]
        if last_norm:
            norm_at_end = nn.BatchNorm1d(out)
            norm_at_end.bias.requires_grad_(False)
            modules.append(norm_at_end)
        self.mlp = nn.Sequential(*modules)
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return out


class ClassifierHead(nn.Module):
    """[n, dim] -> logits [n, classes]: one linear layer, after an MLP where `hidden` names its widths."""

    def __init__(
        self, dim: int, classes: int, hidden: Sequence[int] = (), *, norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        dims = [dim, *hidden]
        _check_dims([*dims, classes])
        last = nn.Linear(dims[-1], classes)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*_mlp(dims, norm), nn.Dropout(dropout), last)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return out


def classify(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """What a classification task returns from `loss`: cross-entropy [n] and accuracy [n]; logits [n, k], targets [n].

    smoothing: share of the target that is spread evenly over all classes.
    """
    loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return loss, {"accuracy": (logits.detach().argmax(1) == targets).float()}


class Weighted(NamedTuple):
    """Targets with weights, such as a picture of which only the hidden part counts."""

    values: Tensor
    """[n, ...]."""
    weights: Tensor
    """Weight of each value, in a shape that broadcasts to that of the values."""


def regress(outputs: Tensor, targets: Tensor | Weighted) -> tuple[Tensor, dict[str, Tensor]]:
    """What a task about quantities or pixels returns from `loss`: mean squared error [n] and "r2" [n]."""
    values, weights = targets if isinstance(targets, Weighted) else (targets, targets.new_ones(()))
    error = _sums((outputs - values).square(), weights)
    counted = _sums(weights.expand_as(values), weights.new_ones(())).clamp_min(1e-6)
    return error / counted, {"r2": _explained(error.detach(), values, weights)}


def r_squared(outputs: Tensor, targets: Tensor | Weighted) -> Tensor:
    """[n], whose mean is R²: the share of the targets' variance over the batch that the outputs explain.

    1 for the targets themselves, 0 for their mean over the batch, taken place by place, or where nothing varies.
    """
    with torch.no_grad():
        return regress(outputs, targets)[1]["r2"]


def _explained(error: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """error [n]: squared error, summed over each example."""
    variance = _sums((values - values.mean(0)).square_(), weights).mean()
    return torch.where(variance > 0, 1 - error / variance, torch.zeros_like(error))


def _sums(each: Tensor, weights: Tensor) -> Tensor:
    return (each * weights if weights.ndim else each).flatten(1).sum(1)
