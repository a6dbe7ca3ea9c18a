"""The files of a part of the sources, and only those that ingest has not met before.

Listing yields stretches of rows of `FOUND`: a plain file comes by name and is read where it is decoded; what lies in a
tar or a Parquet file comes with its bytes, because only a pass over the container gets at them. `fresh` is asked before
anything is passed on.
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
    Taking,
    Visit,
    contents,
    itself,
    label_of,
    refusal,
    sidecar,
)
from components.storage.files import text


def list_files(part: Part, taking: Taking, fresh: Fresh, skipped: Skipped) -> Iterator[pa.Table]:
    """The part's fresh files as stretches of rows of `FOUND`.

    Raises:
        StorageError: a folder or container cannot be read.
        ColumnError: a Parquet file has no such column of bytes.
    """
    if part.kind == "tar":
        yield from tar_members(part, taking, fresh, skipped)
    elif part.kind == "parquet":
        yield from _parquet(part, taking, fresh, skipped)
    elif part.kind == "file":
        yield from _files([part], taking, fresh)
    else:
        yield from _folder(part, taking, fresh, skipped, itself(part))


def _parquet(part: Part, taking: Taking, fresh: Fresh, skipped: Skipped) -> Iterator[pa.Table]:
    """Its rows; a table without pictures that merely lies beside them is a companion like a text file."""
    try:
        yield from parquet_rows(part, taking, fresh)
    except NoPicturesError:
        if part.named or taking.column:
            raise
        skipped(part.uri)


def _folder(part: Part, taking: Taking, fresh: Fresh, skipped: Skipped, visited: set[Visit]) -> Iterator[pa.Table]:
    plain: list[Part] = []
    for inner in contents(part, visited):
        if inner.kind == "folder":
            yield from _folder(inner, taking, fresh, skipped, visited)
        elif inner.kind != "file":
            yield from list_files(inner, taking, fresh, skipped)
        elif sidecar(inner.uri) and not inner.named:
            skipped(inner.uri)
        else:
            plain.append(inner)
            if len(plain) >= FILES_AT_ONCE:
                yield from _files(plain, taking, fresh)
                plain = []
    yield from _files(plain, taking, fresh)


def _files(plain: Sequence[Part], taking: Taking, fresh: Fresh) -> Iterator[pa.Table]:
    wanted = fresh([(text(file.uri), 0, file.size, file.mtime) for file in plain]) if plain else []
    rows = [_row(file, taking) for file, take in zip(plain, wanted) if take]
    if rows:
        yield pa.Table.from_pylist(rows, schema=FOUND)


def _row(file: Part, taking: Taking) -> dict[str, Any]:
    row: dict[str, Any] = {"uri": text(file.uri), "place": 0, "size": file.size, "mtime": file.mtime}
    row |= {"locator": os.fsencode(file.uri), "label": label_of(file.uri, taking.labels)}
    return row | refusal(file.size, taking.limits)
