"""The trained encoder, evaluated beside its untrained network and the raw input; results and report go to the run."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from components.evaluation.result import Evaluation
from components.steps.context import RunContext, StepError
from components.steps.evaluation_data import evaluated_with, last_evaluation
from components.storage.lease import ExclusiveLease, require
from components.training.run_folder import EVALUATION, MODEL, REPORT

if TYPE_CHECKING:
    from components.evaluation.evaluate import Evidence
    from components.reports.report import About
    from components.tracking.tracker import Tracker


def evaluate(context: RunContext, tracker: Tracker, lease: ExclusiveLease, anew: bool = True) -> Evaluation:
    """The evaluation of the run's encoder; it, its figures and the report are put into the run's folder and MLflow.

    anew: False reuses the run's last evaluation if the same probes were run on the same samples.

    Raises:
        StepError: the run has no model.
        CorpusError, StorageError, FactorsError: the evaluation data cannot be read.
        InputError: the labelled corpora cannot be used.
        TakenOver: another process has taken the run over; nothing was written since then.
    """
    from components.evaluation.evaluate import evaluate as run_probes
    from components.evaluation.evaluate import evaluation_set, untrained
    from ssl_core.train.saved_model import load_model

    data = evaluated_with(context)
    if not anew:
        with suppress(StepError):  # a missing or damaged evaluation is made anew
            known = last_evaluation(context)
            if known.evaluation_set == evaluation_set(**data):
                context.progress.say(f"evaluate {context.name}: evaluated already")
                return known
    with context.model() as folder:
        task, trained = load_model(folder)
    context.progress.say(f"evaluate {context.name}")
    run = context.spec.run
    evaluation, evidence = run_probes(task, trained, untrained(task, run.encoder, run.train.seed), **data)
    require(lease.record)
    _record(context, tracker, evaluation, evidence)
    return evaluation


def _record(context: RunContext, tracker: Tracker, evaluation: Evaluation, evidence: Evidence) -> None:
    """Writes to the run's folder and MLflow; a result unlike the last is the next step of the evaluation's curves."""
    from components.reports.figures import draw
    from components.reports.report import write_report
    from components.reports.tables import evaluation_note

    folder, spec = context.folder, context.spec
    figures = draw(evaluation, evidence, tracker.points())
    for name, png in figures.items():
        tracker.figure(name, png)
    text = evaluation.to_json()
    if folder.read(EVALUATION) != text.encode():
        ordinal = sum(name.startswith("evaluation.") and name != EVALUATION for name in folder.names())
        tracker.point(ordinal, time.time_ns() // 1_000_000, evaluation.metrics())
        folder.write(f"evaluation.{ordinal}.json", text)
        folder.write(EVALUATION, text)
    tracker.records("evaluation", evaluation.table())
    if evaluation.factors:
        tracker.records("factors", evaluation.factor_table())
    for use, named, pinned in (
        ("probe train", spec.probe_train, context.probe_train),
        ("probe test", spec.probe_test, context.probe_test),
    ):
        if named and pinned:
            tracker.dataset(named.name, pinned.uri, pinned.version, pinned.digest, samples=pinned.samples, context=use)
    page = write_report(evaluation, figures, _about(context, tracker))
    tracker.html("report", page)
    tracker.tag({"mlflow.note.content": evaluation_note(evaluation)})
    folder.write(REPORT, page)


def _about(context: RunContext, tracker: Tracker) -> About:
    """The head and the foot of the report."""
    from components.reports.report import About

    spec, corpus = context.spec, context.corpus
    registered = spec.registration
    return About(
        title=context.name,
        run_key=context.key,
        corpus=spec.corpus.name,
        version=corpus.version,
        digest=corpus.digest,
        samples=corpus.samples,
        recipe=spec.recipe_text,
        model=f"models:/{registered.model}@champion" if registered else context.folder.uri_of(MODEL),
        facts={
            "task": spec.task_name,
            "encoder": spec.run.encoder.name,
            "code": context.code,
            "MLflow": tracker.link if tracker.link.startswith("http") else "pretext ui",
        },
    )
