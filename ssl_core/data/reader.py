"""From shards to batches on the device: threads that prefetch the batches of a sampler.

    cursor -> Sampler -> this rank's sample ids -> fetch per modality -> Raw

Every batch has the cursor after it; from a checkpoint that stores it, a run resumes at exactly the next sample.
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
from ssl_core.data.sampler import Planned, Sampler
from ssl_core.data.shards import Shards
from ssl_core.data.shuffle import Cursor, Ints
from ssl_core.types import Field, Modality

__all__ = ["Batch", "Cursor", "ReadError", "Reader", "Sampler"]


@dataclass(frozen=True)
class Batch:
    """What one rank reads at a time.

    Attributes:
        raw: field name -> [n, *field.shape] on the device: uint8, numbers and labels int64; images are channels_last
            in memory.
        ids: [n] int64, the samples' numbers in `Shards`.
        cursor: the place after this batch.
    """

    raw: dict[str, Tensor]
    ids: Ints
    cursor: Cursor


@dataclass(frozen=True)
class Fetcher:
    """How samples of one modality are read.

    Attributes:
        memory: shape of one sample in memory; raises ValueError for a field that a corpus cannot fill.
        check_samples: raises InputError if one of the samples cannot fill the field.
        check_training: raises InputError if the corpus as a whole is unfit for training.
        fetch: fills [n, *memory] for n sample ids; the key seeds the random numbers, None draws none.
        view: [n, *memory] tensor to [n, *field.shape], without a copy.
    """

    memory: Callable[[Field], tuple[int, ...]]
    check_samples: Callable[[Shards, Ints, Field], None]
    check_training: Callable[[Shards, Field], None]
    fetch: Callable[[Shards, Ints, Field, str | None, Bytes], None]
    view: Callable[[Tensor], Tensor]


FETCHERS: Mapping[Modality, Fetcher] = {
    "image": Fetcher(images.memory, images.check_samples, images.check_training, images.fetch, images.view),
    "index": Fetcher(numbers.memory, numbers.check_samples, numbers.check_training, numbers.fetch, numbers.view),
    "label": Fetcher(labels.memory, labels.check_samples, labels.check_training, labels.fetch, numbers.view),
}


class Reader:
    """Batches of `sample` from `shards`, as the sampler orders them.

    In training each sample's crop is drawn anew from (seed, epoch, id). Where the task reads the sample's index it is
    drawn from (seed, id), so that a sample looks the same in every epoch. In evaluation crops are central. Iterating
    again starts at `start` again; leaving the loop or `close()` ends the threads. A sample that cannot be read raises
    ReadError when its batch is due.
    """

    def __init__(
        self,
        shards: Shards,
        sample: Mapping[str, Field],
        sampler: Sampler,
        *,
        start: Cursor | None = None,
        threads: int = 2,
        prefetch: int = 4,
        device: torch.device | str = "cpu",
    ) -> None:
        self._shards, self._sample, self.sampler = shards, dict(sample), sampler
        self._start, self._threads, self._prefetch = start or Cursor(), threads, prefetch
        self._closed = False
        self._pools: set[ThreadPoolExecutor] = set()
        self._check()
        self._buffers = {
            name: Buffers(
                (sampler.batch_size, *FETCHERS[field.modality].memory(field)), prefetch + 3, torch.device(device)
            )
            for name, field in self._sample.items()
        }

    @property
    def steps_per_epoch(self) -> int:
        """Batches that this rank reads in an epoch; in training the same for all ranks."""
        return self.sampler.steps_per_epoch(len(self._shards))

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")
        self._pools.add(pool)
        waiting: deque[Future[Batch]] = deque()
        numbered = any(field.modality == "index" for field in self._sample.values())
        try:
            for planned in self.sampler.plan(len(self._shards), self._start, same_crops=numbered):
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
        """Ends all reader threads; after that the reader cannot be used."""
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
            raise RuntimeError("This reader is closed; make a new one that starts at the last batch's cursor.")

    def _read(self, planned: Planned) -> Batch:
        raw = {}
        for name, field in self._sample.items():
            fetcher = FETCHERS[field.modality]
            out = self._buffers[name].acquire()[: len(planned.ids)]
            fetcher.fetch(self._shards, planned.ids, field, planned.key, out)
            raw[name] = fetcher.view(self._buffers[name].deliver(out))
        return Batch(raw, planned.ids, planned.after)

    def _check(self) -> None:
        """Reports errors now rather than in the middle of the reading."""
        for name in ("threads", "prefetch"):
            value = getattr(self, f"_{name}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        self._check_fields()
        self.sampler.check(len(self._shards), self._start)

    def _check_fields(self) -> None:
        if not self._sample:
            raise ValueError("The task's sample has no fields, so there is nothing to read; declare at least one.")
        for name, field in self._sample.items():
            if field.modality not in FETCHERS:
                raise ValueError(
                    f"Field {name!r} is of modality {field.modality!r}, but a corpus has only {', '.join(FETCHERS)}."
                )
            FETCHERS[field.modality].memory(field)
            FETCHERS[field.modality].check_samples(self._shards, np.zeros(1, dtype=np.int64), field)
            if self.sampler.train:
                FETCHERS[field.modality].check_training(self._shards, field)
