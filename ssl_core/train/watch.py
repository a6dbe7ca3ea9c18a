"""When a run is not worth continuing: numbers that are no numbers, and a representation that says nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.task import TaskModel
from ssl_core.train.run import Train
from ssl_core.types import Raw


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating tensor holds NaN or infinity; waits for the device once."""
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor.is_floating_point()], float("inf"))
    return bool(torch.isfinite(torch.stack([norm.double() for norm in norms])).all()) if norms else True


@torch.no_grad()
def spread_and_rank(vectors: Tensor) -> tuple[float, float]:
    """How far from collapsed a representation [n, d] is: (spread, effective rank).

    Spread is the root mean square over dimensions of the L2-normalised vectors' standard deviation, times sqrt(d): 1
    on the whole sphere, 0 in one point (Chen & He 2021, https://arxiv.org/abs/2011.10566, section 4.1). The effective
    rank is exp of the entropy of the centred matrix's normalised singular values (Roy & Vetterli 2007).
    """
    unit = F.normalize(vectors.double(), dim=1)
    centred = unit - unit.mean(0)
    spread = centred.pow(2).sum(1).mean().sqrt()
    singular = torch.linalg.svdvals(centred)
    shares = singular / singular.sum().clamp_min(1e-300)
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    return spread.item(), entropy.exp().item()


class CollapseWatch:
    """Counts checks in a row whose representation is below the thresholds of `Train`."""

    def __init__(self, train: Train, failures: int = 0) -> None:
        self.train = train
        self.failures = failures

    def look(self, model: TaskModel, raw: Raw) -> dict[str, float]:
        """Spread and effective rank of the encoder's last layer on this batch, in eval mode; counts a failure."""
        training = [module for module in model.modules() if module.training]
        model.eval()
        with torch.no_grad():
            vectors = list(model.represent(raw).values())[-1]
        for module in training:
            module.training = True
        spread, rank = spread_and_rank(vectors)
        low = spread < self.train.collapse_std or rank < self.train.collapse_rank
        self.failures = self.failures + 1 if low else 0
        return {"spread": spread, "effective_rank": rank}

    @property
    def collapsed(self) -> bool:
        """Whether enough checks in a row have failed."""
        return self.failures >= self.train.collapse_checks
