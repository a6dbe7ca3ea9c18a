"""Atomic writes: a file or folder is complete or absent under its name, whatever stops the process or the machine.

    with replacing(path) as temporary:
        save_file(tensors, temporary)
    replace_text(path, text)

A write is durable by default: file, name and folder are on disk before the block ends. The rule: durable where a loss
would cost work; not for what is cheap to get again, such as a cached download. Other processes see a complete file
either way.

A killed writer leaves `.<name>.<16 hex digits>.part` beside its target, or `.old` where a folder was being replaced.
The owner of the folder calls `sweep` before writing there.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

ABANDONED = 24 * 3600.0
"""Seconds without a change after which a temporary file counts as abandoned."""

_LEFTOVER = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{16}\.(?P<kind>part|old)", re.DOTALL)


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path` for a new file or folder, which replaces `path` at the end of the block.

    `path` has the old content until then, and keeps it where the block or the disk fails. Of several writers at once
    one wins. Missing parents are created. Where a folder replaces one that holds files, neither exists for a moment;
    after a kill in that moment `sweep` puts the old one back.
    """
    changed = _make_folder(path.parent)
    temporary, old = _beside(path, "part"), _beside(path, "old")
    try:
        yield temporary
        if durable:
            _sync_all(temporary)
        _rename(temporary, path, old)
        if durable:
            for folder in changed:
                _sync(folder)
    except BaseException as error:
        if (
            isinstance(error, OSError) and error.errno and error.filename is None
        ):  # raised by a write, which knows only a descriptor
            error.filename = str(temporary)
        with suppress(OSError):  # fails where something is at `path`, as it should
            os.rename(old, path)
        raise
    finally:
        _delete(temporary)
        _delete(old)


def replace_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file; see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def replace_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a UTF-8 file without changing line ends; see `replacing`."""
    replace_bytes(path, text.encode(), durable=durable)


def sweep(folder: Path, pattern: str = "*", *, older_than: float = ABANDONED) -> None:
    """Deletes what killed writers left in the folder, and puts back an old folder whose replacement is missing.

    Args:
        folder: may be missing; subfolders are not searched.
        pattern: shell pattern for the names of the targets.
        older_than: least seconds since the temporary file changed. 0 only where nobody else writes such targets.
    """
    now = time.time()
    for leftover in folder.iterdir() if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(leftover.name)
        if not match or not fnmatch(match["target"], pattern):
            continue
        with suppress(OSError):  # its writer was still at work, and has renamed it
            if match["kind"] == "old":
                if not (folder / match["target"]).exists():
                    os.rename(leftover, folder / match["target"])
                _delete(leftover)
            elif now - leftover.lstat().st_mtime >= older_than:
                _delete(leftover)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of that name is still being written, or was never finished."""
    return _LEFTOVER.fullmatch(name) is not None


def _beside(path: Path, kind: str) -> Path:
    """A name that no other thread, process or machine chooses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


def _make_folder(folder: Path) -> list[Path]:
    """Creates the folder; returns all folders that get a new entry when a file is written in it."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [folder, *(one.parent for one in missing)]


def _rename(temporary: Path, path: Path, old: Path) -> None:
    """Renames, also onto a folder that holds files: rename(2) cannot replace one, so it is renamed to `old` first."""
    while True:
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _delete(old)  # from the round before: another writer has put a newer one in its place
        with suppress(FileNotFoundError):  # another writer has renamed it
            os.rename(path, old)


def _sync_all(written: Path) -> None:
    """fsync of a file, or of a folder and all in it."""
    for folder, _, files in os.walk(written, topdown=False):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
    if not written.is_dir():
        _sync(written)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
