"""Means of per-example values over micro-batches, steps and ranks, summed on the device without waiting for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_core.train.ranks import Ranks


class Meter:
    """Sums since the last `read`; a checkpoint stores them, so that a resumed run gets the same curve."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds values of any shape, one or more per example."""
        for name, value in values.items():
            total = value.detach().double().sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] = self.counts.get(name, 0) + value.numel()

    def read(self, ranks: Ranks) -> dict[str, float]:
        """Means over all ranks; resets the sums. Only here the device is waited for. All ranks call it."""
        totals = ranks.sum(self.packed())
        self.sums, self.counts, names = {}, {}, list(self.sums)
        return {name: (totals[0, i] / totals[1, i]).item() for i, name in enumerate(names)}

    def packed(self) -> Tensor:
        """[2, names] float64 on the CPU: sums and counts of this rank."""
        if not self.sums:
            return torch.zeros(2, 0, dtype=torch.float64)
        counts = torch.tensor(list(self.counts.values()), dtype=torch.float64)
        return torch.stack([torch.stack(list(self.sums.values())).cpu(), counts])

    def unpack(self, names: list[str], totals: Tensor, device: torch.device) -> None:
        """Restores the sums of a checkpoint."""
        self.sums = {name: totals[0, i].to(device) for i, name in enumerate(names)}
        self.counts = {name: int(totals[1, i]) for i, name in enumerate(names)}
