"""Memory for batches, reused as soon as nothing refers to it, and its copy to the device.

A fresh 10 MB array costs one page fault per 4 kB, more than filling it. A buffer is free when nothing but the pool
refers to it: tensors and views made of a numpy array hold a reference to it, so a batch that the consumer keeps is
never overwritten.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
import torch
from torch import Tensor

from ssl_core.data.mapping import Bytes


class Buffers:
    """A pool of at most `keep` arrays of one shape; while all are in use, more are made and dropped afterwards."""

    def __init__(self, shape: tuple[int, ...], keep: int, device: torch.device) -> None:
        self._shape, self._keep, self._device = shape, keep, device
        self._pool: list[Bytes] = []
        self._lock = threading.Lock()
        lone = [np.empty(0)]
        self._idle = sys.getrefcount(lone[0])
        self._stream = torch.Stream(device) if device.type == "cuda" else None

    def acquire(self) -> Bytes:
        """An array that is not in use, contents undefined; it returns to the pool when its last view is gone."""
        with self._lock:
            for number in range(len(self._pool)):
                if sys.getrefcount(self._pool[number]) == self._idle:
                    return self._pool[number]
            made = self._make()
            if len(self._pool) < self._keep:
                self._pool.append(made)
            return made

    def deliver(self, filled: Bytes) -> Tensor:
        """The array as a tensor on the device. Called by a reader thread, which waits for the copy."""
        tensor = torch.from_numpy(filled)
        if self._stream is None:
            return tensor
        with self._stream:
            moved = tensor.to(self._device, non_blocking=True)
        self._stream.synchronize()
        return moved

    def _make(self) -> Bytes:
        if self._stream is None:
            return np.empty(self._shape, dtype=np.uint8)
        pinned: Bytes = torch.empty(self._shape, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned


def hand_over(tensor: Tensor) -> Tensor:
    """Tells the allocator that the consumer's stream uses a side stream's tensor, so it is not recycled too early."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor
