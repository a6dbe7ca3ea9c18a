"""A look before starting Ray: a recurring ingest mostly finds nothing new, and should say so within a second."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing

import pyarrow as pa

from components import delta
from components.commits import CONTENTS, FILES
from components.corpus import Corpus
from components.listing import found
from components.seen import Seen
from components.sources import Part, Taking
from components.stages import read_source
from components.storage import join

ROWS_LOOKED_UP = 200_000
FILES_LOOKED_AT = 20_000
FILES_READ = 200
"""Copies of known contents are remembered nowhere, so a few files are read before it is sure that nothing is new."""


def nothing_new(cut: Sequence[Part], store: Corpus, taking: Taking) -> Mapping[str, int] | None:
    """Counts of what was seen and skipped, if a short look shows that all is known; None if there may be work."""
    plain = all(part.kind in ("folder", "file") for part in cut)
    if not plain or store.count() > ROWS_LOOKED_UP:
        return None
    with closing(Seen()) as seen:
        _learn(seen, store)
        to_read, skipped = FILES_READ, functools.partial(seen.note, "skipped")
        for number, part in enumerate(cut):
            for table in found(part, taking, functools.partial(seen.fresh, number), skipped):
                to_read -= len(table)
                if to_read < 0 or seen.counts()["seen"] > FILES_LOOKED_AT or not _held(table, seen, taking):
                    return None
        return seen.counts()


def _learn(seen: Seen, store: Corpus) -> None:
    for file in store.files():
        seen.learn(join(store.uri, file.path), CONTENTS)
    refused = delta.open_table(store.quarantine_uri)
    for file in [] if refused is None else delta.data_files(refused):
        seen.learn(join(store.quarantine_uri, file.path), FILES)


def _held(files: pa.Table, seen: Seen, taking: Taking) -> bool:
    for locator, reason in zip(files["locator"].to_pylist(), files["reason"].to_pylist()):
        if locator is None:  # it lies in a container
            return False
        data = None if reason else read_source(os.fsdecode(locator), taking.limits)
        if data is None or not seen.held([hashlib.sha256(data).hexdigest()])[0]:
            return False
    return True
