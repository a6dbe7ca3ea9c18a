"""What surrounds a step: one process per run, a signal that unwinds the stack, an MLflow run that is always closed."""

from __future__ import annotations

import getpass
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.corpus.corpus import corpus_uri
from components.storage.locks import Busy, exclusive
from pipelines.config import Recipe
from pipelines.console import Stopped, say
from pipelines.plan import Plan, git_commit
from ssl_core.errors import PretextError

if TYPE_CHECKING:
    from components.storage.lease import ExclusiveLease
    from components.tracking.tracker import Tracker
    from components.training.run_folder import RunFolder


class StepError(PretextError):
    """A step cannot be done; the message says why, and what to do first."""


@contextmanager
def tracked(recipe: Recipe, planned: Plan, attempt: bool, above: str | None = None) -> Iterator[Tracker]:
    """The run's MLflow record, open for the block and closed with how the block ended.

    `attempt`: at the training; the status of a run that is trained is not for a later step to spoil.
    `above`: id of the run that MLflow's page shows this one under.
    """
    from components.tracking.tracker import Tracker

    tags = {
        "pretext.task": recipe.task_name,
        "pretext.code": planned.code,
        **started_by(),
        "mlflow.source.git.commit": git_commit(),
        "mlflow.parentRunId": above,
    }
    uri = recipe.tracking.uri
    how: dict[str, Any] = {"experiment": recipe.tracking.experiment, "uri": uri, "tags": tags, "attempt": attempt}
    with Tracker(planned.key, planned.folder, name=planned.name, **how) as tracker:
        tracker.params(recipe.learning())  # what cannot change within a run; the rest may, as tags may
        tracker.tag({"pretext.recipe": recipe.plain()})
        tracker.dataset(
            planned.corpus, corpus_uri(planned.corpus), planned.version, planned.digest, samples=planned.samples
        )
        close_dead_runs(uri)
        yield tracker


def close_dead_runs(uri: str | None) -> None:
    """Runs of ours that say RUNNING but show no sign of life become KILLED; where the tracker is away, next time."""
    from components.tracking.errors import TrackingError
    from components.tracking.tracker import close_stale_runs

    with suppress(TrackingError, Busy):
        for run_id in close_stale_runs(uri):
            say(f"closed MLflow run {run_id} as KILLED: it died without a word")


@contextmanager
def locked(what: str, folder: Path, storage: RunFolder | None = None) -> Iterator[ExclusiveLease | None]:
    """One process of this machine at a time works on a folder; where it writes to `storage`, one of all machines.

    Raises:
        StepError: another one does.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / ".lock", wait=0))
            lease = stack.enter_context(storage.lease()) if storage else None
        except Busy as busy:
            raise StepError(f"{what} is being worked on: {busy}; wait for it, or stop it") from None
        yield lease


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C, so that runs are closed and nothing half-written stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name}; the same command goes on from here", 128 + number)

    def lost(ignored: sys.UnraisableHookArgs) -> None:
        """What is raised while Python is in a destructor is only printed: the signal has to come again."""
        if isinstance(ignored.exc_value, Stopped):
            threading.Timer(0.05, os.kill, (os.getpid(), ignored.exc_value.exit_code - 128)).start()
        else:
            hook(ignored)

    hook, sys.unraisablehook = sys.unraisablehook, lost
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as leaving:
        if leaving.code == signal.SIGTERM:  # `ray.init` has put a handler in place of ours that exits with the number
            stop(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def started_by() -> dict[str, str | None]:
    """Tags by which MLflow's page says where a run comes from."""
    return {"mlflow.user": user(), "mlflow.source.name": "pretext", "mlflow.source.type": "LOCAL"}


def user() -> str | None:
    """Who started the run; None in a container whose user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
