"""One holder at a time on one machine: advisory file locks that the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_core.errors import PretextError


class Busy(PretextError):
    """Another process holds the lock."""


def acquire(path: Path, wait: float = 0.0) -> int:
    """File descriptor of the held lock; `os.close` releases it. `wait` in seconds. Raises Busy, naming the holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait
    while not _try(descriptor):
        if time.monotonic() >= deadline:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise Busy(f"{path} is held by process {holder} of this machine")
        time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks (some NFS mounts): go on alone rather than not at all
        return True
    return True


@contextmanager
def exclusive(path: Path, wait: float = 60.0) -> Iterator[None]:
    """Holds the lock for the block; waits up to `wait` seconds, then raises Busy."""
    descriptor = acquire(path, wait)
    try:
        yield
    finally:
        os.close(descriptor)
