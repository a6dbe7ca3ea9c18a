"""The pictures of a source, one after another, as squares of the encoder's size; or the reason why there is none."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from components.corpus.corpus import Corpus, corpora, corpus_uri
from components.decoding.sandbox import Sandbox
from components.ingest.listing import list_files
from components.ingest.sources import Part, SourceOptions, parts
from components.ingest.stages import read_source
from components.registry.export import Loaded, input_of
from components.storage.files import absolute, join, stat
from ssl_core.data.decode import Image, Limits, Reason, Rejected, SampleFormat
from ssl_core.data.reader import Reader, Sampler
from ssl_core.data.shards import Shards
from ssl_core.errors import InputError
from ssl_core.types import media

WINDOW, WINDOW_BYTES = 64, 64 << 20  # read and decoded ahead, at most: pictures, and bytes of tar members


@dataclass(frozen=True)
class Picture:
    """One file or sample of a source.

    Attributes:
        uri: of the file.
        hash: SHA-256 of its bytes; None where they were not read.
        pixels: [side, side, 3]; None if there are none.
        reason: code for why there are none.
        message: the same in words.
    """

    uri: str
    hash: str | None
    pixels: npt.NDArray[np.uint8] | None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Reading:
    """How files are read; it does not matter for the samples of a corpus.

    Attributes:
        column: of image bytes in Parquet sources; None: the only one.
        limits: on the bytes, pixels, memory and time of one file.
        threads: number of threads that read and decode ahead, each with a sandbox.
    """

    column: str | None = None
    limits: Limits = field(default_factory=Limits)
    threads: int = 2


def find_source(source: str) -> Corpus | list[Part]:
    """The corpus that the source names or lies at, else files.

    Raises:
        ValueError: it is both.
        StorageError: it is neither, or cannot be read.
        CorpusError: a corpus of another version of pretext.
    """
    here = stat(absolute(source)) if source else None
    if here and here.folder and stat(join(here.uri, "_delta_log")):
        return Corpus.open(here.uri)
    if source not in corpora():
        return parts([source])
    if here:
        raise InputError(
            f"{source} names both a corpus and a local file or folder; write ./{source}, or {corpus_uri(source)}"
        )
    return Corpus.open(source)


@contextmanager
def pictures_of(
    found: Corpus | Sequence[Part], loaded: Loaded, reading: Reading, batch_size: int
) -> Iterator[Iterator[Picture]]:
    """The pictures of what `find_source` returned, in order, for the block; a corpus' in batches of `batch_size`."""
    with ExitStack() as sandboxes:
        if isinstance(found, Corpus):
            pictures = _samples(found, loaded, batch_size)
        else:
            pictures = _files(found, loaded, reading, sandboxes)
        with closing(pictures):
            yield pictures


def _samples(corpus: Corpus, loaded: Loaded, batch_size: int) -> Generator[Picture, None, None]:
    shards = Shards.open(corpus.shards())
    name, _ = input_of(loaded.task)
    uris, hashes = shards.column("uri"), shards.column("hash")
    sampler = Sampler(batch_size, seed=0, digest=corpus.digest(), train=False)
    with Reader(shards, media(loaded.task.sample), sampler) as reader:
        for batch in reader:
            squares = batch.raw[name].permute(0, 2, 3, 1).numpy()
            for i, square in zip(batch.ids.tolist(), squares):
                yield Picture(uris[i].as_py(), hashes[i].as_py(), square)


def _files(
    cut: Sequence[Part], loaded: Loaded, reading: Reading, sandboxes: ExitStack
) -> Generator[Picture, None, None]:
    """Each thread that reads ahead has a sandbox, which must be closed after the generator."""
    side = input_of(loaded.task)[1].shape[-1]
    sample_format = SampleFormat(size=max(side, int(loaded.about.get("size", side))))
    own, limits = threading.local(), reading.limits

    def picture(row: dict[str, Any]) -> Picture:
        if not hasattr(own, "sandbox"):
            own.sandbox = Sandbox(limits, sample_format)
            sandboxes.callback(own.sandbox.close)
        return _decode(row, own.sandbox, limits, side)

    options = SourceOptions(labels=None, column=reading.column, limits=limits)
    rows = (row for part in cut for table in list_files(part, options, _all, _none) for row in table.to_pylist())
    return _read_ahead(picture, rows, reading.threads)


def _all(listed: Any) -> list[bool]:
    return [True] * len(listed)


def _none(uri: str) -> None:
    """Files that only accompany media are not embedded."""


def _read_ahead(
    do: Callable[[dict[str, Any]], Picture], rows: Iterable[dict[str, Any]], threads: int
) -> Generator[Picture, None, None]:
    waiting: deque[tuple[Future[Picture], int]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        try:
            for row in rows:
                waiting.append((pool.submit(do, row), len(row["data"] or b"")))
                while len(waiting) >= WINDOW or sum(size for _, size in waiting) >= WINDOW_BYTES:
                    yield waiting.popleft()[0].result()
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


def _decode(row: dict[str, Any], sandbox: Sandbox, limits: Limits, side: int) -> Picture:
    uri, data = row["uri"], row["data"]
    if row["reason"] is not None:
        return Picture(uri, None, None, str(row["reason"]), row["message"] or "")
    if data is None:
        data = read_source(os.fsdecode(row["locator"]), limits)
    if data is None:
        return Picture(uri, None, None, "vanished", "The file disappeared after it was listed.")
    if len(data) > limits.max_bytes:
        return Picture(uri, None, None, str(Reason.TOO_LARGE), f"More than {limits.max_bytes:,} bytes.")
    digest = hashlib.sha256(data).hexdigest()
    try:
        return Picture(uri, digest, _square(sandbox.decode(data), side))
    except Rejected as refused:
        return Picture(uri, digest, None, str(refused.reason), refused.message)


def _square(image: Image, side: int) -> npt.NDArray[np.uint8]:
    """The middle of the picture, cropped as the reader does in evaluation; [side, side, 3]."""
    pixels = np.frombuffer(image.payload, np.uint8).reshape(image.height, image.width, 3)
    top, left = (image.height - side) // 2, (image.width - side) // 2
    return pixels[top : top + side, left : left + side]
