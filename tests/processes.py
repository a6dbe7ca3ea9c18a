"""Which processes run below one; those that ended, reaped or not (zombies), are none."""

from __future__ import annotations

import time

import psutil


def running(name: str, below: psutil.Process | None = None) -> list[psutil.Process]:
    """Descendants of `below` (this process if not given) whose command line holds `name`."""
    try:
        found = (below or psutil.Process()).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if name in command_of(process)]


def command_of(process: psutil.Process) -> str:
    """The command line, empty for a process that has ended, maybe at this very moment."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def ends(process: psutil.Process, seconds: float) -> bool:
    """Waits until it is gone, or a zombie that nobody has reaped yet; False if it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while not _has_ended(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
