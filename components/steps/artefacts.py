"""The artefacts that a run's task needs before it trains, such as a vocabulary: read from the run's folder, or made."""

from __future__ import annotations

from components.steps.context import RunContext
from components.steps.progress import Advance
from components.storage.lease import ExclusiveLease
from ssl_core.artefact import digests


def artefacts(context: RunContext, lease: ExclusiveLease) -> dict[str, str]:
    """Field of the task -> digest of its artefact; empty if the task needs none.

    Raises:
        ArtefactError, MissingArtefactError, ValueError: one cannot be made; see `components.training.artefacts`.
        TakenOver: another process has taken the run over.
    """
    spec = context.spec
    if not digests(spec.run.task):
        return {}
    from components.training.artefacts import prepare

    def show(field: str, samples: int) -> None:
        context.progress.advance(Advance(f"artefacts {field}", samples, None, {"samples_read": samples}))

    tracking = spec.tracking.uri
    run = prepare(spec.run, context.corpus, context.folder, spec.cluster, progress=show, lease=lease, tracking=tracking)
    made = digests(run.task)
    context.progress.say("artefacts " + ", ".join(f"{field} {digest}" for field, digest in made.items()))
    return made
