"""A shard of a corpus: an uncompressed Parquet file laid out so that a sample's bytes can be mapped, not read.

Any Parquet reader opens a shard. Ours does not decode it: within a row group the payload column is one PLAIN page
(`4-byte length, bytes` per row, no levels because the column cannot be null), so the place of every payload
follows from the footer and the lengths.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_core.atomic import replacing
from ssl_core.data.layout import CODECS, Rows, ShardError, read_columns, read_footer, read_rows
from ssl_core.data.mapping import Bytes, map_file, will_need
from ssl_core.errors import InputError

__all__ = ["CODECS", "SCHEMA", "Classes", "Places", "ShardError", "Shards", "class_names", "write_shard"]

Ints = npt.NDArray[np.int64]

RESIDENT_BYTES = 1 << 30
"""After reading so many payload bytes, the maps are dropped and mapped again, so that a larger corpus does not count as
this process's memory; the page cache keeps the bytes."""
READAHEAD_BYTES = 16 << 10
"""Least size of payloads that the kernel is told to read ahead; it reads smaller ones ahead anyway."""
SHARD_BYTES = 256 << 20
"""Payload bytes after which ingest starts the next shard."""
ROW_GROUP_BYTES = 32 << 20
"""Payload bytes per row group: bounds the memory of other Parquet readers, far below the 2 GiB limit of a page."""
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
"""One row is one sample. `hash`: sha256 (hex) of the source bytes, its identity. `source_mtime`: ns, 0 if
unknown. `payload`: for codec "raw" height x width x 3 bytes of RGB, rows first; for "jpeg" a JPEG file. `batch`: the
commit that added it."""


def write_shard(path: Path, rows: pa.Table) -> None:
    """Writes `rows` (of `SCHEMA`) as one shard, atomically and durably.

    Raises ValueError if the rows do not follow `SCHEMA` or a raw payload contradicts its height and width.
    """
    _check_rows(path, rows)
    with replacing(path) as temporary:
        _write_parquet(temporary, rows)


def _write_parquet(path: Path, rows: pa.Table) -> None:
    with pq.ParquetWriter(
        path,
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
    """Consecutive ranges of rows within the limits of a row group; a longer payload gets a row group of its own."""
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
        wrong = [f"{f.name}: {f.type}" for f in rows.schema if f.name not in SCHEMA.names or f != SCHEMA.field(f.name)]
        lack = [name for name in SCHEMA.names if name not in rows.schema.names]
        raise ValueError(
            f"Cannot write shard {path}: its rows do not follow the schema of a shard "
            f"(missing: {lack or 'none'}; different: {wrong or 'the order of columns'}); build them with shards.SCHEMA."
        )
    if not len(rows):
        raise ValueError(f"Cannot write shard {path}: there are no rows; give at least one.")
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
            f"Cannot write shard {path}: row {row} says codec {codec!r}, height {height}, width {width}, "
            f"but its payload has {lengths[row]} bytes; 'raw' needs height x width x 3, 'jpeg' a JPEG file."
        )


@dataclass(frozen=True)
class Places:
    """Where samples are stored: [n] each.

    Attributes:
        shard: index into `Shards.paths`.
        offset: first byte of the payload in the file of its shard.
        length: bytes of the payload.
        height: in pixels.
        width: in pixels.
        codec: index into `CODECS`.
    """

    shard: Ints
    offset: Ints
    length: Ints
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    codec: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Classes:
    """The labels of a corpus version as numbers.

    Attributes:
        names: the distinct labels, in order of their numbers.
        numbers: [n] each sample's class, -1 where it has no label.
    """

    names: tuple[str, ...]
    numbers: Ints


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in the order of their numbers: digits by value, then the others alphabetically."""
    return tuple(sorted(set(labels), key=lambda name: (len(name), name) if name.isdigit() else (1 << 30, name)))


class Shards:
    """The samples of a corpus version as one sequence: shards in the order of their names, then rows.

    Opening reads each shard's footer; a shard is mapped, and its sizes read, when one of its samples is first used.
    May be used from several threads. Every method raises ShardError for a shard that cannot be used.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]) -> None:
        self.paths = tuple(paths)
        self.starts: Ints = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        n = int(self.starts[-1])
        self._rows = Rows.empty(n)
        self._placed = np.zeros(len(self.paths), dtype=bool)
        self._maps: list[Bytes | None] = [None] * len(self.paths)
        self._mapped = self._touched = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Shards:
        """The shards at `paths`, sorted by file name. Raises InputError for none, ValueError if two share a name."""
        ordered = sorted((Path(path) for path in paths), key=lambda path: path.name)
        if not ordered:
            raise InputError("There are no shards to read; ingest something into the corpus first.")
        for one, other in pairwise(ordered):
            if one.name == other.name:
                raise ValueError(
                    f"Two shards share a name, so their order is not defined: {one} and {other}; rename one."
                )
        return cls(ordered, [read_footer(path).num_rows for path in ordered])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, i: int) -> tuple[Path, int]:
        """The shard of sample `i` and its row there."""
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        if not 0 <= i < len(self):
            raise IndexError(f"Sample {i} of {len(self)} does not exist.")
        return self.paths[shard], i - int(self.starts[shard])

    def payload(self, i: int) -> Bytes:
        """The bytes of sample `i`, [length], read-only and not copied."""
        self.locate(i)
        place = self.places(np.array([i]))
        start = int(place.offset[0])
        return self.mapped(int(place.shard[0]))[start : start + int(place.length[0])]

    def places(self, ids: Ints) -> Places:
        """Where the samples `ids` are stored; every id must be in [0, len)."""
        shard = np.searchsorted(self.starts, ids, side="right") - 1
        if not self._placed[shard].all():
            for one in np.unique(shard):
                self._place(int(one))
        rows = self._rows
        return Places(shard, rows.offset[ids], rows.length[ids], rows.height[ids], rows.width[ids], rows.codec[ids])

    def mapped(self, shard: int) -> Bytes:
        """The whole file of a shard, memory-mapped."""
        found = self._maps[shard]
        if found is not None:
            return found
        with self._lock:
            return self._map(shard)

    def will_need(self, places: Places) -> None:
        """Starts reading these samples from disk, and keeps the resident maps within `RESIDENT_BYTES`."""
        self._account(int(places.length.sum()))
        large = places.length >= READAHEAD_BYTES
        for shard in np.unique(places.shard[large]):
            mine = large & (places.shard == shard)
            will_need(self.mapped(int(shard)), places.offset[mine], places.length[mine])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of `SCHEMA` for all samples, in their order. Reads it from every shard."""
        chunks = [read_columns(path, [name])[name] for path in self.paths]
        return pa.chunked_array([part for chunk in chunks for part in chunk.chunks], type=SCHEMA.field(name).type)

    @property
    def height(self) -> npt.NDArray[np.int32]:
        """[n] in pixels."""
        return self._all().height

    @property
    def width(self) -> npt.NDArray[np.int32]:
        """[n] in pixels."""
        return self._all().width

    @property
    def codec(self) -> npt.NDArray[np.str_]:
        """[n] of "raw" or "jpeg"."""
        return np.array(CODECS)[self._all().codec]

    @property
    def hashes(self) -> npt.NDArray[np.object_]:
        """[n] sha256 (hex) of the sources."""
        return np.array(self.column("hash").to_pylist(), dtype=object)

    @property
    def labels(self) -> npt.NDArray[np.object_]:
        """[n] texts, None where a sample has no label."""
        return np.array(self.column("label").to_pylist(), dtype=object)

    @cached_property
    def classes(self) -> Classes:
        """The labels as numbers; computed once."""
        encoded = self.column("label").combine_chunks().dictionary_encode()
        found = encoded.dictionary.to_pylist()
        names = class_names(found)
        place = {name: number for number, name in enumerate(names)}
        order = np.array([place[name] for name in found] + [-1], dtype=np.int64)
        return Classes(names, order[encoded.indices.fill_null(len(found)).to_numpy()])

    def _all(self) -> Rows:
        for shard in range(len(self.paths)):
            self._place(shard)
        return self._rows

    def _place(self, shard: int) -> None:
        with self._lock:
            if self._placed[shard]:
                return
            found = read_rows(self.paths[shard], self._map(shard), SCHEMA)
            rows = slice(int(self.starts[shard]), int(self.starts[shard + 1]))
            if len(found.offset) != rows.stop - rows.start:
                raise ShardError(
                    f"Shard {self.paths[shard]} was replaced while it was in use; shards must not change: start again."
                )
            for name in Rows.__dataclass_fields__:
                getattr(self._rows, name)[rows] = getattr(found, name)
            self._placed[shard] = True

    def _map(self, shard: int) -> Bytes:
        found = self._maps[shard]
        if found is None:
            try:
                found = map_file(self.paths[shard])
            except OSError as error:
                raise ShardError(f"Shard {self.paths[shard]} cannot be mapped: {error.strerror}.") from None
            self._maps[shard] = found
            self._mapped += len(found)
        return found

    def _account(self, size: int) -> None:
        """Drops the maps when they may hold too much; existing views keep theirs."""
        with self._lock:
            self._touched += size
            if min(self._touched, self._mapped) > RESIDENT_BYTES:
                self._maps = [None] * len(self.paths)
                self._mapped = self._touched = 0
