"""Memory: what a training step frees stays with the process, for the next step; and the most that was used.

By default glibc maps every large block anew and hands it back when it is freed: a ResNet-18 step of 64 images on a CPU
then takes 70,000 page faults, a tenth of its time. GPUs have torch's own caching allocator.
"""

from __future__ import annotations

import ctypes
import resource
import sys

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """For the rest of this process; does nothing where the C library has no such switch."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
        mallopt(_TOP_PAD, 64 << 20)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has used so far, of the GPU's memory where it computes on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
