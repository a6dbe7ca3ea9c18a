"""The pretext home: the folder for everything that the user names no place for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def pretext_home() -> Path:
    """The folder for everything that the user names no place for: PRETEXT_HOME, else ./.pretext."""
    return Path(os.environ.get("PRETEXT_HOME") or ".pretext").absolute()


def at_home(text: str) -> str:
    """A location from a recipe, with {home} replaced by the pretext home."""
    return text.replace("{home}", str(pretext_home()))


def cache_folder(kind: str, uri: str) -> Path:
    """This machine's cache for something that lies at `uri`; deleting it costs nothing but time."""
    return pretext_home() / "cache" / kind / f"{uri.rstrip('/').rsplit('/', 1)[-1]}-{_short(uri)}"


def lock_file(kind: str, uri: str) -> Path:
    """The lock file through which processes of this machine take turns on something that lies at `uri`."""
    return pretext_home() / "locks" / f"{kind}-{_short(uri)}.lock"


def _short(uri: str) -> str:
    return hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:16]
