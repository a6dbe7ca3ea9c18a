"""Files or a corpus through a registered encoder, into Parquet.

    source -> sandboxed decoding at the encoder's size -> batches -> one layer -> uri, hash, embedding

Memory is bounded by a window of pictures, whatever the source holds. The output appears whole or not at all, and not
without a row. A file that cannot be used is a row of <out>.quarantine.parquet with a reason code; refusing storage
stops it, by name.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.corpus.corpus import Corpus, corpora, corpus_uri
from components.decoding.sandbox import Sandbox
from components.ingest.listing import list_files
from components.ingest.sources import Part, Taking, parts
from components.ingest.stages import read_source
from components.registry.export import Loaded, input_of, load_artifact
from components.registry.fetch import fetch
from components.storage.files import absolute, join, stat
from ssl_core.data.decode import Image, Limits, Reason, Rejected, SampleFormat
from ssl_core.data.reader import Reader
from ssl_core.data.shards import Shards
from ssl_core.errors import InputError
from ssl_core.types import media

REFUSED = pa.schema([(name, pa.string()) for name in ("uri", "hash", "reason", "message")])
WINDOW, WINDOW_BYTES = 64, 64 << 20  # read and decoded ahead, at most: pictures, and bytes of tar members


class EmbedError(InputError):
    """There are files, and none could be embedded."""


@dataclass(frozen=True)
class EmbedReport:
    """What was embedded.

    Attributes:
        out: Parquet file with uri, hash and embedding (a list of `dim` float32); untouched where there are no rows.
        rows: of it.
        dim: numbers per picture.
        layer: of the encoder.
        refused: files that could not be used.
        quarantine: Parquet file that names them; None where there are none.
        seconds: it took.
    """

    out: Path
    rows: int
    dim: int
    layer: str
    refused: int
    quarantine: Path | None
    seconds: float


@dataclass(frozen=True)
class _Picture:
    """One source file: its square of pixels, or why there is none."""

    uri: str
    hash: str | None
    pixels: npt.NDArray[np.uint8] | None
    reason: str = ""
    message: str = ""


def embed(
    model_uri: str,
    source: str,
    out: Path,
    *,
    uri: str | None = None,
    layer: str | None = None,
    batch_size: int = 128,
    device: str | None = None,
    column: str | None = None,
    limits: Limits | None = None,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> EmbedReport:
    """Embeds every picture of `source` with `model_uri`.

    model_uri: models:/NAME@champion, models:/NAME/3, runs:/RUN/encoder, or a model folder.
    source: a corpus, by name, path or URI, or what `pretext ingest` takes: a folder, glob, tar, Parquet column or URI.
    layer: of the encoder; by default the one the evaluation found best.
    progress: called with (embedded, refused) after every batch.

    Raises:
        InputError: the model has no such layer, or is none of ours; `out` is a folder, the source, or a file that is
            no Parquet; or the source is a corpus and something else as well.
        EmbedError: every file was refused.
        TrackingError: there is no such model, or it cannot be fetched.
        StorageError: source or output cannot be read or written.
        CorpusError: a corpus of another version of pretext.
    """
    started = time.monotonic()
    _check_place(Path(out), source)
    corpus = _corpus(source)
    cut = [] if corpus else parts([source])
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pretext-embed-")))
        loaded = load_artifact(fetch(model_uri, cache / "model", uri), where, layer)
        if corpus:
            pictures = _from_corpus(corpus, loaded, batch_size)
        else:
            pictures = _from_files(cut, loaded, limits or Limits(), column, threads, stack)
        about = {"model": model_uri, "layer": loaded.layer}
        writer = stack.enter_context(_Output(Path(out), loaded.layers[loaded.layer], about))
        for batch in _batched(pictures, batch_size):
            writer.write(batch, _vectors(loaded, batch, where))
            if progress is not None:
                progress(writer.rows, writer.refused)
    quarantine = writer.quarantine if writer.refused else None
    if quarantine and not writer.rows:
        why = ", ".join(f"{reason} {count:,}" for reason, count in writer.reasons.most_common())
        raise EmbedError(f"no file of {source} could be used ({why}); {quarantine} says why of each")
    seconds = time.monotonic() - started
    return EmbedReport(Path(out), writer.rows, writer.dim, loaded.layer, writer.refused, quarantine, seconds)


def _check_place(out: Path, source: str) -> None:
    """Before the work, not after it."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the Parquet file to write, such as {out / 'out.parquet'}")
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise InputError(f"{out} is the source; name another file to write")
    if out.is_file() and not _replaceable(out):
        raise InputError(f"{out} is there and is no Parquet file; delete it, or name another file to write")


def _replaceable(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) in (b"PAR1", b"")


def _corpus(source: str) -> Corpus | None:
    """The corpus that the source names or lies at; None where it is files."""
    here = stat(absolute(source)) if source else None
    if here and here.folder and stat(join(here.uri, "_delta_log")):
        return Corpus.open(here.uri)
    if source not in corpora():
        return None
    if here:
        raise InputError(f"{source} is a corpus and lies here, too; write ./{source}, or {corpus_uri(source)}")
    return Corpus.open(source)


def _from_corpus(corpus: Corpus, loaded: Loaded, batch_size: int) -> Iterator[_Picture]:
    shards = Shards.open(corpus.shards())
    name, _ = input_of(loaded.task)
    uris, hashes = shards.column("uri"), shards.column("hash")
    with Reader(
        shards, media(loaded.task.sample), batch_size=batch_size, seed=0, digest=corpus.digest(), train=False
    ) as reader:
        for batch in reader:
            squares = batch.raw[name].permute(0, 2, 3, 1).numpy()
            for i, square in zip(batch.ids.tolist(), squares):
                yield _Picture(uris[i].as_py(), hashes[i].as_py(), square)


def _from_files(
    cut: Sequence[Part], loaded: Loaded, limits: Limits, column: str | None, threads: int, stack: ExitStack
) -> Iterator[_Picture]:
    """In the order of the listing; `threads` sandboxes decode ahead."""
    side = input_of(loaded.task)[1].shape[-1]
    sample_format = SampleFormat(size=max(side, int(loaded.about.get("size", side))))
    own = threading.local()

    def picture(row: dict[str, Any]) -> _Picture:
        if not hasattr(own, "sandbox"):
            own.sandbox = Sandbox(limits, sample_format)
            stack.callback(own.sandbox.close)
        return _decode(row, own.sandbox, limits, side)

    taking = Taking(labels=None, column=column, limits=limits)
    rows = (row for part in cut for table in list_files(part, taking, _all, _none) for row in table.to_pylist())
    return _ahead(picture, rows, threads)


def _all(listed: Any) -> list[bool]:
    return [True] * len(listed)


def _none(uri: str) -> None:
    """Files that accompany media are nothing to embed."""


def _ahead(
    do: Callable[[dict[str, Any]], _Picture], rows: Iterable[dict[str, Any]], threads: int
) -> Iterator[_Picture]:
    waiting: deque[tuple[Future[_Picture], int]] = deque()
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


def _decode(row: dict[str, Any], sandbox: Sandbox, limits: Limits, side: int) -> _Picture:
    uri, data = row["uri"], row["data"]
    if row["reason"] is not None:
        return _Picture(uri, None, None, str(row["reason"]), row["message"] or "")
    if data is None:
        data = read_source(os.fsdecode(row["locator"]), limits)
    if data is None:
        return _Picture(uri, None, None, "vanished", "The file went away after it was listed.")
    if len(data) > limits.max_bytes:
        return _Picture(uri, None, None, str(Reason.TOO_LARGE), f"More than {limits.max_bytes:,} bytes.")
    digest = hashlib.sha256(data).hexdigest()
    try:
        return _Picture(uri, digest, _square(sandbox.decode(data), side))
    except Rejected as refused:
        return _Picture(uri, digest, None, str(refused.reason), refused.message)


def _square(image: Image, side: int) -> npt.NDArray[np.uint8]:
    """The middle of the picture, as the reader cuts it in evaluation; [side, side, 3]."""
    pixels = np.frombuffer(image.payload, np.uint8).reshape(image.height, image.width, 3)
    top, left = (image.height - side) // 2, (image.width - side) // 2
    return pixels[top : top + side, left : left + side]


def _batched(pictures: Iterator[_Picture], size: int) -> Iterator[list[_Picture]]:
    while batch := list(itertools.islice(pictures, size)):
        yield batch


@torch.no_grad()
def _vectors(loaded: Loaded, batch: list[_Picture], device: str) -> npt.NDArray[np.float32]:
    """[n, d] of those that have pixels; n may be 0."""
    squares = [picture.pixels for picture in batch if picture.pixels is not None]
    name, _ = input_of(loaded.task)
    if not squares:
        return np.empty((0, loaded.layers[loaded.layer]), np.float32)
    image = torch.from_numpy(np.stack(squares)).to(device).permute(0, 3, 1, 2)
    vectors: npt.NDArray[np.float32] = loaded.model.represent({name: image})[loaded.layer].float().cpu().numpy()
    return vectors


class _Output:
    """The two Parquet files, under other names until all is written."""

    def __init__(self, out: Path, dim: int, about: dict[str, str]) -> None:
        self.out, self.dim = out.absolute(), dim
        fields = [("uri", pa.string()), ("hash", pa.string()), ("embedding", pa.list_(pa.float32(), dim))]
        self.schema = pa.schema(fields, metadata={f"pretext.{key}": value for key, value in about.items()})
        self.quarantine = self.out.with_name(f"{self.out.stem}.quarantine.parquet")
        self.rows, self.reasons = 0, Counter[str]()
        self._files: dict[Path, pq.ParquetWriter] = {}

    @property
    def refused(self) -> int:
        """Files that could not be used."""
        return self.reasons.total()

    def write(self, batch: list[_Picture], vectors: npt.NDArray[np.float32]) -> None:
        good = [picture for picture in batch if picture.pixels is not None]
        bad = [picture for picture in batch if picture.pixels is None]
        if good:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), self.dim)
            texts = [pa.array([getattr(p, name) for p in good], pa.string()) for name in ("uri", "hash")]
            self._write(self.out, pa.Table.from_arrays([*texts, flat], schema=self.schema))
        if bad:
            rows = [{"uri": p.uri, "hash": p.hash, "reason": p.reason, "message": p.message} for p in bad]
            self._write(self.quarantine, pa.Table.from_pylist(rows, REFUSED))
        self.rows += len(good)
        self.reasons.update(p.reason for p in bad)

    def _write(self, path: Path, table: pa.Table) -> None:
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = pq.ParquetWriter(_part(path), table.schema)
        self._files[path].write_table(table)

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for writer in self._files.values():
            writer.close()
        if kind is not None:
            for path in self._files:
                _part(path).unlink(missing_ok=True)
            return
        if self.rows and not self.refused:
            self.quarantine.unlink(missing_ok=True)
        for path in sorted(self._files, key=lambda path: path == self.out):  # the output last: it says that all is done
            _publish(_part(path), path)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _publish(part: Path, path: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
