"""Who started a run, and from which commit, in the tags that MLflow's pages show."""

from __future__ import annotations

import functools
import getpass
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def started_by() -> dict[str, str | None]:
    """Tags of who started a run, and with what."""
    return {"mlflow.user": user(), "mlflow.source.name": "pretext", "mlflow.source.type": "LOCAL"}


def user() -> str | None:
    """The user who started the run; None in a container whose user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


@functools.cache
def git_commit() -> str | None:
    """Commit of this checkout, with "+changes" if files differ from it; None in an installation without git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
