"""What surrounds the steps of a run: one process at a time that writes, and an MLflow run that is always closed.

with at_work(context) as (tracker, lease):
    pretrain(context, tracker, lease); evaluate(context, tracker); ...
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

    `parent`: id of the MLflow run that this one is shown below.

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
    """One process at a time writes into a folder: of this machine, by a lock in its home; of all, by a lease there.

    Raises:
        StepError: another one does; `what` names the work.
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
    """The run's MLflow record, open for the block and closed with how the block ended.

    `attempt`: at the training; the status of a run that is trained is not for a later step to spoil.
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
    """Runs of ours that say RUNNING but show no sign of life become KILLED; where the tracker is away, next time."""
    from components.tracking.errors import TrackingError
    from components.tracking.tracker import close_stale_runs

    with suppress(TrackingError, Busy):
        for run_id in close_stale_runs(uri):
            progress.say(f"closed MLflow run {run_id} as KILLED: its process ended without closing it")
