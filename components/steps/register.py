"""Registers the evaluated encoder as a version, and as the champion only if it is significantly better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.result import Evaluation
from components.steps.context import RunContext, StepError
from components.steps.evaluation_data import evaluated_with

if TYPE_CHECKING:
    from components.registry.register import Registered
    from components.tracking.tracker import Tracker


def register(context: RunContext, tracker: Tracker, evaluation: Evaluation) -> Registered:
    """The version, made if missing; it becomes champion only if it is significantly better on the same samples.

    Raises:
        StepError: the recipe registers nothing, the run has no model, or the tracker does not answer.
        TrackingError, ValueError, DamagedError: see `components.registry.register.register`.
    """
    from components.evaluation.evaluate import evaluate, untrained
    from components.registry.register import Candidate
    from components.registry.register import register as register_model
    from ssl_core.train.saved_model import load_model, read_config

    spec = context.spec
    registration = spec.require_registration()
    context.require_model()

    def reevaluate(champion: Path) -> Evaluation:
        context.progress.say(f"evaluate the champion of {registration.model} on this recipe's samples")
        task, model = load_model(champion)
        _, encoder = read_config(champion)
        start = untrained(task, encoder, spec.run.train.seed)
        return evaluate(task, model, start, **evaluated_with(context))[0]

    if not tracker.flush() or tracker.run_id is None:
        raise StepError(f"nothing can be registered: {tracker.trouble}; `pretext register` tries again")
    tags = {"corpus": spec.corpus.name, "corpus_version": context.corpus.version}
    tags |= {"corpus_digest": context.corpus.digest, "task": spec.task_name, "code": context.code}
    with context.model() as folder:
        size = spec.sample_format.size
        candidate = Candidate(folder, evaluation, context.key, tracker.run_id, size, tags)
        return register_model(
            candidate,
            registration.model,
            uri=spec.tracking.uri,
            margin=registration.margin,
            reevaluate=reevaluate,
        )
