"""A journal between a run and its tracker, so that an outage neither stops the training nor loses a record.

    append -> journal.jsonl -> a thread ships batches -> journal.ack (how far, and to which run)

Guarantees, and why they hold:
- A record is written with one `write` before `append` returns, so it outlives the process; it is fsynced by a thread
  before it is shipped, at the latest every second or so, so a power cut costs at most the last second.
- `journal.ack` is replaced atomically after the tracker took a batch. After a crash in between, that batch is sent
  again with the same time stamps, and MLflow's SQL stores keep one row per (run, key, time stamp, step, value): no
  doubles.
- Steps of a key only grow. A point at or below its key's highest step is one that a resumed run repeats; it is dropped.
- A torn last line is one whose `append` never returned; it is cut off when the journal is opened.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from components.storage.locks import acquire
from ssl_core.atomic import replace_text

log = logging.getLogger("pretext.tracking")

Record = dict[str, Any]
"""One JSON object with a "kind"; the shipper's receiver defines what the kinds mean."""

CHUNK = 1 << 20  # bytes read for one batch


class Unavailable(Exception):
    """The tracker cannot be reached or is busy: keep the records and try again later."""


@dataclass(frozen=True)
class JournalEntry:
    """A record, where its line starts, and the offset that is acknowledged once the tracker has it."""

    record: Record
    start: int
    end: int


class Journal:
    """Append-only journal of one run in `folder`; one process at a time (raises `Busy` otherwise).

    Attributes:
        shared: whether journals of other machines may have fed the same run, also with what this one never held.
    """

    def __init__(self, folder: Path, restore: Callable[[], None] | None = None) -> None:
        """restore: called once the folder is this process's own; puts an earlier journal of any machine into it."""
        self.folder, self.shared = folder, restore is not None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = acquire(folder / "journal.lock")
        try:
            if restore is not None:
                restore()
        except BaseException:
            os.close(self._lock)
            raise
        self._file = os.open(folder / "journal.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._guard = threading.Lock()
        self.size = _repair(self._file)
        self.opened_at = self.size
        self._synced = self.size
        self._highest: dict[str, int] = {}
        for entry in self.scan():
            self._update_highest(entry.record)
        self.owner, self.acked = self._read_ack()
        self.closed = False

    def append(self, record: Record) -> None:
        """Once it returns, the record survives the death of the process. Raises OSError if it cannot be written."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._guard:
            written = os.write(self._file, line)
            if written != len(line):  # disk full in the middle of a line: take the half back
                os.ftruncate(self._file, self.size)
                raise OSError(28, f"no space left to write {self.folder / 'journal.jsonl'}")
            self.size += written
            self._update_highest(record)

    def append_point(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """Appends the metrics whose (key, step) is new, with `time_ms` since the epoch."""
        fresh = {key: float(value) for key, value in metrics.items() if step > self._highest.get(key, -1)}
        if fresh:
            self.append({"kind": "point", "step": step, "time_ms": time_ms, "metrics": fresh})

    def pending(self) -> list[JournalEntry]:
        """The next unacknowledged records, about a megabyte of them, in the order in which they were appended."""
        return self._read(self.acked)

    def left(self) -> int:
        """Records that the tracker has not taken yet."""
        return sum(1 for _ in self.scan(self.acked))

    def records(self) -> list[Record]:
        """All of the journal, from its beginning."""
        return [entry.record for entry in self.scan()]

    def read_bytes(self, start: int, end: int) -> bytes:
        """The journal's lines between two offsets, each the start or the end of one."""
        content, at = b"", start
        while at < end and (block := os.pread(self._file, end - at, at)):
            content, at = content + block, at + len(block)
        return content

    def bind(self, owner: str) -> None:
        """Sets the run that takes the records. A new one (another server, a deleted run) gets all of them."""
        if owner != self.owner:
            self.owner, self.acked = owner, 0
            self._write_ack()

    def ack(self, end: int) -> None:
        if not self.closed:  # a shipment that returns after `close` is sent again by the next opening
            self.acked = end
            self._write_ack()

    def refuse(self, record: Record, why: str) -> None:
        """Puts a record aside that the tracker will never take, so that it does not hold up the rest."""
        with (self.folder / "journal.refused.jsonl").open("a") as file:
            file.write(json.dumps({"why": why, "record": record}) + "\n")

    def sync(self) -> None:
        with self._guard:
            target = self.size
        if target != self._synced:
            os.fsync(self._file)
            self._synced = target

    def close(self, in_use: bool = False) -> None:
        """Releases the folder. `in_use`: a thread is still in a request, so the file's descriptor stays open."""
        self.sync()
        self.closed = True
        if not in_use:
            os.close(self._file)
        os.close(self._lock)

    def _update_highest(self, record: Record) -> None:
        if record.get("kind") == "point":
            for key in record["metrics"]:
                self._highest[key] = max(record["step"], self._highest.get(key, -1))

    def _read(self, offset: int) -> list[JournalEntry]:
        with self._guard:
            limit = self.size
        length, data = CHUNK, b""
        while offset < limit:
            data = os.pread(self._file, min(length, limit - offset), offset)
            if b"\n" in data or len(data) < length:
                break
            length *= 2  # one record longer than the chunk
        return _entries(data, offset)

    def scan(self, offset: int = 0) -> Iterator[JournalEntry]:
        while entries := self._read(offset):
            yield from entries
            offset = entries[-1].end

    def _read_ack(self) -> tuple[str, int]:
        try:
            state = json.loads((self.folder / "journal.ack").read_text())
            return str(state["owner"]), max(0, min(int(state["offset"]), self.size))
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: send all again, which makes no doubles
            return "", 0

    def _write_ack(self) -> None:
        state = json.dumps({"owner": self.owner, "offset": self.acked})
        replace_text(self.folder / "journal.ack", state, durable=False)  # if lost, all is sent again, without doubles


def last_header(journal: Journal) -> Record | None:
    """The newest record that names the journal's run: run_key, experiment, name, tags, time_ms."""
    found = None
    for entry in journal.scan():
        if entry.record.get("kind") == "run":
            found = entry.record
    return found


def _repair(file: int) -> int:
    """Cuts off a torn last line; returns the length of the file after that."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(0, end - CHUNK)
        block = os.pread(file, end - start, start)
        if (newline := block.rfind(b"\n")) >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    return end


def _entries(data: bytes, offset: int) -> list[JournalEntry]:
    """Whole lines of `data`, which starts at `offset`. A garbled line becomes a record without a kind."""
    entries = []
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            record = {}
        entries.append(JournalEntry(record if _sound(record) else {}, offset, offset + len(line)))
        offset += len(line)
    return entries


def _sound(record: Any) -> bool:
    """Whether a record has all that this module reads from it."""
    if not isinstance(record, dict):
        return False
    kind = record.get("kind")
    if kind == "point":
        return isinstance(record.get("metrics"), dict) and all(type(record.get(k)) is int for k in ("step", "time_ms"))
    return kind != "run" or all(key in record for key in ("run_key", "experiment", "name", "tags", "time_ms"))


class Receiver(Protocol):
    """The far end of a journal."""

    def connect(self) -> None:
        """Finds or makes the run and binds the journal to it; cheap once done. Raises Unavailable."""
        ...

    def deliver(self, entries: Sequence[JournalEntry]) -> None:
        """Takes all entries, even repeated ones. Raises Unavailable to be called later with the same entries."""
        ...

    def pulse(self) -> None:
        """Signals that the run is alive. Raises Unavailable."""
        ...


class Shipper(threading.Thread):
    """Carries a journal to its receiver: in order, in batches, with growing pauses while the receiver is away."""

    def __init__(
        self,
        journal: Journal,
        receiver: Receiver,
        *,
        pause: float = 0.5,
        longest_pause: float = 30.0,
        pulse_every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="pretext-journal", daemon=True)
        self.journal, self.receiver = journal, receiver
        self._pause, self._longest, self._pulse_every, self._clock = pause, longest_pause, pulse_every, clock
        self._stop_at: float | None = None
        self._wake = threading.Event()
        self._failures = 0
        self._next_pulse = 0.0
        self.trouble: str | None = None

    def run(self) -> None:
        while not self._over():
            self._rest(self._once())

    def drain(self, seconds: float) -> bool:
        """Ships what is left, for at most `seconds`, then stops. True: the tracker has everything."""
        self._stop_at = self._clock() + seconds
        self._wake.set()
        self.join(seconds + 0.5)
        return not self.is_alive() and self.journal.acked >= self.journal.size

    def _rest(self, pause: float) -> None:
        until = self._clock() + pause
        while (left := until - self._clock()) > 0 and not self._over():
            if self._wake.wait(min(left, 1.0)):
                self._wake.clear()
                return
            self._sync()

    def _sync(self) -> None:
        with suppress(OSError):  # a full disk: the next append reports it
            self.journal.sync()

    def _over(self) -> bool:
        if self._stop_at is None:
            return False
        return self.journal.acked >= self.journal.size or self._clock() >= self._stop_at

    def _once(self) -> float:
        """One batch and, when due, one pulse. Returns the pause before the next."""
        self._sync()
        try:
            self.receiver.connect()
            entries = self.journal.pending()
            if entries:
                self.receiver.deliver(entries)
                self.journal.ack(entries[-1].end)
            if self._clock() >= self._next_pulse:
                self.receiver.pulse()
                self._next_pulse = self._clock() + self._pulse_every
        except Exception as error:  # the thread must survive every error: a bug here must not cost the run its record
            return self._failed(error)
        if self.trouble:
            log.warning(
                "The tracker is back; %s", "all is delivered" if not self.journal.left() else "delivering the rest"
            )
        self.trouble, self._failures = None, 0
        return 0.0 if entries and self.journal.acked < self.journal.size else self._pause

    def _failed(self, error: Exception) -> float:
        self._failures += 1
        if self.trouble is None:
            why = str(error) if isinstance(error, Unavailable) else repr(error)
            log.warning("%s. The run continues; its points wait in %s", why, self.journal.folder)
        self.trouble = str(error) or type(error).__name__
        if self._stop_at is not None:
            return min(self._pause, 0.5)
        pause = min(self._longest, self._pause * 2.0 ** min(self._failures, 16))
        return pause * random.uniform(0.7, 1.0)
