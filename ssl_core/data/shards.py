"""A shard of a corpus: an uncompressed Parquet file laid out so that a sample's bytes can be mapped, not read.

Any Parquet reader opens a shard. Ours does not decode it: within a row group the payload column is one PLAIN page
(`4-byte length, bytes` per row, no levels because the column cannot be null), so the place of every payload
follows from the footer and the lengths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Ints = npt.NDArray[np.int64]

SHARD_BYTES = 256 << 20
"""Payload bytes after which ingest starts the next shard."""
ROW_GROUP_BYTES = 32 << 20
"""Payload bytes per row group: bounds what a foreign reader holds in memory, far below the 2 GiB limit of a page."""
ROW_GROUP_ROWS = 16_384
"""Rows per row group: Arrow starts a second page at 20,000 rows, whatever the page size."""

SCHEMA = pa.schema(
    [
        pa.field("hash", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source_size", pa.int64(), nullable=False),
        pa.field("source_mtime", pa.int64(), nullable=False),
        pa.field("payload", pa.binary(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=True),
        pa.field("batch", pa.int64(), nullable=False),
    ]
)
"""One row is one canonical sample. `hash`: sha256 (hex) of the source bytes, its identity. `source_mtime`: ns, 0 if unknown.
`payload`: for codec "raw" height x width x 3 bytes of RGB, rows first; for "jpeg" a JPEG file. `batch`: the commit it came with."""


def write_shard(path: Path, rows: pa.Table) -> None:
    """Write `rows` (of `SCHEMA`) as one shard: whole under its name, on disk, or not at all.

    Raises ValueError when the rows do not follow `SCHEMA` or a raw payload contradicts its height and width.
    """
    _check_rows(path, rows)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            _write_parquet(file, rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_parquet(file: object, rows: pa.Table) -> None:
    with pq.ParquetWriter(
        file,
        SCHEMA,
        compression="none",
        use_dictionary=False,
        column_encoding="PLAIN",
        data_page_version="1.0",
        data_page_size=1 << 30,  # with the row group bounds: one page per row group
        write_statistics=[name for name in SCHEMA.names if name != "payload"],
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        for start, stop in _row_groups(pc.binary_length(rows["payload"]).to_numpy()):
            writer.write_table(rows.slice(start, stop - start), row_group_size=stop - start)


def _row_groups(lengths: npt.NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows within the limits of a row group; a longer payload stands alone."""
    ends = np.cumsum(lengths, dtype=np.int64)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        full = int(np.searchsorted(ends, before + ROW_GROUP_BYTES, side="right"))
        stop = min(max(full, start + 1), start + ROW_GROUP_ROWS)
        yield start, stop
        start = stop


def _check_rows(path: Path, rows: pa.Table) -> None:
    if not rows.schema.remove_metadata().equals(SCHEMA):
        wrong = [
            f"{f.name}: {f.type}"
            for f in rows.schema
            if f.name not in SCHEMA.names or f != SCHEMA.field(f.name)
        ]
        lack = [name for name in SCHEMA.names if name not in rows.schema.names]
        raise ValueError(
            f"Cannot write shard {path}: its rows do not follow the schema of a shard "
            f"(missing: {lack or 'none'}; different: {wrong or 'the order of columns'}); build them with shards.SCHEMA."
        )
    if not len(rows):
        raise ValueError(f"Cannot write shard {path}: there are no rows to write.")
    empty = [f.name for f in SCHEMA if not f.nullable and rows[f.name].null_count]
    if empty:
        raise ValueError(
            f"Cannot write shard {path}: null in column {empty[0]!r}, which must have a value in every row."
        )
    _check_payloads(path, rows)


def _check_payloads(path: Path, rows: pa.Table) -> None:
    lengths = pc.binary_length(rows["payload"]).to_numpy().astype(np.int64)
    area = rows["height"].to_numpy().astype(np.int64) * rows["width"].to_numpy()
    raw = pc.equal(rows["codec"], "raw").to_numpy()
    known = raw | pc.equal(rows["codec"], "jpeg").to_numpy()
    bad = np.flatnonzero(~known | (raw & (lengths != 3 * area)) | (lengths == 0) | (area <= 0))
    if len(bad):
        row = int(bad[0])
        codec, height, width = (rows[name][row].as_py() for name in ("codec", "height", "width"))
        raise ValueError(
            f"Cannot write shard {path}: row {row} says codec {codec!r}, height {height}, width {width}, but its payload "
            f"has {lengths[row]} bytes; 'raw' needs height x width x 3 bytes of RGB, 'jpeg' a JPEG file."
        )


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
