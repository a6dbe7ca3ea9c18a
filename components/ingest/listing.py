"""The files of a part of the sources, without those that the index knows already.

Listing yields tables with rows of `FOUND`: a plain file comes as a name, and is read where it is decoded; a file in a
tar or a Parquet file comes with its bytes, because a container is read in one pass. Only files that `fresh` selects
are yielded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from components.ingest.containers import NoPicturesError, parquet_rows, tar_members
from components.ingest.sources import (
    FILES_AT_ONCE,
    FOUND,
    Fresh,
    Part,
    Skipped,
    SourceOptions,
    Visit,
    contents,
    itself,
    label_of,
    refusal,
    sidecar,
)
from components.storage.files import text


def list_files(part: Part, options: SourceOptions, fresh: Fresh, skipped: Skipped) -> Iterator[pa.Table]:
    """The part's fresh files as tables with rows of `FOUND`.

    Raises:
        StorageError: a folder or container cannot be read.
        ColumnError: a Parquet file has no such column of bytes.
    """
    if part.kind == "tar":
        yield from tar_members(part, options, fresh, skipped)
    elif part.kind == "parquet":
        yield from _parquet(part, options, fresh, skipped)
    elif part.kind == "file":
        yield from _files([part], options, fresh)
    else:
        yield from _folder(part, options, fresh, skipped, itself(part))


def _parquet(part: Part, options: SourceOptions, fresh: Fresh, skipped: Skipped) -> Iterator[pa.Table]:
    """Its rows; a table without pictures in a folder of media is skipped, as a text file is."""
    try:
        yield from parquet_rows(part, options, fresh)
    except NoPicturesError:
        if part.named or options.column:
            raise
        skipped(part.uri)


def _folder(
    part: Part, options: SourceOptions, fresh: Fresh, skipped: Skipped, visited: set[Visit]
) -> Iterator[pa.Table]:
    plain: list[Part] = []
    for inner in contents(part, visited):
        if inner.kind == "folder":
            yield from _folder(inner, options, fresh, skipped, visited)
        elif inner.kind != "file":
            yield from list_files(inner, options, fresh, skipped)
        elif sidecar(inner.uri) and not inner.named:
            skipped(inner.uri)
        else:
            plain.append(inner)
            if len(plain) >= FILES_AT_ONCE:
                yield from _files(plain, options, fresh)
                plain = []
    yield from _files(plain, options, fresh)


def _files(plain: Sequence[Part], options: SourceOptions, fresh: Fresh) -> Iterator[pa.Table]:
    wanted = fresh([(text(file.uri), 0, file.size, file.mtime) for file in plain]) if plain else []
    rows = [_row(file, options) for file, take in zip(plain, wanted) if take]
    if rows:
        yield pa.Table.from_pylist(rows, schema=FOUND)


def _row(file: Part, options: SourceOptions) -> dict[str, Any]:
    row: dict[str, Any] = {"uri": text(file.uri), "place": 0, "size": file.size, "mtime": file.mtime}
    row |= {"locator": os.fsencode(file.uri), "label": label_of(file.uri, options.labels)}
    return row | refusal(file.size, options.limits)
