"""What a user may ingest from: folders, globs, tars, Parquet columns of bytes, here or behind a URI.

A source becomes parts, and a part is listed by one task (listing.py). A glob becomes the folder where its wildcards
begin, with the rest of the pattern; it is matched while that folder is listed, so a million matches cost no memory.

Hidden files and folders (a leading dot) and the __MACOSX folders of Mac archives are ignored, unless a pattern spells
the dot; files whose name shows that they only accompany media (`SIDECARS`) are counted as skipped; everything else is
tried, whatever its name, and so is every file that the user names in full.
"""

from __future__ import annotations

import glob
import os
import posixpath
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Literal, TypeVar

import pyarrow as pa

from components.ingest.dedup import Listed
from components.storage.files import Entry, StorageError, absolute, entries, is_remote, stat, text
from ssl_core.data.decode import Limits, Reason

FOUND = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("place", pa.int64()),
        pa.field("locator", pa.binary()),
        pa.field("data", pa.binary()),
        pa.field("size", pa.int64()),
        pa.field("mtime", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)
"""One row is one media file. `locator`: where to read it, as the bytes of its path; null where `data` is set.
`reason` and `message`: set where it was refused unread."""

SIDECARS = frozenset(
    "txt md rst pdf html htm xml json jsonl yaml yml toml csv tsv log py ipynb sh mat npy npz pkl pt pth h5 "  # noqa: SIM905
    "db sqlite ini sha1 sha256 md5 lock zip 7z rar".split()
)
"""Extensions of files that accompany media and are not media."""

FILES_AT_ONCE = 1024
BYTES_AT_ONCE = 16 << 20

MOST_PARTS = 2048
"""Up to this many folders and containers in a folder become parts of their own; more are split into `SHARES` parts."""
SHARES = 64
EVERYTHING = ("**/*",)

T = TypeVar("T")
Fresh = Callable[[Sequence[Listed]], Sequence[bool]]
Skipped = Callable[[str], None]
"""Called with the URI of each file that is skipped for its name."""
Visit = tuple[tuple[int, int], tuple[str, ...]]
"""A local folder's identity, and the patterns that were matched in it."""
Kind = Literal["folder", "file", "tar", "parquet"]


@dataclass(frozen=True)
class Part:
    """What one task lists.

    Attributes:
        uri: of a folder, a file, a tar or a Parquet file.
        kind: which of these.
        deep: for a folder, whether the folders and containers in it belong to this part.
        size: bytes of the file.
        mtime: of the file, ns.
        named: whether the user named it, rather than a folder that contains it.
        patterns: for a folder, globs relative to it of what is taken; "**" stands for any number of folders, also none.
        share: (k, n) of a deep folder: the k-th of n parts of its folders and containers; files belong to the 0-th.
    """

    uri: str
    kind: Kind
    deep: bool = True
    size: int = 0
    mtime: int = 0
    named: bool = False
    patterns: Sequence[str] = EVERYTHING
    share: Sequence[int] = (0, 1)


@dataclass(frozen=True)
class SourceOptions:
    """How files are taken from the sources.

    Attributes:
        labels: "parent" labels a file with the name of the folder that it lies in.
        column: of Parquet sources; None: the only column of bytes.
        limits: files above max_bytes are refused unread.
    """

    labels: Literal["parent"] | None = None
    column: str | None = None
    limits: Limits = field(default_factory=Limits)


def parts(sources: Sequence[str], enough: int = 64) -> list[Part]:
    """The sources cut into parts; folders are split into their own folders until there are `enough` parts.

    Raises:
        StorageError: a source does not exist or cannot be read.
    """
    waiting = deque(map(_named, sources))
    cut: list[Part] = []
    visited = {visit for part in waiting for visit in itself(part)}
    while waiting:
        part = waiting.popleft()
        if part.kind != "folder" or len(cut) + len(waiting) >= enough:
            cut.append(part)
            continue
        inner = list(islice(contents(part, visited, files=False), MOST_PARTS + 1))
        if len(inner) > MOST_PARTS:
            cut.extend(replace(part, share=(k, SHARES)) for k in range(SHARES))
        else:
            cut.append(replace(part, deep=False))
            waiting.extend(inner)
    return cut


def _named(source: str) -> Part:
    """The part for a source that the user named: a file, a folder or a glob."""
    if not source:  # from an unset variable, say; it must not mean the current folder
        raise StorageError("a source is empty; name a folder, file, glob or URI ('.' is the folder you are in)")
    uri = absolute(source)
    entry = stat(uri)
    if entry is not None:
        return replace(part_of(entry), named=True)
    if glob.has_magic(uri):
        return _glob(uri)
    raise StorageError(f"{uri}: there is no such file or folder; check the path (pipes and devices are not read)")


def _glob(pattern: str) -> Part:
    scheme, mark, path = pattern.rpartition("://")
    names = path.split("/")
    first = next(i for i, name in enumerate(names) if glob.has_magic(name))
    folder = scheme + mark + "/".join(names[:first]) or "/"
    entry = stat(folder)
    if entry is None or not entry.folder:  # a pattern without a match is no mistake, but a missing folder is
        raise StorageError(f"{folder}: there is no such folder, so nothing can match {pattern}; check the path")
    rest = [*names[first:], *(["*"] if names[-1] == "**" else [])]
    return Part(folder, "folder", patterns=("/".join(rest),))


def part_of(entry: Entry) -> Part:
    """The part for an entry of a folder; its name decides the kind."""
    return Part(entry.uri, "folder" if entry.folder else _kind(entry.uri), True, entry.size, entry.mtime)


def _kind(uri: str) -> Kind:
    name = uri.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    return "parquet" if name.endswith((".parquet", ".pq")) else "file"


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden."""
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def contents(part: Part, visited: set[Visit], files: bool = True) -> Iterator[Part]:
    """The entries of a folder that belong to its part, no folder twice; without `files`, folders and containers."""

    def wanted(name: str, folder: bool) -> bool:
        left = _left(part.patterns, name)
        if not folder and _kind(name) == "file":
            return files and part.share[0] == 0 and "" in left
        return part.deep and _in_share(part, name) and ("" in left or (folder and bool(left)))

    for entry in entries(part.uri, wanted):
        inner = _inner(part, entry)
        if not entry.folder or _first_visit(entry, inner, visited):
            yield inner


def _inner(part: Part, entry: Entry) -> Part:
    left = _left(part.patterns, posixpath.basename(entry.uri))
    last = part.patterns[0].rpartition("/")[2]
    named = "" in left and (not glob.has_magic(last) or _kind(last) != "file")
    return replace(part_of(entry), named=named, patterns=EVERYTHING if "" in left else tuple(sorted(left)))


def _left(patterns: Sequence[str], name: str) -> set[str]:
    """What remains of the patterns below an entry of this name; "" means that the entry itself matches."""
    return {rest for pattern in patterns for rest in _rests(pattern, name)}


def _rests(pattern: str, name: str) -> set[str]:
    first, _, rest = pattern.partition("/")
    if first == "**":
        return _rests(rest, name) | (set() if hidden(name) else {pattern})
    seen = not hidden(name) or first[:1] == name[:1]
    return {rest} if seen and fnmatchcase(name, first) else set()


def _in_share(part: Part, name: str) -> bool:
    k, n = part.share
    return zlib.crc32(os.fsencode(name)) % n == k


def itself(part: Part) -> set[Visit]:
    """The visit of the local folder where a walk begins, so that a link back to it is not followed."""
    entry = stat(part.uri) if part.kind == "folder" and not is_remote(part.uri) else None
    return {(entry.identity, tuple(part.patterns))} if entry and entry.identity else set()


def _first_visit(folder: Entry, part: Part, visited: set[Visit]) -> bool:
    """Whether a folder was not yet visited under another name; this ends a loop of links."""
    if folder.identity is None:
        return True
    visit = (folder.identity, tuple(part.patterns))
    new = visit not in visited
    visited.add(visit)
    return new


def sidecar(name: str) -> bool:
    """Whether a file of this name accompanies media."""
    return name.rpartition(".")[2].lower() in SIDECARS and "." in name


def label_of(path: str, labels: Literal["parent"] | None) -> str | None:
    """The label of a file, from the folder that it lies in; None without a folder."""
    if labels is None:
        return None
    return text(posixpath.basename(posixpath.dirname(path))) or None


def refusal(size: int, limits: Limits) -> dict[str, Any]:
    """`reason` and `message` for a file that is too large to be read; empty for others."""
    if size <= limits.max_bytes:
        return {}
    return {"reason": Reason.TOO_LARGE, "message": f"The file has {size:,} bytes; max_bytes is {limits.max_bytes:,}."}


def stretches(
    items: Iterable[T], size: Callable[[T], int], most: int = FILES_AT_ONCE, most_bytes: int = BYTES_AT_ONCE
) -> Iterator[list[T]]:
    """Consecutive items, in lists that end with the item that reaches `most` items or `most_bytes` of their sizes."""
    stretch: list[T] = []
    total = 0
    for item in items:
        stretch.append(item)
        total += size(item)
        if len(stretch) >= most or total >= most_bytes:
            yield stretch
            stretch, total = [], 0
    if stretch:
        yield stretch
