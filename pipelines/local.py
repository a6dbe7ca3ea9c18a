"""The pipeline in one process: ingest -> artefacts -> pretrain -> evaluate -> register, each step also alone.

A step leaves what the next one needs in the run folder (model/, evaluation.json, report.html), so that it can be
repeated alone, and a run that was stopped goes on where it stood.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.cluster.connect import connect
from components.corpus.corpus import Corpus, CorpusError
from components.evaluation.result import Evaluation
from components.ingest.ingest import IngestReport, Progress, ingest
from components.storage.home import pretext_home
from pipelines.config import CorpusSection, LabelledSection, Recipe
from pipelines.console import Bar, Stopped, duration, say
from pipelines.plan import Plan, plan
from pipelines.session import StepError, locked, stoppable, tracked
from pipelines.summary import markdown
from ssl_core.artefact import digests
from ssl_core.data.decode import Limits, SampleFormat

if TYPE_CHECKING:
    from components.embed.embed import EmbedReport
    from components.evaluation.evaluate import Split
    from components.evaluation.factors import FactorTable
    from components.registry.register import Registered
    from components.storage.lease import ExclusiveLease
    from components.tracking.tracker import Tracker
    from components.training.pretrain import Point
    from components.training.run_folder import RunFolder
    from ssl_core.train.run import Run

MODEL, EVALUATION, REPORT = "model", "evaluation.json", "report.html"
"""What the steps leave in the run folder."""


@dataclass(frozen=True)
class Summary:
    """What a pipeline run did.

    Attributes:
        plan: the run's identity.
        ingested: corpus -> what was taken in.
        evaluation: of the encoder.
        registered: the model version; None where the recipe registers nothing.
        report: path of the HTML report.
        seconds: it all took.
    """

    plan: Plan
    ingested: dict[str, IngestReport]
    evaluation: Evaluation
    registered: Registered | None
    report: Path
    seconds: float


def run_pipeline(recipe: Recipe) -> Summary:
    """All steps in order; what is done already is not done again.

    Raises:
        StorageError, CorpusError, StepError: a step cannot be done.
        Stopped: by a signal; what was reached is kept.
    """
    began = time.monotonic()
    with stoppable(), connect(recipe.cluster.address):
        ingested = ingest_step(recipe)
        factors_of(recipe)  # a file that is missing or damaged is told before the training
        planned = plan(recipe)
        with at_work(recipe, planned) as (tracker, lease):
            pretrain_step(recipe, planned, tracker, lease)
            evaluation = evaluate_step(recipe, planned, tracker)
            registered = register_step(recipe, planned, tracker, evaluation) if recipe.register_ else None
        return Summary(planned, ingested, evaluation, registered, planned.folder / REPORT, time.monotonic() - began)


def artefacts_alone(recipe: Recipe) -> tuple[dict[str, str], Plan]:
    """Make what the recipe's task needs before it trains: field -> digest. Raises what `run_pipeline` raises."""
    with stoppable():
        planned = plan(recipe)
        folder = run_folder(recipe, planned)
        with locked(f"run {planned.name}", planned.folder, None if folder.holds(MODEL) else folder) as lease:
            return digests(artefacts_step(recipe, planned, lease).task), planned


def pretrain_alone(recipe: Recipe) -> Plan:
    """Train on the corpus as it is. Raises what `run_pipeline` raises."""
    with stoppable():
        planned = plan(recipe)
        with at_work(recipe, planned) as (tracker, lease):
            pretrain_step(recipe, planned, tracker, lease)
        return planned


def evaluate_alone(recipe: Recipe) -> tuple[Evaluation, Plan]:
    """Evaluate the encoder that the recipe has trained. Raises what `run_pipeline` raises."""
    with stoppable():
        planned = plan(recipe)
        require_model(recipe, planned)
        evaluated_with(recipe, planned)  # what is missing for it is told before the run's record is opened
        with at_work(recipe, planned) as (tracker, _):
            return evaluate_step(recipe, planned, tracker), planned


def register_alone(recipe: Recipe) -> Registered:
    """Register the encoder that the recipe has trained and evaluated. Raises what `run_pipeline` raises."""
    if recipe.register_ is None:
        raise StepError("the recipe has no section `register`; add `register: {model: NAME}`")
    with stoppable():
        planned = plan(recipe)
        require_model(recipe, planned)
        evaluation = read_evaluation(planned)
        with at_work(recipe, planned) as (tracker, _):
            return register_step(recipe, planned, tracker, evaluation)


@contextmanager
def at_work(recipe: Recipe, planned: Plan, above: str | None = None) -> Iterator[tuple[Tracker, ExclusiveLease | None]]:
    """The run's MLflow record, and unless it is trained already, the right to write into its storage.

    `above`: id of the MLflow run under which this one is shown.

    Raises:
        StepError: another process is at work on the run.
    """
    folder = run_folder(recipe, planned)
    trained = folder.holds(MODEL)
    with (
        locked(f"run {planned.name}", planned.folder, None if trained else folder) as lease,
        tracked(recipe, planned, attempt=not trained, above=above) as tracker,
    ):
        yield tracker, lease


def ingest_step(recipe: Recipe) -> dict[str, IngestReport]:
    """Ingest the sources of the recipe's corpora, the unlabelled one first."""
    reports: dict[str, IngestReport] = {}
    for section in (recipe.corpus, recipe.evaluate.train, recipe.evaluate.test):
        if section is None or not section.sources:
            continue
        sources = [at_home(source) for source in section.sources]
        _require_samples(section.sources)
        options: dict[str, Any] = {
            "sample_format": recipe.corpus.sample_format(),
            "limits": recipe.corpus.limits.build(),
        }
        if isinstance(section, LabelledSection):
            options["labels"] = section.labels
        else:
            options["column"] = section.column
        reports[section.name] = ingest_watched(sources, section.name, **options)
    return reports


def _require_samples(sources: Sequence[str]) -> None:
    """A sample corpus that was not written yet is told with the command that writes it."""
    for source in sources:
        made = re.match(r"\{home\}/samples/(digits|shapes|photos)(?=/|$)", source)
        if made and not Path(at_home(made[0])).exists():
            raise StepError(f"there are no samples at {at_home(made[0])}; `pretext samples {made[1]}` writes them")


def at_home(text: str) -> str:
    """A recipe's location, with the pretext home where it says {home}."""
    return text.replace("{home}", str(pretext_home()))


def ingest_alone(
    sources: list[str], corpus: str, sample_format: Mapping[str, Any], limits: Mapping[str, Any], **options: Any
) -> IngestReport:
    """Ingest by hand; of `sample_format`, None is as in the corpus, or the default for a new one; so are limits."""
    try:
        known = dataclasses.asdict(Corpus.open(corpus).sample_format)
    except CorpusError:
        known = dataclasses.asdict(CorpusSection(name=corpus).sample_format())
    form, cost = ({k: v for k, v in given.items() if v is not None} for given in (sample_format, limits))
    with stoppable():
        return ingest_watched(
            sources, corpus, sample_format=SampleFormat(**known | form), limits=Limits(**cost), **options
        )


def ingest_watched(sources: list[str], corpus: str, **options: Any) -> IngestReport:
    """`components.ingest.ingest.ingest` with its progress on stderr."""
    with Bar(f"ingest {corpus}") as bar:

        def show(now: Progress) -> None:
            note = f"{now.added:,} added, {now.quarantined:,} quarantined, {now.rate:,.0f}/s"
            bar.update(now.added + now.quarantined, None, note)

        report = ingest(sources, corpus, progress=show, **options)
    say(
        f"ingest {corpus}: {report.added:,} added, {report.known:,} known, {report.quarantined:,} quarantined "
        f"in {duration(report.seconds)}; version {report.version}"
    )
    return report


def embed_alone(model: str, source: str, out: Path, **options: Any) -> EmbedReport:
    """`components.embed.embed.embed` with its progress on stderr."""
    from components.embed.embed import embed

    with stoppable(), Bar("embed") as bar:
        return embed(
            model, source, out, progress=lambda n, bad: bar.update(n, None, f"{n:,} done, {bad:,} refused"), **options
        )


def artefacts_step(recipe: Recipe, planned: Plan, lease: ExclusiveLease | None) -> Run:
    """What is to be trained, with the artefacts that the task needs first: found in the run's storage, or made."""
    run = recipe.run()
    if not digests(run.task):
        return run
    from components.training.artefacts import prepare

    with Bar("artefacts") as bar:
        run = prepare(
            run,
            recipe.corpus.name,
            planned.version,
            storage=storage_of(recipe, planned),
            name=planned.name,
            gpus=recipe.cluster.gpus,
            progress=lambda field, samples: bar.update(samples, None, f"{field}: {samples:,} samples read"),
            address=recipe.cluster.address,
            lease=lease,
            tracking=recipe.tracking.uri,
        )
    say("artefacts " + ", ".join(f"{field} {digest}" for field, digest in digests(run.task).items()))
    return run


def pretrain_step(recipe: Recipe, planned: Plan, tracker: Tracker, lease: ExclusiveLease | None) -> None:
    """Train, or go on where the run stands, or do nothing where its model is there; its artefacts first."""
    from components.training.pretrain import pretrain

    run = artefacts_step(recipe, planned, lease)
    if run_folder(recipe, planned).holds(MODEL):
        say(f"pretrain {planned.name}: trained already (same recipe, corpus and code)")
        return
    tracker.params({"artefacts": digests(run.task)})
    say(f"pretrain {planned.name}: {planned.samples:,} samples of {planned.corpus} version {planned.version}")
    with Bar("pretrain") as bar:

        def sink(point: Point) -> None:
            tracker.point(point.step, point.time_ms, point.metrics)
            bar.update(point.step, point.steps, _progress_note(point))

        outcome = pretrain(
            run,
            recipe.corpus.name,
            planned.version,
            storage=storage_of(recipe, planned),
            name=planned.name,
            workers=recipe.cluster.workers,
            gpus=recipe.cluster.gpus,
            sink=sink,
            max_failures=recipe.cluster.max_failures,
            address=recipe.cluster.address,
            lease=lease,
        )
    if outcome.status == "KILLED":
        code = 128 + (signal.SIGINT if "SIGINT" in outcome.reason else signal.SIGTERM)
        raise Stopped(f"{outcome.reason} at step {outcome.step} of {outcome.steps}; the same command goes on", code)
    if outcome.status == "FAILED":
        tracker.tag({"pretext.failure": outcome.reason})
        raise StepError(f"pretrain {planned.name}: {outcome.reason}")


def _progress_note(point: Point) -> str:
    shown = [f"loss {point.metrics['loss']:.3f}"] if "loss" in point.metrics else []
    shown += [f"accuracy {point.metrics['accuracy']:.2f}"] if "accuracy" in point.metrics else []
    shown += [f"{point.metrics['samples_per_s']:,.0f} samples/s"] if "samples_per_s" in point.metrics else []
    shown += [f"{duration(point.metrics['seconds_left'])} left"] if "seconds_left" in point.metrics else []
    return f"step {point.step}/{point.steps}  " + ", ".join(shown)


def evaluate_step(recipe: Recipe, planned: Plan, tracker: Tracker) -> Evaluation:
    """Evaluate the trained encoder beside its untrained self and raw pixels; writes the evaluation and the report."""
    from components.evaluation.evaluate import evaluate, untrained
    from components.reports import figures
    from components.reports.report import About, write_report
    from ssl_core.train.checkpoint import load_model

    with model_of(recipe, planned) as folder:
        task, trained = load_model(folder)
    say(f"evaluate {planned.name}")
    start = untrained(task, recipe.encoder.build(), recipe.train.seed)
    evaluation, evidence = evaluate(task, trained, start, **evaluated_with(recipe, planned))
    drawn = figures.draw(evaluation, evidence, tracker.points())
    for name, png in drawn.items():
        tracker.figure(name, png)
    record_evaluation(planned, tracker, evaluation)
    for use, section in (("probe train", recipe.evaluate.train), ("probe test", recipe.evaluate.test)):
        if section is not None:
            corpus = Corpus.open(section.name)
            what = (section.name, corpus.uri, corpus.version, corpus.digest())
            tracker.dataset(*what, samples=corpus.count(), context=use)
    model = f"models:/{recipe.register_.model}@champion" if recipe.register_ else str(planned.folder / MODEL)
    facts = {
        "task": recipe.task_name,
        "encoder": recipe.encoder.name,
        "code": planned.code,
        "MLflow": tracker.link if tracker.link.startswith("http") else "pretext ui",
    }
    whole = yaml.safe_dump(recipe.plain(), sort_keys=False)
    where = (planned.name, planned.key, planned.corpus, planned.version, planned.digest, planned.samples)
    page = write_report(evaluation, drawn, About(*where, recipe=whole, model=model, facts=facts))
    tracker.html("report", page)
    tracker.tag({"mlflow.note.content": markdown(evaluation)})
    replace_text(planned.folder / REPORT, page)
    return evaluation


def reused_evaluation(recipe: Recipe, planned: Plan, tracker: Tracker) -> Evaluation:
    """The run's evaluation where it has one by the same probes on the same samples, else `evaluate_step`."""
    from components.evaluation.evaluate import evaluation_set

    with suppress(StepError):
        known = read_evaluation(planned)
        if known.evaluation_set == evaluation_set(**evaluated_with(recipe, planned)):
            say(f"evaluate {planned.name}: evaluated already")
            return known
    return evaluate_step(recipe, planned, tracker)


def record_evaluation(planned: Plan, tracker: Tracker, evaluation: Evaluation) -> None:
    """Into the run folder and MLflow; a evaluation unlike the last one is the next step of the evaluation's curves."""
    known, text = planned.folder / EVALUATION, evaluation.to_json()
    if not known.exists() or known.read_bytes() != text.encode():
        ordinal = len(list(planned.folder.glob("evaluation.*.json")))
        tracker.point(ordinal, time.time_ns() // 1_000_000, evaluation.metrics())
        replace_text(planned.folder / f"evaluation.{ordinal}.json", text)
        replace_text(known, text)
    tracker.records("evaluation", evaluation.table())
    if evaluation.factors:
        tracker.records("factors", evaluation.factor_table())


def read_evaluation(planned: Plan) -> Evaluation:
    """The last evaluation of the run.

    Raises:
        StepError: it has not been evaluated.
    """
    path = planned.folder / EVALUATION
    if not path.exists():
        raise StepError(f"run {planned.name} has not been evaluated; `pretext evaluate` comes first")
    try:
        return Evaluation.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # undecodable bytes as well
        raise StepError(f"{path} is damaged ({error}); `pretext evaluate` writes it anew") from None


def register_step(recipe: Recipe, planned: Plan, tracker: Tracker, evaluation: Evaluation) -> Registered:
    """Register the encoder; it becomes champion only where it is significantly better, evaluated on the same images."""
    from components.evaluation.evaluate import evaluate, untrained
    from components.registry.register import register
    from ssl_core.train.checkpoint import load_model, read_config

    section = recipe.register_
    assert section is not None, "callers check"

    def reevaluate(champion: Path) -> Evaluation:
        say(f"evaluate the champion of {section.model} on this recipe's images")
        task, model = load_model(champion)
        _, encoder = read_config(champion)
        start = untrained(task, encoder, recipe.train.seed)
        return evaluate(task, model, start, **evaluated_with(recipe, planned))[0]

    if not tracker.flush() or tracker.run_id is None:
        raise StepError(f"nothing can be registered: {tracker.trouble}; `pretext register` tries again")
    tags = {"corpus": planned.corpus, "corpus_version": planned.version, "corpus_digest": planned.digest}
    with model_of(recipe, planned) as folder:
        return register(
            folder,
            section.model,
            evaluation,
            run_key=planned.key,
            run_id=tracker.run_id,
            uri=recipe.tracking.uri,
            size=recipe.corpus.size,
            margin=section.margin,
            tags=tags | {"task": recipe.task_name, "code": planned.code},
            reevaluate=reevaluate,
        )


def evaluated_with(recipe: Recipe, planned: Plan) -> dict[str, Any]:
    """Samples, settings of the probes and factors, as `evaluate` and `evaluation_set` take them."""
    train, test = splits_of(recipe, planned)
    return {"train": train, "test": test, "settings": recipe.evaluate.build(), "factors": factors_of(recipe)}


def splits_of(recipe: Recipe, planned: Plan) -> tuple[Split, Split | None]:
    """What evaluates: both labelled corpora, or the unlabelled one."""
    from components.evaluation.evaluate import Split
    from ssl_core.data.shards import Shards

    labelled = [section.name for section in (recipe.evaluate.train, recipe.evaluate.test) if section is not None]
    corpora = [Corpus.open(name) for name in labelled] or [Corpus.open(planned.corpus, planned.version)]
    found = [Split(Shards.open(corpus.shards()), corpus.digest()) for corpus in corpora]
    return found[0], found[1] if len(found) > 1 else None


def factors_of(recipe: Recipe) -> FactorTable | None:
    """What is known of the evaluated samples, where the recipe names a file of it."""
    from components.evaluation.factors import FactorTable

    return FactorTable.read(at_home(recipe.evaluate.factors)) if recipe.evaluate.factors else None


def require_model(recipe: Recipe, planned: Plan) -> None:
    """Asked before a run's MLflow record is opened, so that a step out of order leaves no trace in it.

    Raises:
        StepError: the run has no model yet.
    """
    if not run_folder(recipe, planned).holds(MODEL):
        raise StepError(f"run {planned.name} has no trained model; `pretext pretrain` comes first")


@contextmanager
def model_of(recipe: Recipe, planned: Plan) -> Iterator[Path]:
    """A local folder with the run's model, downloaded where the run's storage is remote."""
    require_model(recipe, planned)
    with run_folder(recipe, planned).local_copy(MODEL) as path:
        assert path is not None
        yield path


def run_folder(recipe: Recipe, planned: Plan) -> RunFolder:
    """The run's checkpoints and model, here or behind a URI."""
    from components.training.run_folder import RunFolder

    return RunFolder(storage_of(recipe, planned), planned.name)


def storage_of(recipe: Recipe, planned: Plan) -> str:
    """Where the run's checkpoints and model lie."""
    return recipe.cluster.storage or str(planned.folder.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    os.replace(scratch, path)
