"""Which samples a rank reads, and when: the order is a pure function, so that it need not be stored.

    cursor -> positions of a global batch -> permutation -> this rank's sample ids

The order is a function of (corpus digest, seed, epoch) and the global batch size; ranks cut each global batch into
consecutive slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssl_core.data.shuffle import Cursor, Ints, permutation
from ssl_core.errors import InputError

_AHEAD = 1 << 14
"""Sample ids computed at once: a permutation costs the same for 64 as for 1,000."""


@dataclass(frozen=True)
class Planned:
    """A batch to read.

    Attributes:
        ids: [n] int64, the samples.
        key: seeds the random numbers of its epoch; None in evaluation.
        after: the cursor after the batch.
    """

    ids: Ints
    key: str | None
    after: Cursor


@dataclass(frozen=True)
class Sampler:
    """One rank's share of a corpus: endless and shuffled in training, once and in order in evaluation.

    In training each epoch shuffles all samples and drops the last ones that do not fill a global batch of `batch_size *
    world`. In evaluation rank r takes the r-th consecutive part, and the last batch may be smaller.

    Attributes:
        batch_size: samples of this rank's batch.
        seed: seed of order and crops; evaluation draws nothing.
        digest: digest of the corpus version.
        rank: this process, from 0.
        world: number of processes.
        train: training or evaluation.
    """

    batch_size: int
    seed: int
    digest: str
    rank: int = 0
    world: int = 1
    train: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "world"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"rank must be between 0 and {self.world - 1} at world size {self.world}, not {self.rank}."
            )

    def check(self, samples: int, start: Cursor) -> None:
        """Raises InputError if a corpus of so many samples fills no batch, or `start` is beyond the end of an epoch."""
        whole = self.batch_size * self.world
        if self.train and samples < whole:
            raise InputError(
                f"The corpus has {samples} samples, fewer than one global batch of {whole} "
                f"({self.batch_size} on each of {self.world} ranks); lower the batch size, or ingest more."
            )
        steps = self.steps_per_epoch(samples)
        if self.train and start.step >= steps:
            raise InputError(
                f"Cannot start at step {start.step}: an epoch has {steps} steps. The cursor comes "
                "from another corpus version, batch or world size; resume with those or at the next epoch."
            )

    def steps_per_epoch(self, samples: int) -> int:
        """Batches that this rank reads in an epoch; in training the same for all ranks."""
        if self.train:
            return samples // (self.batch_size * self.world)
        return -(-len(self._part(samples)) // self.batch_size)

    def plan(self, samples: int, start: Cursor, same_crops: bool = False) -> Iterator[Planned]:
        """This rank's batches from `start` on.

        samples: how many the corpus has.
        same_crops: each sample gets the same crop in every epoch, not a new one.
        """
        return self._training(samples, start, same_crops) if self.train else self._evaluation(samples, start)

    def _training(self, samples: int, start: Cursor, same_crops: bool) -> Iterator[Planned]:
        steps, size, epoch, step = self.steps_per_epoch(samples), self.batch_size, start.epoch, start.step
        some = max(1, _AHEAD // size)
        while True:
            order = permutation(samples, f"{self.digest}/{self.seed}/{epoch}")
            key = f"{self.seed}/index" if same_crops else f"{self.seed}/{epoch}"
            for first in range(step, steps, some):
                block = np.arange(first, min(first + some, steps))
                positions = (block[:, None] * self.world + self.rank) * size + np.arange(size)
                for number, ids in zip(block.tolist(), order[positions]):
                    after = Cursor(epoch, number + 1) if number + 1 < steps else Cursor(epoch + 1)
                    yield Planned(ids, key, after)
            epoch, step = epoch + 1, 0

    def _evaluation(self, samples: int, start: Cursor) -> Iterator[Planned]:
        part, size = self._part(samples), self.batch_size
        ids = np.arange(part.start, part.stop, dtype=np.int64)
        for step in range(start.step, self.steps_per_epoch(samples)):
            yield Planned(ids[step * size : (step + 1) * size], None, Cursor(0, step + 1))

    def _part(self, samples: int) -> range:
        """The samples of this rank in evaluation."""
        return range(samples * self.rank // self.world, samples * (self.rank + 1) // self.world)
