"""EMA of a model's weights (Polyak & Juditsky 1992), smoother than those of the last step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """EMA of all floating-point tensors of a state dict; counters are copied.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the random initial weights are forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = model.state_dict()
        floats = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in floats], [current[name] for name in floats], 1 - decay)
        for name in self.tensors.keys() - set(floats):
            self.tensors[name].copy_(current[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads a saved average, keeping memory formats."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
