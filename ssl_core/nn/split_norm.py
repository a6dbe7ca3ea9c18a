"""Batch norm over parts of a batch, as if each part were on a GPU of its own.

Statistics of the whole batch reveal to a sample which others are in it. Where query and key are in one batch and the
negatives come from others, that alone gives the answer away (He et al. 2019, arXiv:1911.05722, section 3.3).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


class SplitBatchNorm(nn.Module):
    """Batch norm with separate statistics for `splits` consecutive, equal parts of the batch; same state dict.

    Running statistics are updated by the mean over parts. No subclass of PyTorch's, so that train.sync_bn, which would
    join the parts again, leaves it alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, splits: int) -> None:
        super().__init__()
        assert norm.momentum is not None and norm.track_running_stats
        self.splits, self.eps, self.momentum = splits, norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._norm(x, self.running_mean, self.running_var)
        if len(x) % self.splits:
            raise InputError(
                f"Batch norm in {self.splits} parts got {len(x)} samples on this worker; make train.batch_size a "
                f"multiple of {self.splits} x cluster.workers x train.accumulate, or change task.splits."
            )
        means, variances = (each.repeat(self.splits, 1) for each in (self.running_mean, self.running_var))
        parts = zip(x.chunk(self.splits), means, variances)
        out = torch.cat([self._norm(*part) for part in parts])
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        self.num_batches_tracked.add_(1)
        return out

    def _norm(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)


def split_batch_norm(network: Network, splits: int) -> Network:
    """Replaces every batch norm in `network` by a split one, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SplitBatchNorm(child, splits))
    return network
