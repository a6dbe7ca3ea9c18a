"""What a corpus already holds and what this ingest has seen: an index on disk, so that its size costs no memory.

It lives in one process (a Ray actor in an ingest). Every call may be repeated and returns the same answer, because Ray
repeats a task whose worker died.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from components.corpus.delta import stream_columns
from components.storage.files import text
from ssl_core.errors import PretextError

_TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;
CREATE TABLE files (key BLOB, size INTEGER, PRIMARY KEY (key, size)) WITHOUT ROWID;
CREATE TABLE hashes (hash BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE claims (hash BLOB PRIMARY KEY, claimant BLOB) WITHOUT ROWID;
CREATE TABLE listed (uri BLOB PRIMARY KEY, part INTEGER) WITHOUT ROWID;
CREATE TABLE noted (file BLOB PRIMARY KEY) WITHOUT ROWID;
"""

Listed = tuple[str, int, int | None, int]
"""(uri, place within it, bytes or None where they are not known before reading, mtime in ns). The place tells apart two
members of one name in a tar; elsewhere it is 0."""
Claim = tuple[str, str, int]
"""(hash, uri, place)."""


class DedupIndex:
    """Files known by (uri, size, mtime), contents known by hash, and contents claimed by a file of this ingest."""

    def __init__(self) -> None:
        # "": a temporary file of SQLite's, which disappears with the process, however that ends
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_TABLES)
        self._tally: Counter[str] = Counter()
        self._failure: PretextError | None = None

    def close(self) -> None:
        """Delete the index."""
        self._db.close()

    def load(self, rows: Sequence[tuple[str, int, int, str | None]]) -> None:
        """Load committed rows (uri, size, mtime, hash); a row without a hash makes the file known, but no content."""
        self._db.execute("BEGIN")
        files = ((_key(uri, mtime), size) for uri, size, mtime, _ in rows if mtime)
        self._db.executemany("INSERT OR IGNORE INTO files VALUES (?, ?)", files)
        hashes = ((bytes.fromhex(digest),) for *_, digest in rows if digest)
        self._db.executemany("INSERT OR IGNORE INTO hashes VALUES (?)", hashes)
        self._db.execute("COMMIT")

    def load_file(self, uri: str, columns: Sequence[str]) -> None:
        """Load a committed Parquet file; `columns` are its names for uri, size, mtime and, where it has one, hash."""
        for table in stream_columns(uri, columns):
            values = [table[name].to_pylist() for name in columns]
            if len(columns) == 3:
                values.append([None] * len(table))
            self.load(list(zip(*values)))

    def fresh(self, part: int, files: Sequence[Listed]) -> list[bool]:
        """Which files are to be read: those not known, and not already listed by another part of the sources."""
        self._db.execute("BEGIN")
        answers = [
            self._list(part, uri, place) and not self._known(uri, size, mtime) for uri, place, size, mtime in files
        ]
        self._db.execute("COMMIT")
        return answers

    def holds(self, hashes: Iterable[str]) -> list[bool]:
        """Which contents the corpus holds from commits other than this ingest's."""
        return [self._holds(digest) for digest in hashes]

    def settled(self, claims: Iterable[Claim]) -> list[bool]:
        """Which files need no decoding: their content is in the corpus, or claimed by another file."""
        return [
            self._holds(digest) or self._claimant(digest) not in (None, _key(uri, place))
            for digest, uri, place in claims
        ]

    def known(self, files: Iterable[Listed]) -> list[bool]:
        """Which files are known by uri, size and mtime."""
        return [self._known(uri, size, mtime) for uri, _, size, mtime in files]

    def claim(self, claims: Iterable[Claim]) -> list[bool]:
        """Whether each file stands for its content in this ingest: the first that claims it does, also on a repeat."""
        return [self._claim(digest, _key(uri, place)) for digest, uri, place in claims]

    def tally(self, **counts: int) -> None:
        """Count for the display of progress; repeated tasks count twice."""
        self._tally.update(counts)

    def count_once(self, kind: str, uri: str) -> None:
        """Count a file under `kind`, once, however often the task that reports it is repeated."""
        key = _key(f"{kind} {uri}", 0)
        self._tally[kind] += self._db.execute("INSERT OR IGNORE INTO noted VALUES (?)", (key,)).rowcount

    def counts(self) -> dict[str, int]:
        """The counts of `tally` and `count_once`, and `seen`: distinct files listed."""
        return dict(self._tally)

    def fail(self, error: PretextError) -> None:
        """Keep a worker's first error that concerns the user: Ray wraps exceptions and drops their causes."""
        self._failure = self._failure or error

    def failure(self) -> PretextError | None:
        """That error, if any."""
        return self._failure

    def _list(self, part: int, uri: str, place: int) -> bool:
        key = _key(uri, place)
        new = self._db.execute("INSERT OR IGNORE INTO listed VALUES (?, ?)", (key, part)).rowcount > 0
        self._tally["seen"] += new
        return new or self._one("SELECT part FROM listed WHERE uri = ?", key) == part

    def _known(self, uri: str, size: int | None, mtime: int) -> bool:
        if not mtime:
            return False
        if size is None:
            return self._one("SELECT 1 FROM files WHERE key = ?", _key(uri, mtime)) is not None
        return self._one("SELECT 1 FROM files WHERE key = ? AND size = ?", _key(uri, mtime), size) is not None

    def _claim(self, digest: str, claimant: bytes) -> bool:
        self._db.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (bytes.fromhex(digest), claimant))
        return bool(self._claimant(digest) == claimant)

    def _claimant(self, digest: str) -> Any:
        return self._one("SELECT claimant FROM claims WHERE hash = ?", bytes.fromhex(digest))

    def _holds(self, digest: str) -> bool:
        return self._one("SELECT 1 FROM hashes WHERE hash = ?", bytes.fromhex(digest)) is not None

    def _one(self, query: str, *values: Any) -> Any:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else row[0]


def _key(uri: str, number: int) -> bytes:
    return hashlib.blake2b(f"{number} {text(uri)}".encode(), digest_size=16).digest()
