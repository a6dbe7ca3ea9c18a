"""The journal of a run whose folder lies behind a URI: it is written on this machine and copied to the run's folder.

    restore   makes the local journal from the run's folder, unless the local one is the same or continues it
    upload    uploads what the run's folder lacks: the journal's segments, and the files that were logged

<run>/tracking/{journal-000000000000.jsonl, journal-000004210231.jsonl, ..., artifacts/figures/curves.png, ...}

A segment is named by the offset of its first byte in the journal. The last one is rewritten, longer, until it has
`SEGMENT` bytes. How much the tracker has taken (journal.ack) stays on this machine: a process elsewhere sends all
again, without the points that the tracker has.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.storage.files import Entry, StorageError, download, entries, join, read, stat, write
from ssl_core.atomic import is_leftover, replace_text, replacing

if TYPE_CHECKING:
    from components.tracking.journal import Journal

SEGMENT = 4 << 20
STATE = "mirror.json"
"""What of the local journal the run's folder holds: {"size": bytes, "files": {path: [size, mtime in ns]}}."""
COPIES = "artifacts"
ATTEMPTS = 4
_SEGMENT_NAME = re.compile(r"journal-(\d{12,})\.jsonl")


class Mirror:
    """Copies between `uri`, part of a run's folder, and the local `folder`, in which the journal is written."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri, folder
        self._start, self._size = 0, 0
        self._files: dict[str, list[int]] = {}

    def restore(self) -> None:
        """Restores the local journal; called once the local folder is locked and before the journal is opened.

        Raises:
            StorageError: the run's folder cannot be read, or lacks a segment.
        """
        segments = self._segments()
        self._size = sum(entry.size for entry in segments)
        self._start = _next_start(segments)
        state = self._state()
        journal = self.folder / "journal.jsonl"
        here = journal.stat().st_size if journal.exists() else 0
        if state.get("size") == self._size <= here:
            self._files = state["files"]
            return
        for name in ("journal.ack", STATE):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / COPIES, ignore_errors=True)
        self._fetch_files(join(self.uri, COPIES), self.folder / COPIES)
        with replacing(journal) as whole, whole.open("wb") as file:
            for entry in segments:
                file.write(read(entry.uri) or b"")
        if journal.stat().st_size != self._size:
            raise StorageError(f"{self.uri} changed while its journal was read; start again")
        self._write_state()

    def upload(self, journal: Journal) -> None:
        """Uploads everything that was appended and logged so far; retried for some seconds if the storage fails.

        Raises:
            StorageError: the last attempt failed.
        """
        for attempt in range(ATTEMPTS):
            try:
                self._upload(journal)
                return
            except StorageError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.5 * 2**attempt)

    def _upload(self, journal: Journal) -> None:
        for path in sorted((self.folder / COPIES).rglob("*")):
            name, found = path.relative_to(self.folder).as_posix(), path.stat()
            about = [found.st_size, found.st_mtime_ns]
            if path.is_file() and self._files.get(name) != about and not is_leftover(path.name):
                write(join(self.uri, name), path.read_bytes())
                self._files[name] = about
        size = journal.size
        if size > self._size:  # after the files that its records name
            content = journal.read_bytes(self._start, size)
            write(join(self.uri, f"journal-{self._start:012d}.jsonl"), content)
            self._size = size
            self._start = size if len(content) >= SEGMENT else self._start
        self._write_state()

    def _segments(self) -> list[Entry]:
        """The segments in order; raises StorageError where one is missing."""
        listed = list(entries(self.uri)) if stat(self.uri) else []
        found = sorted((entry for entry in listed if _SEGMENT_NAME.fullmatch(_name(entry))), key=_offset)
        end = 0
        for entry in found:
            if _offset(entry) != end:
                raise StorageError(f"{self.uri} lacks the segment of the journal that starts at {end}; restore it")
            end += entry.size
        return found

    def _fetch_files(self, uri: str, folder: Path) -> None:
        for entry in entries(uri) if stat(uri) else ():
            path = folder / _name(entry)
            if entry.folder:
                self._fetch_files(entry.uri, path)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            download(entry.uri, path)
            found = path.stat()
            self._files[path.relative_to(self.folder).as_posix()] = [found.st_size, found.st_mtime_ns]

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads((self.folder / STATE).read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) and isinstance(state.get("files"), dict) else {}

    def _write_state(self) -> None:
        state = json.dumps({"size": self._size, "files": self._files})
        with suppress(OSError):  # this machine's disk is full; without the state the run's folder is read again
            replace_text(self.folder / STATE, state, durable=False)


def _next_start(segments: list[Entry]) -> int:
    """Offset of the segment to write next: the last one, until it is full."""
    if not segments:
        return 0
    last = segments[-1]
    return _offset(last) + (last.size if last.size >= SEGMENT else 0)


def _offset(entry: Entry) -> int:
    found = _SEGMENT_NAME.fullmatch(_name(entry))
    assert found is not None
    return int(found[1])


def _name(entry: Entry) -> str:
    return entry.uri.rsplit("/", 1)[1]
