"""What a run is, for every step: the recipe as plain values, and those values pinned to versions of its corpora.

RunSpec (what a recipe requests) -> resolve -> RunContext (what exactly is done, and where it lies) -> every step
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from components.cluster.connect import Cluster
from components.corpus.corpus import Corpus, CorpusError
from components.evaluation.evaluate import Settings
from components.steps.progress import Progress, Silent
from components.steps.run_key import code_digest, code_of, learning, run_key
from components.storage.files import absolute, entries, stat
from components.storage.home import pretext_home
from components.training.run_folder import MODEL, RunFolder
from ssl_core.data.decode import Limits, SampleFormat
from ssl_core.errors import PretextError
from ssl_core.train.run import Run
from ssl_core.types import CorpusVersion


class StepError(PretextError):
    """A step cannot be done; the message says why, and what to do first."""


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus as a recipe names it.

    Attributes:
        name: of the corpus, its path or URI.
        sources: what is ingested into it first; empty if it exists already.
        version: the version to use; None for the newest.
        labels: "parent" if a sample's label is the name of the folder with its file.
        column: of image bytes in Parquet sources.
    """

    name: str
    sources: tuple[str, ...] = ()
    version: int | None = None
    labels: Literal["parent"] | None = None
    column: str | None = None


@dataclass(frozen=True)
class Registration:
    """The registered model: its name, and the margin in percentage points that a new champion's gain must exceed."""

    model: str
    margin: float = 0.0


@dataclass(frozen=True)
class Tracking:
    """Where runs are recorded: the MLflow URI, None for the default, and the experiment."""

    uri: str | None = None
    experiment: str = "pretext"


@dataclass(frozen=True)
class RunSpec:
    """What a recipe requests, as plain values.

    Attributes:
        name: of the recipe.
        task_name: key of the task in TASKS.
        run: what is trained.
        corpus: the unlabelled one.
        probe_train: labelled, fits the probes; None without labels.
        probe_test: labelled, scores the probes; None without labels.
        sample_format: how a new corpus stores its samples.
        limits: on the bytes, pixels, memory and time of one media file.
        settings: of the evaluation.
        factors: Parquet file with known factors of the evaluated samples, a path or URI; None if there is none.
        cluster: where and how wide.
        registration: None if nothing is to be registered.
        tracking: where the run is recorded.
        recipe: the whole recipe as JSON data, without secrets, for the record.
        recipe_text: the same as its user would write it, for the report.
    """

    name: str
    task_name: str
    run: Run
    corpus: CorpusSpec
    probe_train: CorpusSpec | None
    probe_test: CorpusSpec | None
    sample_format: SampleFormat
    limits: Limits
    settings: Settings
    factors: str | None = None
    cluster: Cluster = field(default_factory=Cluster)
    registration: Registration | None = None
    tracking: Tracking = field(default_factory=Tracking)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""

    @property
    def corpora(self) -> tuple[CorpusSpec, ...]:
        """All corpora of the recipe, the unlabelled one first."""
        return tuple(corpus for corpus in (self.corpus, self.probe_train, self.probe_test) if corpus is not None)

    def require_registration(self) -> Registration:
        """The registration that was requested.

        Raises:
            StepError: the recipe registers nothing.
        """
        if self.registration is None:
            raise StepError("the recipe has no section `register`; add `register: {model: NAME}`")
        return self.registration

    @property
    def learning(self) -> dict[str, Any]:
        """The part of the recipe that decides the weights."""
        return learning(self.run, self.cluster.workers, self.cluster.gpus)

    @property
    def storage(self) -> str:
        """The folder or URI in which the run's folder lies."""
        return self.cluster.storage or str(pretext_home() / "runs")


@dataclass(frozen=True)
class RunContext:
    """One run, as every step of it gets it.

    Attributes:
        spec: what the recipe requests.
        key: hash of all that decides the weights; a run is resumed only by the same key.
        name: recipe name and key; names the run in MLflow, on Ray and in storage. A renamed recipe keeps its run.
        code: digest of the code that decides the weights.
        corpus: the version that is trained on.
        probe_train: the version that fits the probes; None without labels, or while that corpus does not exist.
        probe_test: the version that scores them; None likewise.
        folder: all that the run leaves.
        progress: gets the messages and the progress of the steps.
    """

    spec: RunSpec
    key: str
    name: str
    code: str
    corpus: CorpusVersion
    probe_train: CorpusVersion | None
    probe_test: CorpusVersion | None
    folder: RunFolder
    progress: Progress = field(default_factory=Silent, compare=False)

    def facts(self) -> dict[str, Any]:
        """Which run it is, as JSON data."""
        corpus = {"corpus": self.spec.corpus.name, "version": self.corpus.version, "digest": self.corpus.digest}
        who = {"key": self.key, "name": self.name, "code": self.code, "folder": self.folder.uri}
        return who | corpus | {"samples": self.corpus.samples}

    @property
    def trained(self) -> bool:
        """Whether the run has its model."""
        return self.folder.holds(MODEL)

    def require_model(self) -> None:
        """To be called before a run's record is opened, so that a step out of order leaves no trace in it.

        Raises:
            StepError: the run has no model yet.
        """
        if not self.trained:
            other = self.trained_otherwise()
            raise StepError(
                f"run {self.name} has no trained model; `pretext pretrain` comes first{f' ({other})' if other else ''}"
            )

    @contextmanager
    def model(self) -> Iterator[Path]:
        """A folder of this machine with the run's model, for the block.

        Raises:
            StepError: the run has no model yet.
        """
        self.require_model()
        with self.folder.local_copy(MODEL) as folder:
            assert folder is not None, "it is there"
            yield folder

    def trained_otherwise(self) -> str:
        """A sentence on a run of the same recipe that has a model and another key; empty if there is none."""
        pattern = rf"{re.escape(self.spec.name)}-[0-9a-f]{{10}}"
        names = [name for name in _folders_in(self.folder.storage) if re.fullmatch(pattern, name) and name != self.name]
        others = (RunFolder(self.folder.storage, name) for name in names)
        found = next((folder for folder in others if folder.holds(MODEL)), None)
        if found is None:
            return ""
        return (
            f"{found.name} was trained with another recipe, corpus version or code; "
            f"`pretext embed --model {found.uri_of(MODEL)} SOURCE -o OUT` uses it as it is"
        )


def resolve(spec: RunSpec, progress: Progress | None = None) -> RunContext:
    """The run of a recipe on its corpora as they are now.

    Raises:
        CorpusError: there is no such corpus or version.
    """
    corpus = Corpus.open(spec.corpus.name, spec.corpus.version).pinned()
    code = code_digest(code_of(spec.run))
    key = run_key(spec.learning, corpus=corpus.digest, code=code)
    name = _name_of_run(spec, key)
    return RunContext(
        spec,
        key,
        name,
        code,
        corpus,
        probe_train=_pinned_if_there(spec.probe_train),
        probe_test=_pinned_if_there(spec.probe_test),
        folder=RunFolder(spec.storage, name),
        progress=progress or Silent(),
    )


def _name_of_run(spec: RunSpec, key: str) -> str:
    """Recipe name and key; if the recipe was renamed meanwhile, the name that the run has."""
    own, suffix = f"{spec.name}-{key[:10]}", f"-{key[:10]}"
    names = [name for name in _folders_in(spec.storage) if name.endswith(suffix)]
    return own if own in names or not names else min(names)


def _folders_in(storage: str) -> list[str]:
    listed = entries(absolute(storage)) if stat(absolute(storage)) else ()
    return [entry.uri.rsplit("/", 1)[1] for entry in listed if entry.folder]


def _pinned_if_there(probe: CorpusSpec | None) -> CorpusVersion | None:
    """None if the corpus does not exist: training needs no labelled corpus, and `evaluate` reports a missing one."""
    try:
        return Corpus.open(probe.name, probe.version).pinned() if probe else None
    except CorpusError:
        return None
