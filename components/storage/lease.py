"""Who is at work in a shared storage: one small record per process, renewed while it works.

    with Lease(folder) as lease: ...            one of several, such as the ingests into a corpus
    with ExclusiveLease(root) as lease: ...     the only one, such as the driver of a run; raises Busy if one is alive

A holder is dead when its record names a process of this machine that no longer runs, or when a record of another
machine was not renewed for `DEAD_AFTER` seconds by the storage's own clock. The latter may only be asleep: whoever
takes it for dead removes its record, and a process that wakes up checks its record before it writes anything that
counts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import psutil

from components.storage.files import StorageError, entries, is_remote, join, read, remove, stat, write
from components.storage.locks import Busy
from ssl_core.atomic import is_leftover, sweep
from ssl_core.errors import PretextError

log = logging.getLogger("pretext.lease")


State = Literal["alive", "dead", "silent"]


class TakenOver(PretextError):
    """Another process took this one for dead and goes on with its work."""


@dataclass(frozen=True)
class Holder:
    """A process that left a record.

    Attributes:
        id: of its lease; sorts by the time at which it began.
        state: "alive"; "dead"; or "silent", taken for dead, although it may wake up.
        here: whether it is a process of this machine, so that its state is certain.
        waiting: whether it still waits to become the only one.
        name: a description for people.
        renewed: ns since 1970 by the storage's clock.
    """

    id: str
    state: State
    here: bool
    waiting: bool
    name: str
    renewed: int


class Lease:
    """One process' record in `folder`; a context manager that renews it from a thread and removes it at the end.

    Attributes:
        id: of the lease; sorts by the time at which it began.
        record: URI of the record, which any process can pass to `is_held`.
        lost: whether a renewal found the record gone.
    """

    RENEW: ClassVar = 30.0
    DEAD_AFTER: ClassVar = 600.0

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.began = datetime.now(UTC)
        self.id = f"{self.began:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self.record = record_of(folder, self.id)
        self.lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease {self.id}", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        if not is_remote(self.folder):
            sweep(Path(self.folder), older_than=self.DEAD_AFTER)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._remove()

    def others(self) -> list[Holder]:
        """Every other process with a record here, the oldest lease first."""
        own, folder = stat(self.record), stat(self.folder)
        now = own.mtime if own else 0
        listed = entries(self.folder, lambda name, _: not is_leftover(name)) if folder and folder.folder else ()
        records = [entry for entry in listed if not entry.folder]
        holders = (self._holder(record.uri, record.mtime, now) for record in records if record.uri != self.record)
        return sorted((holder for holder in holders if holder is not None), key=lambda holder: holder.id)

    def evict(self, holder: Holder) -> None:
        """Remove the record of a holder that is taken for dead."""
        remove(record_of(self.folder, holder.id))

    def _holder(self, record: str, renewed: int, now: int) -> Holder | None:
        written = read(record)
        if written is None:  # its process has ended well since it was listed
            return None
        try:
            about = json.loads(written)
        except ValueError:
            about = {}
        here = about.get("machine") == _machine()
        lives = about["started"] == _started(about["pid"]) if here else now - renewed < self.DEAD_AFTER * 1e9
        state: State = "alive" if about and lives else "dead" if here else "silent"
        name = f"process {about.get('pid')} on {about.get('host')} since {about.get('since')}"
        return Holder(Path(record).stem, state, here, bool(about.get("waiting")), name, renewed)

    def _write(self, **more: Any) -> None:
        about = {
            "machine": _machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": f"{self.began:%Y-%m-%d %H:%M} UTC",
        }
        write(self.record, json.dumps(about | more).encode(), durable=False)  # a power cut ends the holder, too

    def _remove(self) -> None:
        with contextlib.suppress(StorageError):  # the next holder removes a record that stays
            remove(self.record)

    def _keep_renewing(self) -> None:
        while not self._done.wait(self.RENEW) and not self.lost:
            with contextlib.suppress(StorageError):  # one missed renewal does no harm
                self._renew()

    def _renew(self) -> None:
        self.lost = not is_held(self.record)
        if not self.lost:
            self._write()


class ExclusiveLease(Lease):
    """The only one at work below `root`; its record is in `root`/_lease.

    Each writes its record before it reads the others', so of two that start at once at least one sees the other, and
    the later one gives way. A process on another machine is given time to renew its record, and then taken for dead.
    """

    RENEW: ClassVar = 10.0
    DEAD_AFTER: ClassVar = 120.0
    LOOK: ClassVar = 1.0

    def __init__(self, root: str) -> None:
        super().__init__(join(root, "_lease"))
        self.root = root

    def __enter__(self) -> Self:
        """Waits up to `DEAD_AFTER` seconds. Raises Busy, which names the holder, since when, and how to go on."""
        try:
            self._outlast()
        except BaseException:
            self._remove()
            raise
        return super().__enter__()

    def _outlast(self) -> None:
        """Returns once no other holder is alive."""
        first_seen: dict[str, int] = {}
        while True:
            self._write(waiting=True)
            others = self.others()
            for other in others:
                if other.state != "alive":
                    self.evict(other)
            living = [other for other in others if other.state == "alive"]
            if not living:
                return
            for other in living:
                if other.id not in first_seen and not (other.here or other.waiting):
                    log.warning("%s is held by %s: waiting to see whether it is alive", self.root, other.name)
                renewed = other.here or other.renewed > first_seen.setdefault(other.id, other.renewed)
                if other.id < self.id if other.waiting else renewed:
                    raise Busy(
                        f"{self.root} is held by {other.name}; if that process dies, the same command takes over "
                        f"{self.DEAD_AFTER:g} s after its last sign of life"
                    )
            time.sleep(self.LOOK)

    def _renew(self) -> None:
        super()._renew()
        for other in self.others() if not self.lost else ():
            if other.id < self.id and not other.waiting:  # it was taken for dead, and its last renewal came in late
                self.evict(other)


def record_of(folder: str, lease: str) -> str:
    """URI of the record of a lease in `folder`."""
    return join(folder, f"{lease}.json")


def is_held(record: str) -> bool:
    """Whether the record is still there: no other process took the one that left it for dead."""
    return stat(record) is not None


def require(record: str) -> None:
    """Checks the record; to be called before a write that counts.

    Raises:
        TakenOver: the record is gone.
    """
    if not is_held(record):
        raise TakenOver(
            f"{record} is gone: another process saw no sign of life from this one for {ExclusiveLease.DEAD_AFTER:g} s "
            "(asleep, or cut off from the storage?) and has taken over; this one stops"
        )


def _machine() -> str:
    """An id of this boot and this process namespace, within which a pid is unique."""
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
