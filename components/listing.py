"""The files of a part of the sources, and only those that ingest has not met before.

Listing yields stretches of rows of `FOUND`: a plain file comes by name and is read where it is decoded; what lies in a
tar or a Parquet file comes with its bytes, because only a pass over the container gets at them. `fresh` is asked before
anything is passed on.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from components.containers import NoPicturesError, parquet_rows, tar_members
from components.sources import (
    FILES_AT_ONCE,
    FOUND,
    Fresh,
    Part,
    Taking,
    first_visit,
    hidden,
    itself,
    label_of,
    part_of,
    refusal,
    sidecar,
)
from components.storage import Entry, entries, text


def found(part: Part, taking: Taking, fresh: Fresh, skipped: Callable[[int], None]) -> Iterator[pa.Table]:
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
        yield from _files([Entry(part.uri, False, part.size, part.mtime)], taking, fresh)
    else:
        yield from _folder(part, taking, fresh, skipped, itself(part))


def _parquet(part: Part, taking: Taking, fresh: Fresh, skipped: Callable[[int], None]) -> Iterator[pa.Table]:
    """Its rows; a table without pictures that merely lies beside them is a companion like a text file."""
    try:
        yield from parquet_rows(part, taking, fresh)
    except NoPicturesError:
        if part.named or taking.column:
            raise
        skipped(1)


def _folder(
    part: Part, taking: Taking, fresh: Fresh, skipped: Callable[[int], None], visited: set[tuple[int, int]]
) -> Iterator[pa.Table]:
    plain: list[Entry] = []
    for entry in entries(part.uri):
        name = posixpath.basename(entry.uri)
        if hidden(name) or entry.uri == part.uri:
            continue
        inner = part_of(entry)
        if inner.kind != "file":
            # In a shallow part, folders and containers are parts of their own.
            if part.deep and (not entry.folder or first_visit(entry, visited)):
                deeper = _folder if entry.folder else lambda p, t, f, s, _: found(p, t, f, s)
                yield from deeper(inner, taking, fresh, skipped, visited)
        elif sidecar(name):
            skipped(1)
        else:
            plain.append(entry)
            if len(plain) >= FILES_AT_ONCE:
                yield from _files(plain, taking, fresh)
                plain = []
    yield from _files(plain, taking, fresh)


def _files(plain: Sequence[Entry], taking: Taking, fresh: Fresh) -> Iterator[pa.Table]:
    wanted = fresh([(text(e.uri), 0, e.size, e.mtime) for e in plain]) if plain else []
    rows = [_row(entry, taking) for entry, take in zip(plain, wanted) if take]
    if rows:
        yield pa.Table.from_pylist(rows, schema=FOUND)


def _row(entry: Entry, taking: Taking) -> dict[str, Any]:
    row: dict[str, Any] = {"uri": text(entry.uri), "place": 0, "size": entry.size, "mtime": entry.mtime}
    row |= {"locator": os.fsencode(entry.uri), "label": label_of(entry.uri, taking.labels)}
    return row | refusal(entry.size, taking.limits)
