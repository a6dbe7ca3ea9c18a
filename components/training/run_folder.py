"""A run's folder, on this machine or behind a URI: all that a run leaves, each file and folder complete or absent.

<storage>/<name>/{artefacts/, checkpoint_00000120/, model/, checkpoint_manager_snapshot.json, _lease/,
                  evaluation.json, report.html, tracking/, fault.txt}
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.storage.files import absolute, download, entries, is_remote, join, read, remote, remove, stat, write
from components.storage.lease import ExclusiveLease
from ssl_core import folder
from ssl_core.atomic import sweep
from ssl_core.folder import MARKER, DamagedError
from ssl_core.train import checkpoint
from ssl_core.train.ranks import Checkpoint

MODEL, ARTEFACTS = "model", "artefacts"
EVALUATION, REPORT = "evaluation.json", "report.html"


@dataclass(frozen=True)
class RunFolder:
    """Local: written in place by rename. Remote: written here, then uploaded file by file, the marker last.

    Attributes:
        storage: path or URI of the folder that it lies in.
        name: of the run.
    """

    storage: str
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", absolute(self.storage))

    @property
    def uri(self) -> str:
        """Path or URI."""
        return join(self.storage, self.name)

    @property
    def remote(self) -> bool:
        """Whether it lies behind a URI."""
        return is_remote(self.storage)

    def lease(self) -> ExclusiveLease:
        """The right to write here, to be held while training; it excludes all machines that share the storage."""
        return ExclusiveLease(self.uri)

    def complete(self) -> list[str]:
        """Names of the complete checkpoints, newest first."""
        names = [name for name in self._checkpoints() if self._is_complete(name)]
        return sorted(names, key=lambda name: checkpoint.step_of(name) or 0, reverse=True)

    def sweep(self, keep: int) -> list[str]:
        """Deletes all but the newest `keep` complete checkpoints; returns the names of those kept, newest first.

        Only for the holder of the lease: what another process is writing would be deleted, too.
        """
        if not self.remote:
            checkpoint.prune(Path(self.uri), keep)
            for name in (MODEL, ARTEFACTS):  # what killed writers left of them
                sweep(Path(self.uri), name, older_than=0)
        kept = self.complete()[:keep]
        for name in set(self._checkpoints()) - set(kept):
            self.remove(name)
        return kept

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose content is intact; older ones are tried in turn."""
        if not self.remote:
            return checkpoint.load_newest(Path(self.uri))
        for name in self.complete():
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    return checkpoint.load(self._download(name, Path(scratch)))
                except (DamagedError, FileNotFoundError):
                    continue
        return None

    def holds(self, name: str) -> bool:
        """Whether a folder of that name is there and complete."""
        return self._is_complete(name)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path | None]:
        """A local path of the complete folder of that name, for the block; None if there is none."""
        if not self.holds(name):
            yield None
        elif not self.remote:
            yield Path(self.uri) / name
        else:
            with tempfile.TemporaryDirectory() as scratch:
                yield self._download(name, Path(scratch))

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Stores as `name` the complete folder that `write` writes."""
        if not self.remote:
            write(Path(self.uri) / name)
            return
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / name
            write(local)
            self.remove(name)
            for path in sorted(local.iterdir(), key=lambda path: path.name == MARKER):
                _upload(path, join(self.uri, name, path.name))

    def write(self, name: str, content: bytes | str) -> None:
        """A small file, whole or not at all."""
        write(join(self.uri, name), content.encode() if isinstance(content, str) else content)

    def uri_of(self, name: str) -> str:
        """Path or URI of a file or folder in it."""
        return join(self.uri, name)

    def read(self, name: str) -> bytes | None:
        """The file; None where there is none."""
        return read(join(self.uri, name))

    def names(self) -> list[str]:
        """The names of the files and folders in it."""
        return [entry.uri.rsplit("/", 1)[1] for entry in self._entries()]

    def remove(self, name: str) -> None:
        """Deletes a checkpoint, marker first."""
        if not self.remote:
            folder.remove(Path(self.uri) / name)
            return
        files = [entry.uri for entry in self._entries(name)]
        for uri in sorted(files, key=lambda uri: not uri.endswith("/" + MARKER)):
            remove(uri)

    def _checkpoints(self) -> list[str]:
        return [name for name in self.names() if checkpoint.step_of(name) is not None]

    def _entries(self, *names: str) -> list[Any]:
        uri = join(self.uri, *names)
        return list(entries(uri)) if stat(uri) else []

    def _is_complete(self, name: str) -> bool:
        if not self.remote:
            return folder.is_complete(Path(self.uri) / name)
        try:
            listing = json.loads(read(join(self.uri, name, MARKER)) or b"")["files"]
            sizes = {entry.uri.rsplit("/", 1)[1]: entry.size for entry in self._entries(name)}
            return all(sizes.get(file) == about["bytes"] for file, about in listing.items())
        except (ValueError, KeyError, TypeError):
            return False

    def _download(self, name: str, scratch: Path) -> Path:
        local = scratch / name
        local.mkdir()
        for entry in self._entries(name):
            download(entry.uri, local / entry.uri.rsplit("/", 1)[1])
        return local


def _upload(path: Path, uri: str) -> None:
    fs, target = remote(uri)
    fs.put_file(str(path), target)
