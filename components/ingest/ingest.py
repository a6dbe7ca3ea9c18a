"""Media in, a new version of a corpus out: list -> drop what is known -> decode -> write shards -> commit, on Ray Data.

It streams: memory is bounded by blocks and shards, not by the corpus. Order is kept, so the same sources make the same
shards (unless they contain copies, of which either may be used). Nothing counts until a commit names it, and a commit
can be repeated without harm; so an ingest may be killed at any moment, and the next one ingests what was not committed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from components.cluster.connect import connect
from components.corpus.corpus import Corpus
from components.ingest.commits import Committer
from components.ingest.dedup import DedupIndex
from components.ingest.precheck import nothing_new
from components.ingest.sources import Part, SourceOptions, parts
from components.ingest.stages import IngestJob, decode_files, list_parts, write_files
from components.ingest.vacuum import folder_of, ingest_lease, vacuum
from ssl_core.data.decode import SampleFormat
from ssl_core.data.shards import SHARD_BYTES
from ssl_core.errors import PretextError

FILES_PER_TASK = 64
"""Files that one decoding task gets: some tenths of a second of work."""
LISTING_TASKS = 128
ROWS_PER_SHARD = 32_768
"""Most rows of a shard of small pictures: a killed ingest loses the work on at most this many for each writer."""
STORE_BYTES = 6 * SHARD_BYTES
"""What Ray Data may hold in the object store: the shards being filled and the blocks on their way to them."""
COMMIT_SECONDS = 20.0
PROGRESS_SECONDS = 0.5
SOURCES_NAMED = 20
"""Sources that each commit names: a shell writes out what its wildcards match, and every commit would repeat it."""


@dataclass(frozen=True)
class Progress:
    """Where an ingest stands, for display.

    Attributes:
        seen: files listed so far, known ones included.
        added: files decoded.
        quarantined: files refused.
        seconds: since the start.
    """

    seen: int
    added: int
    quarantined: int
    seconds: float

    @property
    def rate(self) -> float:
        """Files decoded or refused per second since the start."""
        return (self.added + self.quarantined) / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        version: of the corpus, afterwards.
        seen: files in the sources, without the skipped ones.
        added: samples added.
        known: files whose content the corpus, or another file of these sources, already had.
        quarantined: files newly refused.
        skipped: files not read because their name shows that they only accompany media.
        vanished: files that disappeared between listing and reading.
        seconds: duration.
    """

    version: int
    seen: int
    added: int
    known: int
    quarantined: int
    skipped: int
    vanished: int
    seconds: float


def ingest(
    sources: Sequence[str],
    corpus: str,
    *,
    sample_format: SampleFormat,
    options: SourceOptions | None = None,
    retry_quarantined: bool = False,
    progress: Callable[[Progress], None] | None = None,
    rows_per_shard: int | None = None,
    commit_seconds: float = COMMIT_SECONDS,
) -> IngestReport:
    """Ingest every new file of `sources` into `corpus`, which is made if missing.

    Args:
        sources: folders, files, globs, tars, Parquet files, as paths or URIs.
        corpus: name, path or URI.
        sample_format: of the samples; an existing corpus must have the same.
        options: how files are taken from the sources: labels, the column of Parquet files, limits for each file.
        retry_quarantined: read unchanged files in quarantine again.
        progress: called about twice a second, from another thread.
        rows_per_shard: for tests; by default it follows from the size of a shard in bytes.
        commit_seconds: time between commits.

    Raises:
        StorageError: a source or the corpus cannot be read or written; what was committed stays.
        CorpusError: the corpus has another sample format.
        ColumnError: a Parquet source has no such column.
    """
    began = time.monotonic()
    cut = parts(sources)
    store = Corpus.create(corpus, sample_format)
    options = options or SourceOptions()
    with ingest_lease(store.uri) as lease:
        vacuum(lease, [store.uri, store.quarantine_uri])
        if not retry_quarantined and (counts := nothing_new(cut, store, options)) is not None:
            return _report(store.uri, counts, 0, 0, began)
        with connect(), _index() as index:
            batch = Corpus.open(store.uri).version + 1
            job = IngestJob(
                store.uri, store.quarantine_uri, folder_of(lease), batch, store.sample_format, options, index
            )
            info = {"pretext.ingest": lease.id, "pretext.sources": _shown_sources(sources)}
            committer = Committer(job, lease, info, commit_seconds)
            with _unwrapped_errors(job), _reporting_progress(job, progress, began):
                committer.load_known(quarantine=not retry_quarantined)
                for row in _pipeline(cut, job, rows_per_shard or _rows_per_shard(sample_format)):
                    committer.add(row)
                committer.commit()
            return _report(store.uri, job.call_index("counts"), committer.added, committer.quarantined, began)


def _shown_sources(sources: Sequence[str]) -> list[str]:
    more = len(sources) - SOURCES_NAMED
    return [*sources[:SOURCES_NAMED], *([f"… and {more:,} more"] if more > 0 else [])]


def _report(uri: str, counts: Mapping[str, int], added: int, refused: int, began: float) -> IngestReport:
    seen, vanished, skipped = (counts.get(name, 0) for name in ("seen", "vanished", "skipped"))
    known = seen - added - refused - vanished
    version, seconds = Corpus.open(uri).version, time.monotonic() - began
    return IngestReport(version, seen, added, known, refused, skipped, vanished, seconds)


def _rows_per_shard(sample_format: SampleFormat) -> int:
    """How many pictures of the usual aspect ratio (4:3) fill a shard."""
    picture = sample_format.size * sample_format.size * 3 * 4 // 3
    stored = picture if sample_format.payload == "raw" else max(1, picture // 8)
    return max(1, min(ROWS_PER_SHARD, SHARD_BYTES // stored))


@contextmanager
def _index() -> Iterator[Any]:
    """The actor with the index of what is known; it reserves no CPU, so that decoding has all of them."""
    import ray

    actor: Any = ray.remote(num_cpus=0)(DedupIndex)
    index = actor.remote()
    try:
        yield index
    finally:
        ray.get(index.close.remote())
        ray.kill(index)


def _pipeline(cut: Sequence[Part], job: IngestJob, rows_per_shard: int) -> Iterator[Mapping[str, Any]]:
    """Rows of `WRITTEN`, as the files are written."""
    import ray

    table = pa.table({"number": range(len(cut)), "part": [json.dumps(asdict(part)) for part in cut]})
    tasks = max(1, min(len(cut), LISTING_TASKS))
    plain: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
    with _quiet_streaming():
        # Shares of a CPU keep the three stages running side by side on two of them, and Ray from fusing them to one.
        source: Any = ray.data.from_arrow(table)
        dataset = (
            source.repartition(tasks)
            .map_batches(list_parts, fn_args=(job,), num_cpus=0.25, **plain)
            .repartition(target_num_rows_per_block=FILES_PER_TASK)
            .map_batches(decode_files, fn_args=(job,), num_cpus=0.75, **plain)
            .repartition(target_num_rows_per_block=rows_per_shard, strict=True)
            .map_batches(write_files, fn_args=(job,), num_cpus=0.25, **plain)
        )
        yield from dataset.iter_rows()


@contextmanager
def _quiet_streaming() -> Iterator[None]:
    """Ray Data's settings for one ingest; the caller's own are restored afterwards."""
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current()
    options = context.execution_options
    ours = [
        (context, "enable_progress_bars", False),
        (context, "print_on_execution_start", False),
        (options, "preserve_order", True),
        (options, "resource_limits", ExecutionResources(object_store_memory=STORE_BYTES)),
    ]
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in ours]
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # errors reach the user as one sentence
    try:
        for holder, name, value in ours:
            setattr(holder, name, value)
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
        logger.setLevel(level)


@contextmanager
def _unwrapped_errors(job: IngestJob) -> Iterator[None]:
    """Raise the error that a worker recorded in the index, without Ray's wrapping."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError:
        failure: PretextError | None = job.call_index("failure")
        if failure is None:
            raise
        raise failure from None


@contextmanager
def _reporting_progress(job: IngestJob, progress: Callable[[Progress], None] | None, began: float) -> Iterator[None]:
    """Call `progress` while the block runs, and once at its end."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def report() -> None:
        counts = job.call_index("counts")
        seen, added, refused = (counts.get(name, 0) for name in ("seen", "added", "quarantined"))
        progress(Progress(seen, added, refused, time.monotonic() - began))

    def tick() -> None:
        while not done.wait(PROGRESS_SECONDS):
            report()

    thread = threading.Thread(target=tick, name="ingest progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    report()
