"""What surrounds the steps of a run: only one process writes at a time, and the MLflow run is always closed.

with at_work(context) as (tracker, lease):
    pretrain(context, tracker, lease); evaluate(context, tracker, lease); ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from components.steps.context import RunContext, StepError
from components.storage.files import StorageError
from components.storage.home import lock_file
from components.storage.lease import ExclusiveLease, require
from components.storage.locks import Busy, exclusive
from components.tracking.provenance import git_commit, started_by
from components.training.run_folder import RunFolder

if TYPE_CHECKING:
    from components.steps.progress import Progress
    from components.tracking.tracker import Tracker


@contextmanager
def at_work(context: RunContext, parent: str | None = None) -> Iterator[tuple[Tracker, ExclusiveLease]]:
    """The run's MLflow record and the right to write into its folder.

    `parent`: id of the MLflow run below which this one is shown.

    Raises:
        StepError: another process is at work on the run.
        TakenOver: another process has taken the run over before the end of the block.
    """
    with (
        exclusively(f"run {context.name}", context.folder) as lease,
        recorded(context, attempt=not context.trained, parent=parent) as tracker,
        not_taken_over(lease),
    ):
        yield tracker, lease


@contextmanager
def exclusively(what: str, folder: RunFolder) -> Iterator[ExclusiveLease]:
    """One process at a time writes into a folder: a lock in the home excludes this machine's, a lease there all others.

    Raises:
        StepError: another process writes there; `what` names the work.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(lock_file("run", folder.uri), wait=0))
            lease = stack.enter_context(folder.lease())
        except Busy as busy:
            raise StepError(f"{what} is being worked on: {busy}; wait for it, or stop it") from None
        yield lease


@contextmanager
def not_taken_over(lease: ExclusiveLease) -> Iterator[None]:
    """Stands inside of a tracker's block, which uploads nothing into a folder that is another process's by now.

    Raises:
        TakenOver: the lease is gone at the end of the block, however that ended.
    """
    try:
        yield
    finally:
        with suppress(StorageError):  # nothing can be uploaded either
            require(lease.record)


@contextmanager
def recorded(context: RunContext, attempt: bool, parent: str | None = None) -> Iterator[Tracker]:
    """The run's MLflow record, open for the block, and closed with the status in which the block ended.

    `attempt`: whether this is an attempt at the training; a later step must not spoil the status of a trained run.
    """
    from components.tracking.tracker import Tracker

    spec, corpus = context.spec, context.corpus
    tags = {
        "pretext.task": spec.task_name,
        "pretext.code": context.code,
        **started_by(),
        "mlflow.source.git.commit": git_commit(),
        "mlflow.parentRunId": parent,
    }
    uri = spec.tracking.uri
    how: dict[str, Any] = {"experiment": spec.tracking.experiment, "uri": uri, "tags": tags, "attempt": attempt}
    with Tracker(context.key, context.folder.uri, name=context.name, **how) as tracker:
        tracker.params(spec.learning)  # what cannot change within a run; the rest may, as tags may
        tracker.tag({"pretext.recipe": spec.recipe})
        tracker.dataset(spec.corpus.name, corpus.uri, corpus.version, corpus.digest, samples=corpus.samples)
        close_dead_runs(uri, context.progress)
        yield tracker


def close_dead_runs(uri: str | None, progress: Progress) -> None:
    """Closes as KILLED our RUNNING runs without a sign of life; does nothing if the tracker is away."""
    from components.tracking.errors import TrackingError
    from components.tracking.tracker import close_stale_runs

    with suppress(TrackingError, Busy):
        for run_id in close_stale_runs(uri):
            progress.say(f"closed MLflow run {run_id} as KILLED: its process ended without closing it")
