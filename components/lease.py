"""Who is ingesting: one small record per ingest, and the rule by which a dead one's leftovers are removed.

An ingest writes its shards below `ingest-<id>/` of a table, and they count only once a commit names them. Before the
first shard it leaves a record in `_ingests/`, and renews it while it works. It is dead when its record is gone, when
the record names a process of this machine that no longer runs, or when a record of another machine was not renewed for
ten minutes by the storage's own clock. Whoever finds a dead one takes away its record, then, if it may only be asleep,
commits nothing but a turn (which overtakes it, so that it looks at its record before it commits), then deletes what no
version names.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from components import delta
from components.storage import Entry, StorageError, entries, is_remote, join, read, remove, stat, write

RENEW_SECONDS = 30.0
DEAD_AFTER_SECONDS = 600.0
PREFIX = "ingest-"


class Lease:
    """The record of one running ingest; a context manager that renews it from a thread and removes it at the end."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self.folder = PREFIX + self.id
        self._record = _record_uri(root, self.id)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {self.id}", daemon=True)

    def __enter__(self) -> Lease:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # a record that stays is swept by the next ingest
            remove(self._record)

    def held(self) -> bool:
        """Whether nobody took this ingest for dead."""
        return stat(self._record) is not None

    def sweep(self, tables: Iterable[str]) -> None:
        """Remove what dead ingests left in these tables, and their records."""
        now = stat(self._record)
        records = [e for e in _listed(join(self.root, "_ingests")) if not e.folder and _id(e) != self.id]
        states = {_id(record): _state(record, now.mtime if now else 0) for record in records}
        living = {self.id} | {ingest for ingest, state in states.items() if state == "alive"}
        for ingest in states.keys() - living:
            remove(_record_uri(self.root, ingest))
        for table in tables:
            if "silent" in states.values():
                _overtake(table)
            _sweep_table(table, living)
            if living == {self.id}:
                _sweep_log(table)

    def _write(self) -> None:
        host = {
            "machine": _machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        write(self._record, json.dumps(host).encode())

    def _renew(self) -> None:
        while not self._done.wait(RENEW_SECONDS):
            with contextlib.suppress(StorageError):  # missed once is not dead
                if self.held():
                    self._write()


def _record_uri(root: str, ingest: str) -> str:
    return join(root, "_ingests", f"{ingest}.json")


def _id(record: Entry) -> str:
    return record.uri.rsplit("/", 1)[1].removesuffix(".json")


def _listed(folder: str) -> list[Entry]:
    found = stat(folder)
    return list(entries(folder)) if found is not None and found.folder else []


def _state(record: Entry, now: int) -> Literal["alive", "dead", "silent"]:
    """Of the ingest that left the record; "silent" is taken for dead, but may wake up."""
    try:
        host = json.loads(read(record.uri) or b"{}")
    except ValueError:
        host = {}
    if host.get("machine") == _machine():
        return "alive" if host["started"] == _started(host["pid"]) else "dead"
    return "alive" if host and now - record.mtime < DEAD_AFTER_SECONDS * 1e9 else "silent"


def _machine() -> str:
    """This boot of this kernel and this space of process ids: where a pid means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time()}"


def _started(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _overtake(table: str) -> None:
    while (found := delta.open_table(table)) is not None:
        try:
            delta.append(found, [], {"pretext.ingest": "sweep"})
            return
        except delta.OvertakenError:
            continue


def _sweep_table(table: str, living: set[str]) -> None:
    folders = [e for e in _listed(table) if e.folder and e.uri.rsplit("/", 1)[1].startswith(PREFIX)]
    # An ingest that ended well between the listing and here has no record either: look at the log after that.
    dead = [f for f in folders if not _lives(f, table, living)]
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


def _lives(folder: Entry, table: str, living: set[str]) -> bool:
    """A folder that is younger than the list of records has a record of its own by now: it is written first."""
    ingest = folder.uri.rsplit("/", 1)[1].removeprefix(PREFIX)
    root = table.removesuffix("/_quarantine")
    return ingest in living or stat(_record_uri(root, ingest)) is not None


def _sweep_log(table: str) -> None:
    """Half-written log files, once nobody is left who may be writing one."""
    for file in _listed(join(table, "_delta_log")):
        name = file.uri.rsplit("/", 1)[1]
        if not file.folder and not name.removesuffix(".json").isdigit() and (".tmp" in name or "#" in name):
            remove(file.uri)
