"""Signs that a run is not worth continuing: NaN or infinite numbers, and a collapsed representation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ssl_core.probes.rank import collapse
from ssl_core.task import TaskModel
from ssl_core.train.run import Runtime
from ssl_core.types import Raw


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating tensor holds NaN or infinity; waits for the device once."""
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor.is_floating_point()], float("inf"))
    return bool(torch.isfinite(torch.stack([norm.double() for norm in norms])).all()) if norms else True


class CollapseCheck:
    """Counts the checks in a row in which the representation is below a threshold of `Runtime`."""

    def __init__(self, runtime: Runtime, failures: int = 0) -> None:
        self.runtime = runtime
        self.failures = failures

    def check(self, model: TaskModel, raw: Raw) -> dict[str, float]:
        """Spread and effective rank of the encoder's last layer on this batch, in eval mode; counts failures."""
        training = [module for module in model.modules() if module.training]
        model.eval()
        with torch.no_grad():
            vectors = list(model.represent(raw).values())[-1]
        for module in training:
            module.training = True
        gate = collapse(vectors, self.runtime.collapse_std, self.runtime.collapse_rank)
        self.failures = self.failures + 1 if gate.collapsed else 0
        return {"spread": gate.spread, "effective_rank": gate.rank}

    @property
    def collapsed(self) -> bool:
        """Whether enough checks in a row have failed."""
        return self.failures >= self.runtime.collapse_checks
