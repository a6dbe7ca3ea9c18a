"""Where the payloads of a shard are in its file, computed from the footer and the lengths before the payloads.

The page header is Thrift's compact protocol and begins with three varints: kind, uncompressed and stored size of the
page (apache/parquet-format, `PageHeader`); the bytes after it are the page.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_core.data.mapping import Bytes
from ssl_core.errors import PretextError

CODECS = ("raw", "jpeg")
_MAX_HEADER = 512
_LENGTH = struct.Struct("<I")


class ShardError(PretextError, ValueError):
    """A shard that cannot be used as it is; the message names it and says how to mend it."""


@dataclass(frozen=True)
class Rows:
    """The rows of one shard: [n] each.

    Attributes:
        offset: byte in the file at which the payload starts.
        length: of the payload, in bytes.
        height: in pixels.
        width: in pixels.
        codec: index into `CODECS`.
    """

    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    codec: npt.NDArray[np.int8]

    @classmethod
    def empty(cls, n: int) -> Rows:
        """Room for n rows."""
        long, short = np.int64, np.int32
        return cls(np.empty(n, long), np.empty(n, long), np.empty(n, short), np.empty(n, short), np.empty(n, np.int8))


def read_footer(path: Path) -> Any:
    """The Parquet footer. Raises ShardError if the file is missing, truncated or not Parquet."""
    try:
        return pq.read_metadata(path)
    except FileNotFoundError:
        raise ShardError(f"Shard {path} is missing; fetch the corpus version again.") from None
    except pa.ArrowInvalid as error:
        raise ShardError(
            f"Shard {path} is cut short or not Parquet ({str(error).splitlines()[0]}); "
            "delete this copy and fetch or ingest it again."
        ) from None


def read_columns(path: Path, names: Sequence[str], footer: Any = None) -> pa.Table:
    """Columns of a shard, decoded. Raises ShardError like `read_footer`, and if the file is damaged."""
    footer = footer or read_footer(path)
    try:
        return pq.ParquetFile(path, metadata=footer).read(columns=list(names))
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"Shard {path} is damaged ({error}); delete this copy and fetch or ingest it again.") from None


def read_rows(path: Path, mapped: Bytes, schema: pa.Schema) -> Rows:
    """Locates every payload of a shard. Reads no payload of raw rows, and of others the 4 bytes before each."""
    footer = read_footer(path)
    found = footer.schema.to_arrow_schema().remove_metadata()
    if not found.equals(schema):
        raise _foreign(path, "its columns are not those of a shard")
    table = read_columns(path, ["codec", "height", "width"], footer)
    height = table["height"].to_numpy().astype(np.int32)
    width = table["width"].to_numpy().astype(np.int32)
    codec = pc.index_in(table["codec"].combine_chunks(), pa.array(CODECS)).fill_null(-1).to_numpy().astype(np.int8)
    if (codec < 0).any():
        raise _foreign(path, f"it has payloads other than {' and '.join(CODECS)}")
    lengths = np.where(codec == 0, height.astype(np.int64) * width * 3, -1)
    offset = np.empty(len(lengths), dtype=np.int64)
    column, first = schema.get_field_index("payload"), 0
    for group in range(footer.num_row_groups):
        meta = footer.row_group(group)
        rows = slice(first, first + meta.num_rows)
        start, stop = _page(path, mapped, meta.column(column), meta.num_rows)
        offset[rows], lengths[rows] = _place(path, mapped, start, stop, lengths[rows])
        first += meta.num_rows
    return Rows(offset, lengths, height, width, codec)


def _page(path: Path, mapped: Bytes, chunk: Any, rows: int) -> tuple[int, int]:
    """Start and end of the only page of a column chunk."""
    plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
    if not plain or "PLAIN" not in chunk.encodings or chunk.num_values != rows:
        raise _foreign(path, f"its payloads are compressed or encoded ({chunk.compression}, {chunk.encodings})")
    begin, stop = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    if stop > len(mapped):
        raise ShardError(
            f"Shard {path} is cut short: its payloads should end at byte {stop:,} of {len(mapped):,}; "
            "fetch or ingest it again."
        )
    kind, _, size = _varints(bytes(mapped[begin : begin + 24]))
    if kind != 0 or not 0 < stop - begin - size <= _MAX_HEADER:
        raise _foreign(path, "a row group holds its payloads in several pages")
    return stop - size, stop


def _varints(data: bytes) -> list[int]:
    """The first three fields of a page header, each a byte that names the field and a zigzag varint."""
    values, position = [], 0
    for _ in range(3):
        position += 1
        value = shift = 0
        while position < len(data):
            byte = data[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                break
        values.append(value >> 1 ^ -(value & 1))
    return values


def _place(
    path: Path, mapped: Bytes, start: int, stop: int, lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offset and length of each payload of a page; negative lengths are unknown and are read."""
    if (lengths < 0).any():
        lengths = _walk(path, mapped, start, stop, len(lengths))
    ends = start + np.cumsum(lengths + _LENGTH.size)
    offsets = ends - lengths
    known = _LENGTH.unpack_from(mapped.data, int(offsets[-1]) - _LENGTH.size)[0] if ends[-1] == stop else -1
    if known != lengths[-1]:
        raise ShardError(
            f"Shard {path} is inconsistent: its heights and widths do not match its payloads; ingest again."
        )
    return offsets, lengths


def _walk(path: Path, mapped: Bytes, start: int, stop: int, rows: int) -> npt.NDArray[np.int64]:
    """The lengths before the payloads, each of which gives the place of the next one."""
    lengths, at, data = [], start, mapped.data
    for _ in range(rows):
        if at + _LENGTH.size > stop:
            raise ShardError(f"Shard {path} is damaged: a payload is longer than its page; fetch or ingest it again.")
        length = _LENGTH.unpack_from(data, at)[0]
        lengths.append(length)
        at += length + _LENGTH.size
    return np.array(lengths, dtype=np.int64)


def _foreign(path: Path, why: str) -> ShardError:
    return ShardError(
        f"Shard {path} was not written by pretext or was rewritten by another tool (Delta's optimize, say): {why}; "
        "restore the table to a version before that, or ingest again into a new corpus."
    )
