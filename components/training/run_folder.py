"""A run's folder, on this machine or behind a URI: its artefacts, checkpoints and model, each whole or not there.

<storage>/<name>/{artefacts/, checkpoint_00000120/, model/, checkpoint_manager_snapshot.json, _lease/, fault.txt}
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.storage.files import absolute, download, entries, is_remote, join, read, remote, remove, stat
from components.storage.lease import ExclusiveLease
from ssl_core import folder
from ssl_core.folder import MARKER, DamagedError
from ssl_core.train import checkpoint
from ssl_core.train.ranks import Checkpoint

MODEL, ARTEFACTS = "model", "artefacts"


class RunFolder:
    """Local: written in place by rename. Remote: written here, then uploaded file by file, the marker last."""

    def __init__(self, storage: str, name: str) -> None:
        self.storage, self.name = absolute(storage), name
        self.uri = join(self.storage, name)
        self.remote = is_remote(self.uri)

    def lease(self) -> ExclusiveLease:
        """The right to write here, to be held while training; other machines that reach the storage respect it."""
        return ExclusiveLease(self.uri)

    def complete(self) -> list[str]:
        """Names of the complete checkpoints, newest first."""
        names = [name for name in self._checkpoints() if self._is_complete(name)]
        return sorted(names, key=lambda name: checkpoint.step_of(name) or 0, reverse=True)

    def sweep(self, keep: int) -> list[str]:
        """Deletes all but the newest `keep` complete checkpoints; returns the names of those, newest first.

        Only for the holder of the lease: what another process is writing would go, too.
        """
        if not self.remote:
            checkpoint.prune(Path(self.uri), keep)
        kept = self.complete()[:keep]
        for name in set(self._checkpoints()) - set(kept):
            self.remove(name)
        return kept

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole to the last byte, falling back to the ones before it."""
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
        """A complete folder of that name on this machine, for the block; None where there is none."""
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

    def remove(self, name: str) -> None:
        """Deletes a checkpoint, marker first."""
        if not self.remote:
            folder.remove(Path(self.uri) / name)
            return
        files = [entry.uri for entry in self._entries(name)]
        for uri in sorted(files, key=lambda uri: not uri.endswith("/" + MARKER)):
            remove(uri)

    def _checkpoints(self) -> list[str]:
        names = [entry.uri.rsplit("/", 1)[1] for entry in self._entries()]
        return [name for name in names if checkpoint.step_of(name) is not None]

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
