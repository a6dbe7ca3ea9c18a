"""Trains on Ray, or resumes the run, or does nothing if its model exists."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from components.cluster.stopping import Stopped, stop_signals
from components.steps.context import RunContext, StepError
from components.steps.progress import Advance
from components.storage.lease import ExclusiveLease
from ssl_core.artefact import digests

if TYPE_CHECKING:
    from components.tracking.tracker import Tracker
    from components.training.pretrain import Outcome, Point


def pretrain(context: RunContext, tracker: Tracker, lease: ExclusiveLease) -> Outcome | None:
    """How the training ended, FINISHED; None if the run has its model already. Missing artefacts are made first.

    Each point of the curves goes to the tracker once. The tracker is persisted before each checkpoint, so that a
    process that resumes from the checkpoint, here or on another machine, has all points up to it.

    Raises:
        StepError: it failed; the message says why, as does a tag of the MLflow run.
        Stopped: a signal stopped it; a checkpoint is written, and the same call resumes.
        TakenOver: another process has taken the run over.
        ArtefactError, MissingArtefactError: see `components.training.artefacts.prepare`.
    """
    from components.training.artefacts import prepare
    from components.training.pretrain import pretrain as train

    spec, progress = context.spec, context.progress
    if context.trained:
        progress.say(f"pretrain {context.name}: trained already (same recipe, corpus and code)")
        return None
    if not context.folder.complete() and (other := context.trained_otherwise()):
        progress.say(f"pretrain {context.name} is a new run: {other}")
    run = prepare(spec.run, context.corpus, context.folder, spec.cluster, lease=lease, tracking=spec.tracking.uri)
    tracker.params({"artefacts": digests(run.task)})
    samples, version = context.corpus.samples, context.corpus.version
    progress.say(f"pretrain {context.name}: {samples:,} samples of {spec.corpus.name} version {version}")

    def sink(point: Point) -> None:
        tracker.point(point.step, point.time_ms, point.metrics)
        progress.advance(Advance("pretrain", point.step, point.steps, point.metrics))

    outcome = train(
        run,
        context.corpus,
        context.folder,
        spec.cluster,
        sink=sink,
        before_checkpoint=tracker.persist,
        lease=lease,
    )
    if outcome.status == "KILLED":
        name = next((each for each in stop_signals() if each.name in outcome.reason), signal.SIGTERM)
        where = f"step {outcome.step} of {outcome.steps}"
        raise Stopped(f"{outcome.reason} at {where}; the same command goes on", 128 + name)
    if outcome.status == "FAILED":
        tracker.tag({"pretext.failure": outcome.reason})
        raise StepError(f"pretrain {context.name}: {outcome.reason}")
    return outcome
