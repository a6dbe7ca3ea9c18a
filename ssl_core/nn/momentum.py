"""A momentum copy of a network and a queue of its keys: He et al. 2019 (MoCo), arXiv:1911.05722."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssl_core.nn.contrast import gather, normalise

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(network: Network) -> Network:
    """A copy with the same weights and without gradients; `momentum_update` updates it."""
    return deepcopy(network).requires_grad_(False)


@torch.no_grad()
def momentum_update(copy: nn.Module, network: nn.Module, momentum: float | Tensor) -> None:
    """copy = momentum copy + (1 - momentum) network, for all parameters; the copy keeps running statistics of its own.

    momentum: a number, or [] on the device where it changes from step to step.
    """
    if isinstance(momentum, Tensor):
        for slow, fast in zip(copy.parameters(), network.parameters()):
            slow.lerp_(fast, 1 - momentum)
    else:
        torch._foreach_lerp_(list(copy.parameters()), list(network.parameters()), 1 - momentum)


def rising_momentum(start: float, step: Tensor, horizon: int) -> Tensor:
    """From `start` at step 0 to 1 at step `horizon` by half a cosine, then 1: [] like `step` (as in BYOL and OBoW)."""
    passed = (step / horizon).clamp_max(1.0)
    return 1 - (1 - start) * (1 + torch.cos(torch.pi * passed)) / 2


class Queue(nn.Module):
    """The last `size` keys of all ranks, the oldest replaced first; it starts with random unit vectors.

    The model adds a batch's keys in forward and calls `enqueue` after the optimizer's step. Then all ranks have the
    same queue, with the keys of all ranks in rank order.
    """

    keys: Tensor
    """[size, dim] float32."""
    place: Tensor
    """[] int64, the row that is replaced next."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalise(torch.randn(size, dim)))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self._waiting: list[Tensor] = []

    def add(self, keys: Tensor) -> None:
        """Stores a micro-batch's keys [n, dim] until `enqueue`."""
        self._waiting.append(keys.detach())

    @torch.no_grad()
    def enqueue(self) -> None:
        """Replaces the oldest keys by those stored on all ranks; every rank must have the same number."""
        if not self._waiting:
            return
        size = len(self.keys)
        keys = gather(torch.cat(self._waiting))[0].float()[-size:]
        self._waiting.clear()
        rows = torch.arange(len(keys), device=keys.device).add_(self.place).remainder_(size)
        self.keys.index_copy_(0, rows, keys)
        self.place.add_(len(keys)).remainder_(size)
