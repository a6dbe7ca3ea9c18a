"""Commits written files to the corpus: exactly once, even while another ingest commits the same contents."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.corpus import delta
from components.corpus.corpus import FORMAT, QUARANTINE
from components.corpus.delta import DataFile
from components.ingest.stages import IngestJob, write_quarantine, write_rows
from components.storage.files import StorageError, join, open_file, remove, storage_errors
from components.storage.lease import Lease, is_held
from ssl_core.data.shards import SCHEMA

CONTENTS = ("uri", "source_size", "source_mtime", "hash")
FILES = ("uri", "size", "mtime")

Strip = Callable[[DataFile], DataFile | None]
"""A written file without the rows that others have committed; None if none are left."""


class Appender:
    """Appends one ingest's files to one table, and loads into the index what others append meanwhile."""

    def __init__(self, root: str, schema: pa.Schema, columns: tuple[str, ...], job: IngestJob, lease: Lease) -> None:
        self.root, self.rows = root, 0
        self._schema, self._columns, self._job, self._lease = schema, columns, job, lease
        self._accounted: set[str] = set()
        self._others = False

    def load_known(self) -> None:
        """Load into the index what the table holds and the index lacks."""
        table = delta.open_table(self.root)
        if table is not None:
            self._load_new(table)
        self._others = False  # files that were there before are dropped before they are read

    def append(self, files: list[DataFile], strip: Strip, info: Mapping[str, Any]) -> None:
        """Commit `files`, without rows that others have committed; committing them again changes nothing.

        Raises:
            StorageError: the table cannot be written, or another ingest took this one for dead.
        """
        table = delta.open_table(self.root) or delta.create_table(self.root, self._schema, {"pretext": FORMAT})
        while True:
            done = self._load_new(table)
            files = [file for file in files if file.path not in done]
            if self._others:
                files = [left for file in files if (left := strip(file)) is not None]
            if not files:
                return
            if not is_held(self._lease.record):
                raise StorageError(
                    f"{self.root}: another ingest took this one for dead (asleep for ten minutes?); start it again."
                )
            rows = sum(file.rows for file in files)
            try:
                delta.append(table, files, {**info, "pretext.rows": rows})
                self.rows += rows
                return
            except delta.OvertakenError:
                table.update_incremental()

    def _load_new(self, table: Any) -> set[str]:
        """Paths of this ingest's own files in the log; those of others are loaded into the index."""
        files = delta.data_files(table)
        own = {file.path for file in files if file.path.startswith(f"{self._job.folder}/")}
        for file in files:
            if file.path not in own and file.path not in self._accounted:
                self._job.call_index("load_file", join(self.root, file.path), self._columns)
                self._accounted.add(file.path)
                self._others = True
        return own


class Committer:
    """Collects what the tasks wrote and commits it every few seconds; a stopped ingest keeps what it has committed."""

    def __init__(self, job: IngestJob, lease: Lease, info: Mapping[str, Any], seconds: float) -> None:
        self.shards = Appender(job.corpus, SCHEMA, CONTENTS, job, lease)
        self.refused = Appender(job.quarantine, QUARANTINE, FILES, job, lease)
        self._job, self._info, self._seconds = job, info, seconds
        self._waiting: dict[str, list[DataFile]] = {"shard": [], "quarantine": []}
        self._last = time.monotonic()

    @property
    def added(self) -> int:
        """Samples committed."""
        return self.shards.rows

    @property
    def quarantined(self) -> int:
        """Files committed to quarantine."""
        return self.refused.rows

    def load_known(self, quarantine: bool) -> None:
        """Load the known files into the index; files in quarantine are read again unless `quarantine` is set."""
        self.shards.load_known()
        if quarantine:
            self.refused.load_known()

    def add(self, written: Mapping[str, Any]) -> None:
        """Add a row of `WRITTEN`, and commit if the last commit is long enough ago."""
        file = DataFile(written["path"], written["rows"], written["size"])
        self._waiting[written["kind"]].append(file)
        if time.monotonic() - self._last >= self._seconds:
            self.commit()

    def commit(self) -> None:
        """Commit all that waits: samples first, because a quarantined container is not read again for lost samples."""
        shards, refused = self._waiting["shard"], self._waiting["quarantine"]
        if shards:
            self.shards.append(shards, self._without_duplicates, self._info)
        if refused:
            self.refused.append(refused, self._without_known, self._info)
        self._waiting = {"shard": [], "quarantine": []}
        self._last = time.monotonic()

    def _without_duplicates(self, file: DataFile) -> DataFile | None:
        rows = _table(join(self._job.corpus, file.path), ["hash"])
        held = self._job.call_index("holds", rows["hash"].to_pylist())
        if not any(held):
            return file
        left = _table(join(self._job.corpus, file.path)).filter(pc.invert(pa.array(held)))
        kept = write_rows(left.cast(SCHEMA), self._job) if len(left) else None
        remove(join(self._job.corpus, file.path))
        return kept

    def _without_known(self, file: DataFile) -> DataFile | None:
        rows = _table(join(self._job.quarantine, file.path))
        uris, sizes, mtimes = (rows[name].to_pylist() for name in FILES)
        known = self._job.call_index("known", [(u, 0, s, m) for u, s, m in zip(uris, sizes, mtimes)])
        if not any(known):
            return file
        left = rows.filter(pc.invert(pa.array(known)))
        kept = write_quarantine(left.cast(QUARANTINE), self._job) if len(left) else None
        remove(join(self._job.quarantine, file.path))
        return kept


def _table(uri: str, columns: list[str] | None = None) -> pa.Table:
    with storage_errors(uri), open_file(uri) as file:
        return pq.read_table(file, columns=columns)
