"""What a user may ingest from: folders, globs, tars, Parquet columns of bytes, here or behind a URI.

A source becomes parts, and a part is listed by one task (components.listing).

Hidden files and folders (a leading dot) and Mac archives' shadows (__MACOSX) are not looked at; files whose name says
that they accompany media (`SIDECARS`) are counted as skipped; everything else is tried, whatever it is called.
"""

from __future__ import annotations

import glob
import posixpath
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import pyarrow as pa

from components.seen import Listed
from components.storage import Entry, StorageError, absolute, entries, is_remote, naming, remote, stat, text
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
"""One row is one media file. `locator`: where to read it, as the bytes of its path; null with `data`.
`reason` and `message`: already refused, unread."""

SIDECARS = frozenset(
    "txt md rst pdf html htm xml json jsonl yaml yml toml csv tsv log py ipynb sh mat npy npz pkl pt pth h5 "  # noqa: SIM905
    "db sqlite ini sha1 sha256 md5 lock zip 7z rar".split()
)
"""Extensions of files that lie beside media and are none."""

FILES_AT_ONCE = 1024
BYTES_AT_ONCE = 16 << 20

T = TypeVar("T")
Fresh = Callable[[Sequence[Listed]], Sequence[bool]]
Kind = Literal["folder", "file", "tar", "parquet"]


@dataclass(frozen=True)
class Part:
    """What one task lists.

    Attributes:
        uri: of a folder, a file, a tar or a Parquet file.
        kind: which of these.
        deep: for a folder, whether its subfolders belong to this part.
        size: bytes of the file.
        mtime: of the file, ns.
        named: whether the user named it, and it did not turn up in a folder.
    """

    uri: str
    kind: Kind
    deep: bool = True
    size: int = 0
    mtime: int = 0
    named: bool = False


@dataclass(frozen=True)
class Taking:
    """How to take files out of sources.

    Attributes:
        labels: "parent" labels a file with the name of the folder that holds it.
        column: of Parquet sources; None finds the only column of bytes.
        limits: files above max_bytes are refused unread.
    """

    labels: Literal["parent"] | None
    column: str | None
    limits: Limits


def parts(sources: Sequence[str], enough: int = 64) -> list[Part]:
    """The sources cut into parts, folders down to where there are `enough` of them.

    Raises:
        StorageError: a source does not exist or cannot be read.
    """
    waiting = deque(part for source in sources for part in _named(source))
    cut: list[Part] = []
    visited = {identity for part in waiting for identity in itself(part)}
    while waiting:
        part = waiting.popleft()
        if part.kind != "folder" or len(cut) + len(waiting) >= enough:
            cut.append(part)
            continue
        held = list(_subparts(part.uri, visited))
        cut.append(replace(part, deep=False))
        waiting.extend(held)
    return cut


def _named(source: str) -> Iterator[Part]:
    """The source itself, or what its pattern matches."""
    if not source:  # as of an unset variable: not the folder one happens to be in
        raise StorageError("a source is empty; name a folder, file, glob or URI ('.' is the folder you are in)")
    uri = absolute(source)
    entry = stat(uri)
    if entry is not None:
        yield replace(part_of(entry), named=True)
    elif glob.has_magic(uri):
        yield from _matched(uri)
    else:
        raise StorageError(f"{uri}: there is no such file or folder, or it is neither")


def _matched(pattern: str) -> Iterator[Part]:
    folder = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0] or "/"
    if not folder.endswith(":/") and stat(folder) is None:  # no match is nothing to do, no folder is a mistake
        raise StorageError(f"{folder}: there is no such folder to look for {pattern} in")
    with naming(pattern):
        if is_remote(pattern):
            fs, path = remote(pattern)
            names = [str(fs.unstrip_protocol(name)) for name in fs.glob(path)]
        else:
            names = glob.glob(pattern, recursive=True)
    for name in sorted(names):
        entry = stat(name)
        if entry is not None and not (entry.folder and "**" in pattern):  # ** matches what is inside as well
            yield replace(part_of(entry), named=True)


def part_of(entry: Entry) -> Part:
    """What an entry is to a listing, by its name."""
    return Part(entry.uri, "folder" if entry.folder else _kind(entry.uri), True, entry.size, entry.mtime)


def _kind(uri: str) -> Kind:
    name = uri.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    return "parquet" if name.endswith((".parquet", ".pq")) else "file"


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is not meant to be seen."""
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def _subparts(uri: str, visited: set[tuple[int, int]]) -> Iterator[Part]:
    """Folders and containers in a folder; a folder already visited under another name is not entered again."""
    for entry in entries(uri):
        if hidden(posixpath.basename(entry.uri)) or (entry.folder and not first_visit(entry, visited)):
            continue
        part = part_of(entry)
        if part.kind != "file":
            yield part


def itself(part: Part) -> set[tuple[int, int]]:
    """The local folder a walk begins at: a link back to it is not followed."""
    entry = stat(part.uri) if part.kind == "folder" and not is_remote(part.uri) else None
    return {entry.identity} if entry and entry.identity else set()


def first_visit(folder: Entry, visited: set[tuple[int, int]]) -> bool:
    """Whether a folder was not visited under another name: so links that form a loop end."""
    if folder.identity is None:
        return True
    new = folder.identity not in visited
    visited.add(folder.identity)
    return new


def sidecar(name: str) -> bool:
    """Whether a file of this name accompanies media."""
    return name.rpartition(".")[2].lower() in SIDECARS and "." in name


def label_of(path: str, labels: Literal["parent"] | None) -> str | None:
    """The label a file gets from where it lies; None without a folder."""
    if labels is None:
        return None
    return text(posixpath.basename(posixpath.dirname(path))) or None


def refusal(size: int, limits: Limits) -> dict[str, Any]:
    """`reason` and `message` for a file that is too large to be read at all; nothing for others."""
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
