"""Runs recipes in this process: the steps of components.steps, one after the other, with progress on the terminal.

A step leaves what the next one needs in the run's folder. So each can be repeated alone, in a process or on a machine
of its own, and a stopped run can be resumed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.cluster.connect import connect
from components.cluster.stopping import stoppable
from components.corpus.corpus import Corpus, CorpusError
from components.evaluation.result import Evaluation
from components.ingest.ingest import IngestReport
from components.steps.artefacts import artefacts
from components.steps.context import CorpusSpec, RunContext, resolve
from components.steps.evaluate import evaluate
from components.steps.evaluation_data import evaluated_with, factors_of, last_evaluation
from components.steps.ingest import ingest_corpora, ingest_corpus
from components.steps.pretrain import pretrain
from components.steps.progress import Advance
from components.steps.register import register
from components.steps.session import at_work, exclusively
from pipelines.config import CorpusSection, Recipe
from pipelines.console import Terminal
from ssl_core.data.decode import Limits, SampleFormat

if TYPE_CHECKING:
    from components.embed.embed import EmbedReport
    from components.registry.register import Registered


@dataclass(frozen=True)
class Summary:
    """What a pipeline run did.

    Attributes:
        context: which run it is.
        ingested: corpus -> what was ingested into it.
        evaluation: of the encoder.
        registered: the model version; None where the recipe registers nothing.
        seconds: that all of it took.
    """

    context: RunContext
    ingested: dict[str, IngestReport]
    evaluation: Evaluation
    registered: Registered | None
    seconds: float


def run_pipeline(recipe: Recipe) -> Summary:
    """All steps in order; what is done already is not repeated.

    Raises:
        StorageError, CorpusError, StepError: a step cannot be done.
        Stopped: by a signal; what is done so far is kept.
    """
    began, spec = time.monotonic(), recipe.spec()
    with stoppable(), Terminal() as progress, connect(spec.cluster.address):
        ingested = ingest_corpora(spec, progress)
        factors_of(spec.factors)  # a missing or damaged file is reported before the training
        context = resolve(spec, progress)
        with at_work(context) as (tracker, lease):
            artefacts(context, lease)
            pretrain(context, tracker, lease)
            evaluation = evaluate(context, tracker, lease)
            registered = register(context, tracker, evaluation) if spec.registration else None
        return Summary(context, ingested, evaluation, registered, time.monotonic() - began)


def artefacts_alone(recipe: Recipe) -> tuple[dict[str, str], RunContext]:
    """Make what the recipe's task needs before it trains: field -> digest. Raises what `run_pipeline` raises."""
    with stoppable(), Terminal() as progress:
        context = resolve(recipe.spec(), progress)
        with exclusively(f"run {context.name}", context.folder) as lease:
            return artefacts(context, lease), context


def pretrain_alone(recipe: Recipe) -> RunContext:
    """Train on the corpus as it is. Raises what `run_pipeline` raises."""
    with stoppable(), Terminal() as progress:
        context = resolve(recipe.spec(), progress)
        with at_work(context) as (tracker, lease):
            artefacts(context, lease)
            pretrain(context, tracker, lease)
        return context


def evaluate_alone(recipe: Recipe) -> tuple[Evaluation, RunContext]:
    """Evaluate the encoder that the recipe has trained. Raises what `run_pipeline` raises."""
    with stoppable(), Terminal() as progress:
        context = resolve(recipe.spec(), progress)
        context.require_model()
        evaluated_with(context)  # what is missing is reported before the run's record is opened
        with at_work(context) as (tracker, lease):
            return evaluate(context, tracker, lease), context


def register_alone(recipe: Recipe) -> Registered:
    """Register the encoder that the recipe has trained and evaluated. Raises what `run_pipeline` raises."""
    spec = recipe.spec()
    spec.require_registration()
    with stoppable(), Terminal() as progress:
        context = resolve(spec, progress)
        context.require_model()
        evaluation = last_evaluation(context)
        with at_work(context) as (tracker, _):
            return register(context, tracker, evaluation)


def ingest_alone(
    sources: Sequence[str],
    corpus: str,
    sample_format: Mapping[str, Any],
    limits: Mapping[str, Any],
    *,
    retry_quarantined: bool = False,
    **how: Any,
) -> IngestReport:
    """Ingests sources without a recipe.

    A value None in `sample_format` is the corpus's own, or the default for a new corpus; in `limits` the default.
    """
    try:
        known = dataclasses.asdict(Corpus.open(corpus).sample_format)
    except CorpusError:
        known = dataclasses.asdict(CorpusSection(name=corpus).sample_format())
    form, cost = ({k: v for k, v in given.items() if v is not None} for given in (sample_format, limits))
    named = CorpusSpec(corpus, tuple(sources), **how)
    with stoppable(), Terminal() as progress:
        return ingest_corpus(named, SampleFormat(**known | form), Limits(**cost), progress, retry_quarantined)


def embed_alone(model: str, source: str, out: Path, column: str | None = None, **options: Any) -> EmbedReport:
    """`components.embed.embed.embed` with its progress on stderr."""
    from components.embed.embed import embed
    from components.embed.pictures import Reading

    with stoppable(), Terminal() as progress:

        def show(done: int, refused: int) -> None:
            progress.advance(Advance("embed", done, None, {"embedded": done, "quarantined": refused}))

        return embed(model, source, out, reading=Reading(column), progress=show, **options)
