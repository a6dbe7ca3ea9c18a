"""Removes what dead ingests left in a corpus.

An ingest writes its shards below `ingest-<id>/` of a table, and they count only once a commit names them. Before its
first shard it leaves a record in `_ingests/` (storage/lease.py). The ingest that finds a dead one removes its record;
if that one may only be asleep, makes an empty commit (which overtakes it, so that it checks its record before it
commits again); and then deletes the files that no version names.
"""

from __future__ import annotations

from collections.abc import Iterable

from components.corpus import delta
from components.storage.files import Entry, entries, is_remote, join, remove, stat
from components.storage.lease import Lease, is_held, record_of

RECORDS, PREFIX = "_ingests", "ingest-"


def ingest_lease(root: str) -> Lease:
    """The lease of an ingest into the corpus at `root`."""
    return Lease(join(root, RECORDS))


def folder_of(lease: Lease) -> str:
    """The folder that is this ingest's own, below every table it writes to."""
    return PREFIX + lease.id


def vacuum(lease: Lease, tables: Iterable[str]) -> None:
    """Remove what dead ingests left in these tables, and their records."""
    others = lease.others()
    for other in others:
        if other.state != "alive":
            lease.evict(other)
    living = {lease.id} | {other.id for other in others if other.state == "alive"}
    for table in tables:
        if any(other.state == "silent" for other in others):
            _overtake(table)
        _sweep_table(table, lease.folder, living)
        if living == {lease.id}:
            _sweep_log(table)


def _overtake(table: str) -> None:
    while (newest := delta.open_table(table)) is not None:
        try:
            delta.append(newest, [], {"pretext.ingest": "sweep"})
            return
        except delta.OvertakenError:
            continue


def _sweep_table(table: str, records: str, living: set[str]) -> None:
    folders = [e for e in _listed(table) if e.folder and e.uri.rsplit("/", 1)[1].startswith(PREFIX)]
    # An ingest that ended well since the listing has no record either, so the log must be read after the records.
    dead = [f for f in folders if not _lives(f, records, living)]
    if not dead:
        return
    found = delta.open_table(table)
    committed = set() if found is None else {join(table, file.path) for file in delta.data_files(found)}
    for folder in dead:
        files = list(entries(folder.uri))
        for file in files:
            if file.uri not in committed:
                remove(file.uri)
        if not is_remote(table) and not any(file.uri in committed for file in files):
            remove(folder.uri)


def _lives(folder: Entry, records: str, living: set[str]) -> bool:
    """Also true for a folder younger than the list of living ingests: an ingest writes its record before its folder."""
    ingest = folder.uri.rsplit("/", 1)[1].removeprefix(PREFIX)
    return ingest in living or is_held(record_of(records, ingest))


def _sweep_log(table: str) -> None:
    """Remove half-written log files; only when no other ingest is alive that may be writing one."""
    for file in _listed(join(table, "_delta_log")):
        name = file.uri.rsplit("/", 1)[1]
        if not file.folder and not name.removesuffix(".json").isdigit() and (".tmp" in name or "#" in name):
            remove(file.uri)


def _listed(folder: str) -> list[Entry]:
    found = stat(folder)
    return list(entries(folder)) if found is not None and found.folder else []
