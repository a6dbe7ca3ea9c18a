"""Tars and columns of Parquet files as sources, read in one pass and never unpacked to disk. They may be hostile, too.

A damaged container is put into quarantine as one file; what was read from it before the damage is kept.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from components.ingest.dedup import Listed
from components.ingest.sources import (
    BYTES_AT_ONCE,
    FILES_AT_ONCE,
    FOUND,
    Fresh,
    Part,
    Skipped,
    SourceOptions,
    hidden,
    label_of,
    refusal,
    sidecar,
    stretches,
)
from components.storage.files import StorageError, open_file, storage_errors, text
from ssl_core.data.decode import Reason
from ssl_core.errors import InputError

HEADER_BYTES = 1 << 20
"""Longest extended header of a tar member: names and times need a few hundred bytes."""
EXPANSION = 100
"""A compressed tar may unpack to this many times its size: media hardly compress."""
EXPANSION_FREE = 1 << 30
"""Bytes to which any compressed tar may unpack."""

Row = dict[str, Any]
T = TypeVar("T")


class ColumnError(InputError):
    """A Parquet file has no such column of bytes."""


class NoPicturesError(ColumnError):
    """A Parquet file has no column of bytes at all."""


class _Hostile(Exception):
    """The rest of the container must not be read."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Member(tarfile.TarInfo):
    """A tar header that refuses to hold gigabytes of names."""

    _EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in self._EXTENDED and self.size > HEADER_BYTES:
            raise _Hostile(Reason.CORRUPT, f"The tar has a header of {self.size:,} bytes.")
        return super()._proc_member(archive)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        """tarfile treats a broken header after the first as the end of the tar; here it counts as damage."""
        try:
            return super().fromtarfile(archive)
        except tarfile.TruncatedHeaderError as error:  # type: ignore[attr-defined]
            raise _Hostile(Reason.TRUNCATED, "The tar ends within a header.") from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise _Hostile(Reason.CORRUPT, f"The tar has a broken header ({error}).") from error


class _Named:
    """A file whose own failures are storage errors, so that every other error while reading it means damage."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self._uri, self._file = uri, file
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        with storage_errors(self._uri):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with storage_errors(self._uri):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing to write."""

    def close(self) -> None:
        self.closed = True


class _LimitedStream:
    """A stream that raises `_Hostile` beyond a limit."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left, self._limit = file, limit, limit

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _Hostile(Reason.TOO_LARGE, f"The tar unpacks to more than {self._limit:,} bytes.")
        return data


class _Candidate(NamedTuple):
    """A member whose header was read, before it is known whether the member is fresh."""

    listed: Listed
    member: tarfile.TarInfo
    data: bytes | None


def tar_members(part: Part, options: SourceOptions, fresh: Fresh, skipped: Skipped) -> Iterator[pa.Table]:
    """The tar's fresh files; a member's uri is <tar>!<name>, its mtime the tar's.

    Raises:
        StorageError: the tar cannot be read.
    """
    damage: list[Exception] = []
    with _opened(part.uri) as file:
        archive = _archive(part, file, damage)
        if archive is not None:
            candidates = _until_damaged(_members(part, archive, options, skipped), damage)
            for stretch in stretches(candidates, lambda one: len(one.data or b"")):
                wanted = fresh([one.listed for one in stretch])
                rows = (_member_row(archive, one, options) for one, take in zip(stretch, wanted) if take)
                yield from _tables(_until_damaged(rows, damage))
    yield from _refusal(part, damage, fresh)


@contextmanager
def _opened(uri: str) -> Iterator[IO[bytes]]:
    with storage_errors(uri):
        file = open_file(uri)
    with file:
        yield cast("IO[bytes]", _Named(uri, file))


def _until_damaged(items: Iterable[T], damage: list[Exception]) -> Iterator[T]:
    """`items` up to the first that cannot be read; the error is appended to `damage`."""
    try:
        yield from items
    except (StorageError, ColumnError):
        raise
    except Exception as error:  # parsers of hostile bytes raise what they like
        damage.append(error)


def _archive(part: Part, file: IO[bytes], damage: list[Exception]) -> tarfile.TarFile | None:
    def opened() -> Iterator[tarfile.TarFile]:
        if part.uri.lower().endswith(".tar"):
            yield tarfile.TarFile.open(fileobj=file, mode="r:", tarinfo=_Member)
        else:
            limit = max(EXPANSION_FREE, EXPANSION * part.size)
            stream = _LimitedStream(cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="rb")), limit)
            yield tarfile.TarFile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_Member)

    return next(_until_damaged(opened(), damage), None)


def _members(part: Part, archive: tarfile.TarFile, options: SourceOptions, skipped: Skipped) -> Iterator[_Candidate]:
    """The headers of files, with their bytes where the tar is compressed and cannot be rewound."""
    packed = not part.uri.lower().endswith(".tar")
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
        if member.size < 0:
            raise _Hostile(Reason.CORRUPT, "The tar has a member of negative size.")
        names = member.name.strip("/").split("/")
        if not member.isfile() or any(map(hidden, names)):
            continue
        if sidecar(names[-1]):
            skipped(f"{part.uri}!{member.name}")
            continue
        listed = (f"{text(part.uri)}!{text(member.name)}", member.offset_data, member.size, part.mtime)
        yield _Candidate(listed, member, _bytes(archive, member, options) if packed else None)


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo, options: SourceOptions) -> bytes | None:
    if member.size > options.limits.max_bytes:
        return None
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _member_row(archive: tarfile.TarFile, candidate: _Candidate, options: SourceOptions) -> Row:
    uri, place, size, mtime = candidate.listed
    data = _bytes(archive, candidate.member, options) if candidate.data is None else candidate.data
    row: Row = {"uri": uri, "place": place, "data": data, "size": size, "mtime": mtime}
    label = label_of(candidate.member.name, options.labels)
    return row | {"label": label} | refusal(candidate.member.size, options.limits)


def _tables(rows: Iterable[Row]) -> Iterator[pa.Table]:
    for stretch in stretches(rows, lambda row: len(row["data"] or b"")):
        yield pa.Table.from_pylist(stretch, schema=FOUND)


def _refusal(part: Part, damage: list[Exception], fresh: Fresh) -> Iterator[pa.Table]:
    """The damaged container as one refused file, unless it is known already."""
    if not damage or not fresh([(text(part.uri), 0, part.size, part.mtime)])[0]:
        return
    error = damage[0]
    text_of_error = " ".join(str(error).split())[:300] or type(error).__name__
    short = isinstance(error, EOFError) or "unexpected end" in text_of_error or "truncated" in text_of_error
    reason = error.reason if isinstance(error, _Hostile) else Reason.TRUNCATED if short else Reason.CORRUPT
    row = {"uri": text(part.uri), "place": 0, "size": part.size, "mtime": part.mtime, "reason": reason}
    message = f"The {part.kind} cannot be read beyond this point; what came before is kept: {text_of_error}"
    yield pa.Table.from_pylist([row | {"message": message}], schema=FOUND)


def parquet_rows(part: Part, options: SourceOptions, fresh: Fresh) -> Iterator[pa.Table]:
    """The fresh values of the column of bytes; a row's uri is <file>!<row>, its mtime the file's.

    Raises:
        StorageError: the file cannot be read.
        ColumnError: there is no such column of bytes.
    """
    damage: list[Exception] = []
    with _opened(part.uri) as file:
        yield from _until_damaged(_parquet_tables(part, file, options, fresh), damage)
    yield from _refusal(part, damage, fresh)


def _parquet_tables(part: Part, file: IO[bytes], options: SourceOptions, fresh: Fresh) -> Iterator[pa.Table]:
    with pq.ParquetFile(pa.PythonFile(file, mode="r")) as parquet:
        column = _column(part.uri, parquet.schema_arrow, options.column)
        first = 0
        for group in range(parquet.num_row_groups):
            facts = parquet.metadata.row_group(group)
            numbers = range(first, first + facts.num_rows)
            first += facts.num_rows
            listed: list[Listed] = [(f"{text(part.uri)}!{n}", 0, None, part.mtime) for n in numbers]
            wanted = fresh(listed)
            if any(wanted):
                at_once = max(1, min(FILES_AT_ONCE, facts.num_rows * BYTES_AT_ONCE // max(1, facts.total_byte_size)))
                batches = parquet.iter_batches(at_once, row_groups=[group], columns=[column])
                values = (value for batch in batches for value in batch.column(0))
                rows = zip(listed, values, wanted)
                yield from _tables(_value_row(one, value, options) for one, value, take in rows if take)


def _value_row(listed: Listed, value: pa.Scalar, options: SourceOptions) -> Row:
    cell = value.as_py()
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    row: Row = {"uri": listed[0], "place": 0, "data": data or b"", "size": len(data or b""), "mtime": listed[3]}
    refused = refusal(len(data or b""), options.limits)
    if refused:
        row["data"] = None
    return row | {"label": label_of(path or "", options.labels)} | refused


def _column(uri: str, schema: pa.Schema, name: str | None) -> str:
    able = [field.name for field in schema if _holds_bytes(field.type)]
    if name in able:
        return str(name)
    if name is None and len(able) == 1:
        return str(able[0])
    fault = "has several columns of bytes" if name is None and able else f"has no column of bytes {name or ''}".rstrip()
    choice = f"choose one of {', '.join(able)} with --column" if able else f"its columns are {', '.join(schema.names)}"
    raise (ColumnError if able else NoPicturesError)(f"{uri} {fault}; {choice}.")


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether it is bytes, or the struct of bytes and path in which Hugging Face stores an image."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
