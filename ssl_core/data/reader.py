"""Shards to batches on the device: threads that prefetch, an order that nothing has to remember.

    cursor -> positions of a global batch -> permutation -> this rank's sample ids -> fetch per modality -> Raw

The order is a function of (corpus digest, seed, epoch) and the global batch size; ranks cut each global batch into
consecutive slices. Every batch carries the cursor after it, so a checkpoint that stores it resumes to the sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from ssl_core.data import images, labels, numbers
from ssl_core.data.buffers import Buffers, hand_over
from ssl_core.data.images import ReadError
from ssl_core.data.mapping import Bytes
from ssl_core.data.shards import Shards
from ssl_core.data.shuffle import Cursor, Ints, permutation
from ssl_core.errors import InputError
from ssl_core.types import Field, Modality

__all__ = ["Batch", "Cursor", "ReadError", "Reader"]

_AHEAD = 1 << 14
"""Sample ids worked out at once: a permutation costs the same for 64 as for 1,000."""


@dataclass(frozen=True)
class Batch:
    """What one rank reads at a time.

    Attributes:
        raw: field name -> [n, *field.shape] on the device: uint8, numbers and labels
            int64; images are channels_last in memory.
        ids: [n] int64, the samples' places in `Shards`.
        cursor: where to go on after this batch.
    """

    raw: dict[str, Tensor]
    ids: Ints
    cursor: Cursor


@dataclass(frozen=True)
class Planned:
    """A batch to be read.

    Attributes:
        ids: [n] int64, the samples.
        key: names the random numbers of its epoch; None in evaluation.
        after: the cursor that the batch will carry.
    """

    ids: Ints
    key: str | None
    after: Cursor


@dataclass(frozen=True)
class Fetcher:
    """How samples of one modality are read.

    Attributes:
        memory: shape of one sample as it lies in memory; raises ValueError for a field that the corpus cannot give.
        check: raises InputError when one of the samples cannot fill the field.
        check_training: raises InputError when the corpus as a whole is nothing to train on.
        fetch: fills [n, *memory] for n sample ids; the key names the random numbers, None means none are drawn.
        view: [n, *memory] tensor to [n, *field.shape], without a copy.
    """

    memory: Callable[[Field], tuple[int, ...]]
    check: Callable[[Shards, Ints, Field], None]
    check_training: Callable[[Shards, Field], None]
    fetch: Callable[[Shards, Ints, Field, str | None, Bytes], None]
    view: Callable[[Tensor], Tensor]


FETCHERS: Mapping[Modality, Fetcher] = {
    "image": Fetcher(images.memory, images.check, images.check_training, images.fetch, images.view),
    "index": Fetcher(numbers.memory, numbers.check, numbers.check_training, numbers.fetch, numbers.view),
    "label": Fetcher(labels.memory, labels.check, labels.check_training, labels.fetch, numbers.view),
}


class Reader:
    """Batches of `sample` from `shards`, for ever in training (`train=True`), once and in order in evaluation.

    In training each epoch shuffles all samples, drops those that do not fill a global batch of `batch_size * world`,
    and draws a new crop per sample from (seed, epoch, id), or from (seed, id) where the sample names an index: what is
    asked for its number looks the same in every epoch. In evaluation crops are central, rank r takes the r-th
    consecutive part, and the last batch may be smaller. Iterating again starts at `start` again; leaving the loop or
    `close()` ends the threads. A sample that cannot be read raises ReadError where its batch is due.
    """

    def __init__(
        self,
        shards: Shards,
        sample: Mapping[str, Field],
        *,
        batch_size: int,
        seed: int,
        digest: str,
        rank: int = 0,
        world: int = 1,
        start: Cursor | None = None,
        threads: int = 2,
        prefetch: int = 4,
        device: torch.device | str = "cpu",
        train: bool = True,
    ) -> None:
        self._shards, self._sample, self._batch_size = shards, dict(sample), batch_size
        self._seed, self._digest, self._rank, self._world = seed, digest, rank, world
        self._start, self._train = start or Cursor(), train
        self._threads, self._prefetch, self._device = threads, prefetch, torch.device(device)
        self._closed = False
        self._pools: set[ThreadPoolExecutor] = set()
        self._check()
        self._buffers = {
            name: Buffers((batch_size, *FETCHERS[field.modality].memory(field)), prefetch + 3, self._device)
            for name, field in self._sample.items()
        }

    @property
    def steps_per_epoch(self) -> int:
        """Batches that this rank reads in an epoch; in training the same for all ranks."""
        if self._train:
            return len(self._shards) // (self._batch_size * self._world)
        return -(-len(self._part()) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")
        self._pools.add(pool)
        waiting: deque[Future[Batch]] = deque()
        try:
            for planned in self._plan():
                self._refuse_if_closed()
                waiting.append(pool.submit(self._read, planned))
                if len(waiting) > self._prefetch:
                    yield self._due(waiting)
            while waiting:
                yield self._due(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._pools.discard(pool)

    def close(self) -> None:
        """End all reading threads; the reader cannot be used any more."""
        self._closed = True
        for pool in list(self._pools):
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _due(self, waiting: deque[Future[Batch]]) -> Batch:
        self._refuse_if_closed()
        batch = waiting.popleft().result()
        for tensor in batch.raw.values():
            hand_over(tensor)
        return batch

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("This reader was closed; make a new one, starting at the last batch's cursor.")

    def _plan(self) -> Iterator[Planned]:
        return self._plan_training() if self._train else self._plan_evaluation()

    def _plan_training(self) -> Iterator[Planned]:
        steps, size, epoch, step = self.steps_per_epoch, self._batch_size, self._start.epoch, self._start.step
        some = max(1, _AHEAD // size)
        while True:
            order = permutation(len(self._shards), f"{self._digest}/{self._seed}/{epoch}")
            key = f"{self._seed}/index" if self._numbered() else f"{self._seed}/{epoch}"
            for first in range(step, steps, some):
                block = np.arange(first, min(first + some, steps))
                positions = (block[:, None] * self._world + self._rank) * size + np.arange(size)
                for number, ids in zip(block.tolist(), order[positions]):
                    after = Cursor(epoch, number + 1) if number + 1 < steps else Cursor(epoch + 1)
                    yield Planned(ids, key, after)
            epoch, step = epoch + 1, 0

    def _numbered(self) -> bool:
        return any(field.modality == "index" for field in self._sample.values())

    def _plan_evaluation(self) -> Iterator[Planned]:
        part, size = self._part(), self._batch_size
        ids = np.arange(part.start, part.stop, dtype=np.int64)
        for step in range(self._start.step, self.steps_per_epoch):
            yield Planned(ids[step * size : (step + 1) * size], None, Cursor(0, step + 1))

    def _part(self) -> range:
        """The samples of this rank in evaluation."""
        n = len(self._shards)
        return range(n * self._rank // self._world, n * (self._rank + 1) // self._world)

    def _read(self, planned: Planned) -> Batch:
        raw = {}
        for name, field in self._sample.items():
            fetcher = FETCHERS[field.modality]
            out = self._buffers[name].acquire()[: len(planned.ids)]
            fetcher.fetch(self._shards, planned.ids, field, planned.key, out)
            raw[name] = fetcher.view(self._buffers[name].deliver(out))
        return Batch(raw, planned.ids, planned.after)

    def _check(self) -> None:
        """Refuse at once what would fail later."""
        for name in ("batch_size", "world", "threads", "prefetch"):
            value = getattr(self, f"_{name}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if not 0 <= self._rank < self._world:
            raise ValueError(
                f"rank must be between 0 and {self._world - 1} at world size {self._world}, not {self._rank}."
            )
        self._check_fields()
        whole = self._batch_size * self._world
        if self._train and len(self._shards) < whole:
            raise InputError(
                f"The corpus has {len(self._shards)} samples, fewer than one global batch of {whole} "
                f"({self._batch_size} on each of {self._world} ranks); lower the batch size or ingest more."
            )
        if self._train and self._start.step >= self.steps_per_epoch:
            raise InputError(
                f"Cannot start at step {self._start.step}: an epoch has {self.steps_per_epoch} steps. The cursor comes "
                "from another corpus version, batch or world size; resume with those or at the next epoch."
            )

    def _check_fields(self) -> None:
        if not self._sample:
            raise ValueError("The task's sample names no field, so there is nothing to read.")
        for name, field in self._sample.items():
            if field.modality not in FETCHERS:
                raise ValueError(
                    f"Field {name!r} is of modality {field.modality!r}, but a corpus gives only {', '.join(FETCHERS)}."
                )
            FETCHERS[field.modality].memory(field)
            FETCHERS[field.modality].check(self._shards, np.zeros(1, dtype=np.int64), field)
            if self._train:
                FETCHERS[field.modality].check_training(self._shards, field)
