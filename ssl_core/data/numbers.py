"""The number of each sample in its corpus version, for tasks whose answer is the sample."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssl_core.data.mapping import Bytes
from ssl_core.data.shards import Shards
from ssl_core.data.shuffle import Ints
from ssl_core.errors import InputError
from ssl_core.types import Field

BYTES = 8
"""Size of one number in memory."""


def memory(field: Field) -> tuple[int, ...]:
    """The shape of one number as bytes. Raises ValueError if the field is not a single number."""
    if field.shape:
        raise ValueError(f"A sample has one number, so a field of shape {field.shape} cannot be read; declare ().")
    return (BYTES,)


def view(batch: Tensor) -> Tensor:
    """[n, 8] bytes as [n] int64."""
    return batch.view(torch.int64)[:, 0]


def check_samples(shards: Shards, ids: Ints, field: Field) -> None:
    """No check: every sample has a number."""


def check_training(shards: Shards, field: Field) -> None:
    """Raises InputError if the corpus has more samples than the task has classes."""
    if field.limit is not None and len(shards) > field.limit:
        raise InputError(
            f"The task has {field.limit} classes, one per sample, and the corpus has {len(shards)} samples; raise the "
            "task's classes to that number, or train on a smaller corpus."
        )


def fetch(shards: Shards, ids: Ints, field: Field, key: str | None, out: Bytes) -> None:
    """Fills `out` [n, 8] with the ids themselves: the order of a corpus version's samples never changes."""
    write(ids, out)


def write(values: Ints, out: Bytes) -> None:
    """Fills `out` [n, 8] with the bytes of n numbers."""
    out[:] = values.astype(np.int64).view(np.uint8).reshape(len(values), BYTES)
