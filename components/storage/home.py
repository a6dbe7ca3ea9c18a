"""The pretext home: where everything lies that is not named otherwise."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def pretext_home() -> Path:
    """Where everything lives that is not named otherwise: PRETEXT_HOME, else ./.pretext."""
    return Path(os.environ.get("PRETEXT_HOME") or ".pretext").absolute()


def at_home(text: str) -> str:
    """A recipe's location, with the pretext home where it says {home}."""
    return text.replace("{home}", str(pretext_home()))


def cache_folder(kind: str, uri: str) -> Path:
    """Where this machine keeps what belongs to something that lies at `uri`; deleting it loses nothing but time."""
    return pretext_home() / "cache" / kind / f"{uri.rstrip('/').rsplit('/', 1)[-1]}-{_short(uri)}"


def lock_file(kind: str, uri: str) -> Path:
    """The file by which the processes of this machine take turns at something that lies at `uri`."""
    return pretext_home() / "locks" / f"{kind}-{_short(uri)}.lock"


def _short(uri: str) -> str:
    return hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:16]
