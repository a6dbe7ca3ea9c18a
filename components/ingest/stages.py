"""What the tasks of an ingest do, stage by stage: list, decode, write. Ray may repeat each, with the same result."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.corpus.corpus import QUARANTINE
from components.corpus.delta import DataFile
from components.decoding.sandbox import Sandbox
from components.ingest.dedup import Listed
from components.ingest.listing import list_files
from components.ingest.sources import Part, SourceOptions, stretches
from components.storage.files import StorageError, is_remote, join, open_file, replacing, stat, storage_errors
from ssl_core.data.decode import Limits, Rejected, SampleFormat
from ssl_core.data.shards import SCHEMA, SHARD_BYTES, write_shard
from ssl_core.errors import PretextError, user_message

DECODED = pa.schema(
    [
        *(field.with_nullable(True) for field in SCHEMA),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)
"""Rows of `SCHEMA`, or, where `reason` is set, files that could not be used."""

WRITTEN = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("path", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("size", pa.int64()),
    ]
)
"""One row is one file that waits for its commit; `kind` is "shard" or "quarantine"."""

FILES_AT_ONCE = 16
BYTES_AT_ONCE = 32 << 20

Row = dict[str, Any]


@dataclass(frozen=True)
class IngestJob:
    """What every task of one ingest is given.

    Attributes:
        corpus: URI of the corpus.
        quarantine: URI of its quarantine table.
        folder: of this ingest, in both.
        batch: ordinal of the ingest: the first version that may hold its rows.
        sample_format: of the samples.
        options: how files are taken from the sources.
        index: handle of the index's actor.
    """

    corpus: str
    quarantine: str
    folder: str
    batch: int
    sample_format: SampleFormat
    options: SourceOptions
    index: Any

    def call_index(self, method: str, *values: Any) -> Any:
        """What a method of the index returns."""
        import ray

        return ray.get(getattr(self.index, method).remote(*values))

    def count(self, **counts: int) -> None:
        """Count for the display of progress; repeated tasks count twice."""
        self.index.tally.remote(**counts)

    def count_once(self, kind: str, uri: str) -> None:
        """Count a file for the report, once."""
        self.index.count_once.remote(kind, uri)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Record in the index an error that the user can mend; Ray would give the driver a stack trace instead."""
        try:
            yield
        except Exception as error:
            if sentence := user_message(error):
                self.call_index("fail", error if isinstance(error, PretextError) else PretextError(sentence))
            raise


def list_parts(batch: pa.Table, job: IngestJob) -> Iterator[pa.Table]:
    """Parts (column `number`, and `part` as JSON) -> rows of `FOUND`."""
    with job.reporting():
        skipped = functools.partial(job.count_once, "skipped")
        for number, part in zip(batch["number"].to_pylist(), batch["part"].to_pylist()):
            fresh: Callable[[Sequence[Listed]], Sequence[bool]] = functools.partial(job.call_index, "fresh", number)
            yield from list_files(Part(**json.loads(part)), job.options, fresh, skipped)


def decode_files(batch: pa.Table, job: IngestJob) -> Iterator[pa.Table]:
    """Rows of `FOUND` -> rows of `DECODED`, without contents that need no decoding (`DedupIndex.settled`)."""
    with job.reporting():
        for stretch in stretches(_opened(batch, job), lambda file: len(file.data or b""), FILES_AT_ONCE, BYTES_AT_ONCE):
            rows = _canonical(stretch, job)
            bad = sum(row["reason"] is not None for row in rows)
            job.count(added=len(rows) - bad, quarantined=bad)
            yield pa.Table.from_pylist(rows, schema=DECODED)


class _File(NamedTuple):
    """A file that was read; `data` is None where it was refused unread."""

    row: Row
    data: bytes | None
    hash: str | None


def _opened(batch: pa.Table, job: IngestJob) -> Iterator[_File]:
    for i in range(len(batch)):
        row = batch.slice(i, 1).to_pylist()[0]
        data = row.pop("data")
        if row["reason"] is None and data is None:
            data = read_source(os.fsdecode(row["locator"]), job.options.limits)
            if data is None:
                job.count_once("vanished", row["uri"])
                continue
            row["size"] = len(data)
        whole = data is not None and len(data) <= job.options.limits.max_bytes
        yield _File(row, data, hashlib.sha256(data).hexdigest() if whole else None)


def read_source(uri: str, limits: Limits) -> bytes | None:
    """The file up to one byte above the limit; None where it has disappeared since it was listed, but not its folder.

    A file that is moved during an ingest is not lost: the next ingest finds it at its new place. If its folder is gone
    too, the storage may be, so that is an error.
    """
    with storage_errors(uri):
        try:
            with open_file(uri) as file:
                return file.read(limits.max_bytes + 1)
        except FileNotFoundError:
            scheme, _, rest = uri.partition("://")
            holder = f"{scheme}://{rest.split('/')[0]}" if is_remote(uri) else os.path.dirname(uri)
            if stat(holder) is None:
                raise StorageError(f"{holder}: gone while it was read; ingest again once it is back") from None
            return None


def _canonical(stretch: Sequence[_File], job: IngestJob) -> list[Row]:
    """A file stands for its content only after it was decoded, so two equal bad files are both put into quarantine."""
    hashed = [(f.hash, f.row["uri"], f.row["place"]) for f in stretch if f.hash]
    settled = {claim for claim, done in zip(hashed, job.call_index("settled", hashed)) if done}
    rows = [_decode(f, job) for f in stretch if (f.hash, f.row["uri"], f.row["place"]) not in settled]
    claims = [(row["hash"], row["uri"], row.pop("place")) for row in rows]
    good = [claim for claim, row in zip(claims, rows) if row["reason"] is None]
    won = {claim for claim, first in zip(good, job.call_index("claim", good)) if first}
    return [row for claim, row in zip(claims, rows) if row["reason"] is not None or claim in won]


def _decode(file: _File, job: IngestJob) -> Row:
    found = file.row
    row = {"hash": file.hash, "uri": found["uri"], "place": found["place"], "label": found["label"]}
    row |= {"source_size": found["size"], "source_mtime": found["mtime"], "batch": job.batch}
    if file.data is None:
        return row | {"reason": found["reason"], "message": found["message"]}
    try:
        image = _sandbox(job.options.limits, job.sample_format).decode(file.data)
    except Rejected as refused:
        return row | {"reason": str(refused.reason), "message": refused.message}
    return row | asdict(image) | {"reason": None, "message": None}


@functools.lru_cache(maxsize=1)
def _sandbox(limits: Limits, sample_format: SampleFormat) -> Sandbox:
    """One for each worker process, kept between tasks; its child ends with that process."""
    return Sandbox(limits, sample_format)


def write_files(batch: pa.Table, job: IngestJob) -> pa.Table:
    """Rows of `DECODED` -> the files they were written to (`WRITTEN`)."""
    refused = pc.is_valid(batch["reason"])
    good = batch.filter(pc.invert(refused)).select(SCHEMA.names).cast(SCHEMA)
    with job.reporting():
        files = [("shard", write_rows(rows, job)) for rows in _shard_sized(good)]
        bad = batch.filter(refused)
        if len(bad):
            files.append(("quarantine", write_quarantine(verdicts(bad), job)))
    return pa.Table.from_pylist([{"kind": kind} | asdict(file) for kind, file in files], schema=WRITTEN)


def _shard_sized(rows: pa.Table) -> Iterator[pa.Table]:
    """Split where the payloads exceed a shard: long pictures are larger than the estimate that sized the batch."""
    ends = np.cumsum(pc.binary_length(rows["payload"]).to_numpy().astype(np.int64))
    shards = (ends - 1) // (SHARD_BYTES * 3 // 2)
    cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
    yield from (rows.slice(start, stop - start) for start, stop in pairwise(cuts) if stop > start)


def write_rows(rows: pa.Table, job: IngestJob) -> DataFile:
    """Write one shard, named by its content, into this ingest's folder."""
    content = hashlib.sha256(json.dumps(asdict(job.sample_format), sort_keys=True).encode())
    for digest, label in zip(rows["hash"].to_pylist(), rows["label"].to_pylist()):
        content.update(f"{digest} {label!r}\n".encode())
    path = f"{job.folder}/part-{content.hexdigest()[:32]}.parquet"
    with replacing(join(job.corpus, path)) as local:
        write_shard(local, rows)
        return DataFile(path, len(rows), local.stat().st_size)


def verdicts(bad: pa.Table) -> pa.Table:
    """Rows of `DECODED` that were refused, as rows of `QUARANTINE`."""
    names = {"size": "source_size", "mtime": "source_mtime"}
    return pa.table({field.name: bad[names.get(field.name, field.name)] for field in QUARANTINE}).cast(QUARANTINE)


def write_quarantine(rows: pa.Table, job: IngestJob) -> DataFile:
    """Write rows of `QUARANTINE` into this ingest's folder of the quarantine table."""
    files = zip(rows["uri"].to_pylist(), rows["size"].to_pylist(), rows["mtime"].to_pylist())
    content = hashlib.sha256(repr(sorted(files)).encode()).hexdigest()
    path = f"{job.folder}/part-{content[:32]}.parquet"
    with replacing(join(job.quarantine, path)) as local:
        pq.write_table(rows, local)
        return DataFile(path, len(rows), local.stat().st_size)
