"""The check before Ray is started: a recurring ingest mostly finds nothing new, and then ends at once."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing

import pyarrow as pa

from components.corpus import delta
from components.corpus.corpus import Corpus
from components.ingest.commits import CONTENTS, FILES
from components.ingest.dedup import DedupIndex
from components.ingest.listing import list_files
from components.ingest.sources import Part, SourceOptions
from components.ingest.stages import read_source
from components.storage.files import join

ROWS_LOOKED_UP = 200_000
FILES_LISTED = 20_000
FILES_READ = 200
"""Copies of known contents are not recorded, so some files may have to be read to be sure that nothing is new."""


def nothing_new(cut: Sequence[Part], store: Corpus, options: SourceOptions) -> Mapping[str, int] | None:
    """Counts of files seen and skipped, if a short check shows that all are known; None if there may be work."""
    plain = all(part.kind in ("folder", "file") for part in cut)
    if not plain or store.count() > ROWS_LOOKED_UP:
        return None
    with closing(DedupIndex()) as index:
        _load_known(index, store)
        to_read, skipped = FILES_READ, functools.partial(index.count_once, "skipped")
        for number, part in enumerate(cut):
            for table in list_files(part, options, functools.partial(index.fresh, number), skipped):
                to_read -= len(table)
                if to_read < 0 or index.counts()["seen"] > FILES_LISTED or not _all_known(table, index, options):
                    return None
        return index.counts()


def _load_known(index: DedupIndex, store: Corpus) -> None:
    for file in store.files():
        index.load_file(join(store.uri, file.path), CONTENTS)
    refused = delta.open_table(store.quarantine_uri)
    for file in [] if refused is None else delta.data_files(refused):
        index.load_file(join(store.quarantine_uri, file.path), FILES)


def _all_known(files: pa.Table, index: DedupIndex, options: SourceOptions) -> bool:
    for locator, reason in zip(files["locator"].to_pylist(), files["reason"].to_pylist()):
        if locator is None:  # it lies in a container
            return False
        data = None if reason else read_source(os.fsdecode(locator), options.limits)
        if data is None or not index.holds([hashlib.sha256(data).hexdigest()])[0]:
            return False
    return True
