"""The number of each sample's class. Only the supervised reference reads labels; pretext tasks get none."""

from __future__ import annotations

import numpy as np

from ssl_core.data import numbers
from ssl_core.data.mapping import Bytes
from ssl_core.data.shards import Shards
from ssl_core.data.shuffle import Ints
from ssl_core.errors import InputError
from ssl_core.types import Field


def memory(field: Field) -> tuple[int, ...]:
    """The shape of one number as bytes. Raises ValueError if the field is not a single number."""
    if field.shape:
        raise ValueError(f"A sample has one label, so a field of shape {field.shape} cannot be read; declare ().")
    return (numbers.BYTES,)


def check_samples(shards: Shards, ids: Ints, field: Field) -> None:
    """Raises InputError if one of the samples has no label."""
    unlabelled = ids[shards.classes.numbers[ids] < 0]
    if len(unlabelled):
        path, row = shards.locate(int(unlabelled[0]))
        raise InputError(
            f"The task learns from labels, but row {row} of shard {path} has none; train on a corpus that was ingested "
            "with labels, for example from one folder per class."
        )


def check_training(shards: Shards, field: Field) -> None:
    """Raises InputError unless every sample has a label and the corpus has as many classes as the task."""
    check_samples(shards, np.arange(len(shards), dtype=np.int64), field)
    names = shards.classes.names
    if field.limit is not None and len(names) != field.limit:
        raise InputError(
            f"The task has {field.limit} classes and the corpus has {len(names)} ({names[0]!r} to "
            f"{names[-1]!r}); set the task's classes to {len(names)}, or train on another corpus."
        )


def fetch(shards: Shards, ids: Ints, field: Field, key: str | None, out: Bytes) -> None:
    """Fills `out` [n, 8] with the number of each sample's label among the corpus version's distinct labels."""
    check_samples(shards, ids, field)
    numbers.write(shards.classes.numbers[ids], out)
