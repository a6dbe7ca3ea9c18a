"""Local and remote files: paths through the operating system, URIs with a scheme through fsspec; errors name the URI.

A local file's URI is its absolute path as it stands, so '#', '%', '?' and blanks have no special meaning; only a URI
that the user writes as file://… is percent-decoded (RFC 8089). Credentials and endpoints come from the environment
(AWS_ENDPOINT_URL, …).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat as modes
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from ssl_core import atomic
from ssl_core.errors import ENVIRONMENT, PretextError

SORTED_AT_ONCE = 65_536
"""Names of one folder that are sorted together; a larger folder is listed in sorted parts, so memory stays bounded."""


class StorageError(PretextError):
    """A source or a corpus cannot be read or written; the message names the URI."""


@dataclass(frozen=True)
class Entry:
    """One file or folder.

    Attributes:
        uri: absolute path, or URI with scheme.
        folder: whether it holds entries of its own.
        size: bytes.
        mtime: last change, ns since 1970; 0 where the storage does not report it.
        identity: (device, inode) of a local folder, which reveals a loop of links.
    """

    uri: str
    folder: bool
    size: int = 0
    mtime: int = 0
    identity: tuple[int, int] | None = None


def is_remote(uri: str) -> bool:
    """Whether fsspec handles it."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """The one spelling of a location: an absolute path, or a URI without a trailing slash."""
    if is_remote(uri):
        return uri.rstrip("/")
    path = unquote(urlsplit(uri).path) if uri.startswith("file://") else os.path.expanduser(uri)
    return os.path.abspath(path)


def join(folder: str, *names: str) -> str:
    """`folder`/name/… in either notation."""
    return "/".join([folder.rstrip("/"), *names])


def text(uri: str) -> str:
    """The URI as valid Unicode: bytes of a file name that are not UTF-8 become \\x…."""
    return uri.encode(errors="surrogateescape").decode(errors="backslashreplace")


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn whatever a storage raises inside the block into a StorageError that gives the URI and the reason."""
    try:
        yield
    except PretextError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(f"{uri}: there is no such file or folder ({_line(error)})") from error
    except PermissionError as error:
        raise StorageError(f"{uri}: permission denied; check its mode or the credentials") from error
    except Exception as error:
        if isinstance(error, OSError) or is_remote(uri):  # a remote client raises types of its own
            raise StorageError(f"{uri}: {_line(error)}") from error
        raise


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        return ENVIRONMENT[error.errno]
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def remote(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, without its listing cache (which would hide new files), and the path in it."""
    import fsspec

    with storage_errors(uri):
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(uri, use_listings_cache=False))


def stat(uri: str) -> Entry | None:
    """The entry at `uri`, links followed; None where there is none, or neither file nor folder (a pipe, a device)."""
    with storage_errors(uri):
        if not is_remote(uri):
            try:
                return _local_entry(uri, os.stat(uri))
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                if error.errno == errno.ELOOP:  # a link to itself leads nowhere
                    return None
                raise
        fs, path = remote(uri)
        try:
            return _remote_entry(fs, fs.info(path))
        except FileNotFoundError:
            return None


def entries(uri: str, wanted: Callable[[str, bool], bool] = lambda name, folder: True) -> Iterator[Entry]:
    """The entries of a folder, links followed, by name; raises StorageError where it cannot be read.

    Args:
        uri: of the folder.
        wanted: whether to keep an entry, from its name and whether it is a folder; called before anything else.
    """
    with storage_errors(uri):
        if is_remote(uri):
            fs, path = remote(uri)
            for page in _pages(fs, path.rstrip("/")):
                listed = (_remote_entry(fs, info) for info in sorted(page, key=lambda info: info["name"]))
                yield from (entry for entry in listed if wanted(posixpath.basename(entry.uri), entry.folder))
            return
        with os.scandir(uri) as scanned:
            chosen = (entry.path for entry in scanned if wanted(entry.name, _leads_to_folder(entry)))
            while stretch := list(islice(chosen, SORTED_AT_ONCE)):
                yield from filter(None, map(stat, sorted(stretch)))


def _pages(fs: Any, path: str) -> Iterator[list[dict[str, Any]]]:
    """The entries of a remote folder as fsspec describes them: a thousand at a time from S3, else all at once."""
    bucket, key, _ = fs.split_path(path) if hasattr(fs, "call_s3") else ("", "", None)
    if not bucket:
        yield [info for info in fs.ls(path or "/", detail=True) if info["name"].rstrip("/") != path]
        return
    request = {**fs.req_kw, "Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "/"}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        infos = [{"Key": one["Prefix"].rstrip("/"), "type": "directory"} for one in page.get("CommonPrefixes", [])]
        infos += [{**one, "type": "file", "size": one["Size"]} for one in page.get("Contents", [])]
        yield [{**one, "name": f"{bucket}/{one['Key']}"} for one in infos if one["Key"] != request["Prefix"]]
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; `stat` decides
        return False


def _local_entry(path: str, found: os.stat_result) -> Entry | None:
    folder = modes.S_ISDIR(found.st_mode)
    if not folder and not modes.S_ISREG(found.st_mode):
        return None
    identity = (found.st_dev, found.st_ino) if folder else None
    return Entry(path, folder, found.st_size, found.st_mtime_ns, identity)


def _remote_entry(fs: Any, info: dict[str, Any]) -> Entry:
    uri = str(fs.unstrip_protocol(info["name"]))
    return Entry(uri.rstrip("/"), info["type"] == "directory", int(info.get("size") or 0), _mtime(info))


def _mtime(info: dict[str, Any]) -> int:
    """ns since 1970, or 0; each storage reports it under a name and type of its own."""
    for key in ("LastModified", "mtime", "updated", "last_modified"):
        value = info.get(key)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return round(value.replace(tzinfo=value.tzinfo or UTC).timestamp() * 1000) * 1_000_000
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0


def open_file(uri: str) -> IO[bytes]:
    """The file for reading; FileNotFoundError is not converted, because the caller knows what it means."""
    if not is_remote(uri):
        return open(uri, "rb")
    fs, path = remote(uri)
    return cast("IO[bytes]", fs.open(path, "rb"))


def read(uri: str) -> bytes | None:
    """The whole file, without a look-up of its type first; None where there is none."""
    with storage_errors(uri):
        try:
            with open_file(uri) as file:
                return file.read()
        except FileNotFoundError:
            return None


def write(uri: str, data: bytes, *, durable: bool = True) -> None:
    """A small file, whole or not at all; `durable` as in `ssl_core.atomic`, for local ones."""
    with storage_errors(uri):
        if is_remote(uri):
            fs, path = remote(uri)
            fs.pipe_file(path, data)
        else:
            atomic.replace_bytes(Path(uri), data, durable=durable)


@contextmanager
def replacing(uri: str) -> Iterator[Path]:
    """A local path to write a file at; at the end of the block it is at `uri`, durable and whole, or not at all."""
    if not is_remote(uri):
        with storage_errors(uri), atomic.replacing(Path(uri)) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / uri.rsplit("/", 1)[1]
        yield path  # outside `storage_errors`: an error of the writer is not one of the remote storage
        with storage_errors(uri):
            fs, target = remote(uri)
            fs.put_file(str(path), target)


def download(uri: str, path: Path) -> None:
    """Copy a remote file to `path`, whole or not at all; not durable, since it can be fetched again."""
    with storage_errors(uri), atomic.replacing(path, durable=False) as temporary:
        fs, source = remote(uri)
        fs.get_file(source, str(temporary))


def remove(uri: str) -> None:
    """Delete a file or an empty local folder; nothing there is fine."""
    with storage_errors(uri):
        if is_remote(uri):
            fs, path = remote(uri)
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                return
        elif os.path.isdir(uri) and not os.path.islink(uri):
            try:
                os.rmdir(uri)
            except FileNotFoundError:
                return
        else:
            Path(uri).unlink(missing_ok=True)
