"""Several recipes side by side: each trained with the same budget on the same corpus, evaluated by the same probes.

    ComparisonRequest -> runs as `pretext run` makes them, without registration -> Comparison
    -> table, figures, one page, an MLflow run that is the parent of the recipes' runs

What is trained and evaluated already is not repeated, so the same command resumes a stopped comparison.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from components.cluster.connect import connect
from components.cluster.stopping import stoppable
from components.corpus.corpus import Corpus
from components.evaluation.comparison import SUPERVISED, Comparison, Contender, training_cost
from components.steps.artefacts import artefacts
from components.steps.context import RunContext, StepError, resolve
from components.steps.evaluate import evaluate
from components.steps.ingest import ingest_corpora
from components.steps.pretrain import pretrain
from components.steps.publish_comparison import publish_comparison
from components.steps.session import at_work, exclusively, not_taken_over
from components.tracking.provenance import started_by
from components.training.run_folder import RunFolder
from pipelines.comparison_file import ComparisonRequest
from pipelines.config import Recipe
from pipelines.console import Terminal, complain
from ssl_core.errors import PretextError
from ssl_core.tasks import TASKS

if TYPE_CHECKING:
    from components.tracking.tracker import Tracker


@dataclass(frozen=True)
class Compared:
    """The outcome, and where it is stored: `folder` has comparison.json, comparison.md, figures and comparison.html."""

    comparison: Comparison
    folder: RunFolder
    seconds: float


def compare(request: ComparisonRequest) -> Compared:
    """Train and evaluate all recipes, or resume a stopped comparison; then write their results side by side.

    Raises:
        StorageError, CorpusError: a corpus cannot be used.
        StepError: another process works on it, samples are missing, or the supervised reference cannot be made.
        Stopped: by a signal; what is done so far is kept.
    """
    began, first = time.monotonic(), request.recipes[0].spec()
    with stoppable(), Terminal() as progress, connect(first.cluster.address):
        for recipe in _first_of_each_source(request.recipes):
            ingest_corpora(recipe.spec(), progress)
        recipes = (*request.recipes, *_reference(request.recipes))
        contexts = [resolve(recipe.spec(), progress) for recipe in recipes]
        key = _key(request.name, contexts)
        folder = RunFolder(first.storage, f"{request.name}-{key[:10]}")
        with _record(request, folder, key) as tracker:
            contenders = []
            for number, context in enumerate(contexts, 1):
                progress.say(f"compare {number}/{len(contexts)}: {context.spec.name}")
                contenders.append(_train_and_evaluate(context, tracker))
            comparison = _comparison(request, contexts[0], contenders)
            answers = {context.name: _answers(context) for context in contexts}
            publish_comparison(comparison, answers, folder, tracker)
    return Compared(comparison, folder, time.monotonic() - began)


def _first_of_each_source(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes that ingest something that those before them do not."""
    chosen, seen = [], set[str]()
    for recipe in recipes:
        sections = (recipe.corpus, recipe.evaluate.train, recipe.evaluate.test)
        new = {repr(section) for section in sections if section and section.sources} - seen
        if new:
            chosen.append(recipe)
            seen |= new
    return chosen


def _reference(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The first recipe as supervised training, where there are labels and no recipe is supervised already.

    Raises:
        StepError: that recipe is not valid, for example because the labelled corpus has too few classes.
    """
    first = recipes[0]
    labelled = first.evaluate.train
    if labelled is None or any(recipe.task_name == SUPERVISED for recipe in recipes):
        return []
    from ssl_core.data.shards import Shards

    classes = len(Shards.open(Corpus.open(labelled.name).shards()).classes.names)
    task = {"name": SUPERVISED, "classes": classes} | max((_views(recipe) for recipe in recipes), key=len)
    whole = first.plain()
    corpus = whole["corpus"] | {"name": labelled.name, "sources": [], "version": None}
    name = f"{first.name[:25]}-supervised"
    own: dict[str, Any] = {"name": name, "task": task, "corpus": corpus, "register": None}
    own["tracking"] = first.tracking  # `plain` leaves its password out
    try:
        return [Recipe.model_validate(whole | own)]
    except ValidationError as error:
        why = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
        raise StepError(
            f"the supervised reference cannot train on {labelled.name} (classes: {classes}): {why} "
            "Change evaluate.train of the recipes, or add a supervised recipe to the comparison"
        ) from None


def _views(recipe: Recipe) -> dict[str, Any]:
    """The fields that the recipe's task shares with the supervised one: how images are cropped and augmented."""
    task = recipe.pretext_task()
    theirs = {field.name: field.type for field in fields(cast(Any, TASKS[SUPERVISED])) if field.init}
    shared = {f.name: getattr(task, f.name) for f in fields(cast(Any, task)) if theirs.get(f.name) == f.type}
    return {"size": shared["canvas"]} | shared if "canvas" in shared else shared


def _key(name: str, contexts: Sequence[RunContext]) -> str:
    """The comparison's key: equal for the same name and the same runs, evaluated in the same way."""
    parts = [name, *([context.key, context.spec.recipe["evaluate"]] for context in contexts)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _record(request: ComparisonRequest, folder: RunFolder, key: str) -> Iterator[Tracker]:
    """The comparison's MLflow run, the parent of those of its recipes; one process at a time works on it.

    Raises:
        StepError: another process works on it.
    """
    from components.tracking.tracker import Tracker

    tracking = request.recipes[0].tracking
    how: dict[str, Any] = {"experiment": tracking.experiment, "uri": tracking.uri, "system_metrics": 0.0}
    with (
        exclusively(folder.name, folder) as lease,
        Tracker(key, folder.uri, name=folder.name, tags=started_by(), **how) as tracker,
        not_taken_over(lease),
    ):
        names = {str(number): recipe.name for number, recipe in enumerate(request.recipes, 1)}
        tracker.params({"budget_seconds": request.budget, "recipes": names})
        yield tracker


def _train_and_evaluate(context: RunContext, parent: Tracker) -> Contender:
    """Train and evaluate one recipe; if it fails, its `failure` says why, and the others go on."""
    spec = context.spec
    who = Contender(spec.name, spec.task_name, _described(spec.run.encoder), context.name, None)
    try:
        with at_work(context, parent.run_id) as (tracker, lease):
            artefacts(context, lease)
            pretrain(context, tracker, lease)
            evaluation = evaluate(context, tracker, lease, anew=False)
            curve = [(point.step, point.metrics) for point in tracker.points()]
            return replace(who, evaluation=evaluation, **training_cost(curve, spec.run.train.batch_size))
    except PretextError as error:
        complain(f"{spec.name}: {error}")
        return replace(who, failure=str(error))


def _comparison(request: ComparisonRequest, context: RunContext, contenders: Sequence[Contender]) -> Comparison:
    unit = "GPU-seconds" if context.spec.cluster.gpus else "CPU-seconds"
    corpus, version = context.spec.corpus.name, context.corpus.version
    return Comparison(request.name, corpus, version, request.budget, unit, tuple(contenders))


def _described(spec: Any) -> str:
    """The encoder's name, and its fields that differ from the paper's."""
    values = {
        f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "name" and getattr(spec, f.name) != f.default
    }
    return ", ".join([spec.name, *(f"{name} {value}" for name, value in values.items())])


def _answers(context: RunContext) -> bytes:
    """The figure of what the task saw and answered, which the evaluation has left in the run's folder."""
    from components.tracking.tracker import logged_copy

    return context.folder.read(logged_copy("figures/answers.png")) or b""
