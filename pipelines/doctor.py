"""`pretext doctor`: is this machine fit to pretrain on, and if not, how to mend it?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from components.corpus.corpus import Corpus, CorpusError, corpora
from components.machine.checks import (
    accelerators,
    collective_backend,
    decode_in_sandbox,
    ray_answers,
    tracking_answers,
)
from components.storage.files import StorageError
from components.storage.home import pretext_home
from ssl_core.errors import user_message

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was checked.
        state: ok; warn: works, with a limit; fail: runs will stop.
        detail: the result, and how to mend it where the state is not ok.
    """

    subject: str
    state: Literal["ok", "warn", "fail"]
    detail: str


def examine() -> Iterator[Finding]:
    """Checks everything that a run needs, with a finding for each; a check that raises is a `fail`."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "home": _home,
        "memory": _memory,
        "shared memory": _shared_memory,
        "accelerators": _accelerators,
        "collectives": _collectives,
        "decoding": _decoding,
        "ray": _ray,
        "mlflow": _mlflow,
        "corpora": _corpora,
    }
    for subject, check in checks.items():
        try:
            yield check()
        except Exception as error:  # any failure is the finding
            first = str(error).partition("\n")[0]
            yield Finding(subject, "fail", user_message(error) or f"{type(error).__name__}: {first}")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fit = sys.version_info >= (3, 11)
    return Finding("python", "ok" if fit else "fail", version if fit else f"{version}; pretext needs 3.11 or newer")


def _packages() -> Finding:
    names = ("torch", "ray", "mlflow", "pyarrow", "deltalake")
    return Finding("packages", "ok", ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names))


def _home() -> Finding:
    home = pretext_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home):
            pass
    except OSError as error:
        mend = "set PRETEXT_HOME to a folder that you may write in"
        return Finding("home", "fail", f"{home} cannot be written: {error.strerror}; {mend}")
    free = shutil.disk_usage(home).free / GIB
    shown = f"{home} is writable, {free:.0f} GiB free"
    return Finding(
        "home",
        "ok" if free > 5 else "warn",
        shown if free > 5 else f"{shown}; free some, or set PRETEXT_HOME",
    )


def _memory() -> Finding:
    total, cores = psutil.virtual_memory().total / GIB, len(os.sched_getaffinity(0))
    state: Literal["ok", "warn"] = "ok" if total >= 4 else "warn"
    hint = "" if state == "ok" else "; two workers need 4 GiB, so use --set cluster.workers=1"
    return Finding("memory", state, f"{total:.0f} GiB, {cores} cores{hint}")


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Finding("shared memory", "warn", "no /dev/shm; Ray will keep objects on disk, which is slow")
    free = shutil.disk_usage(shm).free / GIB
    hint = "" if free >= 1 else "; give the container a larger /dev/shm (docker --shm-size)"
    return Finding("shared memory", "ok" if free >= 1 else "warn", f"{free:.1f} GiB free in /dev/shm{hint}")


def _accelerators() -> Finding:
    names = accelerators()
    return Finding("accelerators", "ok", ", ".join(names) if names else "none; training runs on the CPU")


def _collectives() -> Finding:
    return Finding("collectives", "ok", f"{collective_backend()} summed a tensor")


def _decoding() -> Finding:
    return Finding("decoding", "ok", decode_in_sandbox())


def _ray() -> Finding:
    return Finding("ray", "ok", ray_answers())


def _mlflow() -> Finding:
    return Finding("mlflow", "ok", tracking_answers())


def _corpora() -> Finding:
    shown, damaged = [], []
    for name in corpora():
        try:
            shown.append(f"{name} (version {Corpus.open(name).version})")
        except (CorpusError, StorageError) as error:
            damaged.append(f"{name} cannot be read: {error}")
    if damaged:
        return Finding("corpora", "fail", f"{'; '.join(damaged)}; move it out of the home and ingest it again")
    none = "none yet; `pretext ingest SOURCE --corpus NAME` makes one"
    return Finding("corpora", "ok", ", ".join(shown) or none)
