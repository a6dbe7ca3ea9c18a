"""From a trained, evaluated model to a version in MLflow's registry, and to the alias `champion` if it is better.

    model folder + evaluation -> artifact (export.py) -> logged model of the run -> version -> promotion

Repeating it is harmless: a run key has at most one version per model name, and what an earlier attempt left is reused.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components.evaluation.metrics import LINEAR
from components.evaluation.result import Evaluation, paired_gain
from components.registry.champion import ALREADY_EXISTS, CHAMPION, champion_of, model_lock, promote
from components.registry.export import ABOUT, EVALUATION, PRETEXT, write_artifact
from components.registry.fetch import LOGGED, fetch, output_of
from components.registry.promotion import Gain, Promotion
from components.tracking.delivery import RUN_KEY
from components.tracking.errors import tracking_errors
from components.tracking.store import connect_tracking
from ssl_core.errors import InputError

UPLOAD_SECONDS = 900.0
GATE = LINEAR.key
"""The probe whose gain decides about the champion."""

log = logging.getLogger("pretext.register")


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: of the model.
        version: its number.
        created: whether this call made it; False if the run key had one already.
        promotion: whether it became the champion, and why.
        champion: the version that is the champion now.
        uri: what to give to `pretext embed --model` and mlflow.pytorch.load_model.
    """

    name: str
    version: int
    created: bool
    promotion: Promotion
    champion: int | None
    uri: str


@dataclass(frozen=True)
class Candidate:
    """What is to be registered.

    Attributes:
        model: folder (`ssl_core.train.checkpoint.save_model`).
        evaluation: of that model; the registered encoder returns its best layer.
        run_key: of the run that trained it; a model name has at most one version of each.
        run_id: MLflow's, of the same run.
        size: short side of the corpus' samples, from which the task cropped its squares; files are embedded at it.
        tags: of the version, such as the corpus and its digest.
    """

    model: Path
    evaluation: Evaluation
    run_key: str
    run_id: str
    size: int | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)

    def origin(self) -> dict[str, Any]:
        """Where it comes from: the tags, and the size if it is known."""
        return {**self.tags, **({"size": self.size} if self.size else {})}

    def headline(self) -> dict[str, float]:
        """The evaluation's figures of the best layer: "linear", "knn", "rank_me" and so on."""
        prefix = "evaluation/best/"
        metrics = self.evaluation.metrics().items()
        return {key.removeprefix(prefix): value for key, value in metrics if key.startswith(prefix)}


def register(
    candidate: Candidate,
    name: str,
    *,
    uri: str | None = None,
    margin: float = 0.0,
    reevaluate: Callable[[Path], Evaluation] | None = None,
) -> Registered:
    """Registers the encoder of a run under `name`, and makes it the champion if it is significantly better.

    uri: of the MLflow server; default as in a recipe.
    margin: percentage points that the lower bound of the gain must exceed for a promotion.
    reevaluate: evaluates the champion, given its model folder, if the two were evaluated on different sets.

    Raises:
        InputError: the name is not valid, or the encoder cannot be exported.
        DamagedError: the model folder is damaged.
        TrackingError: the tracking server does not accept it; another call continues from there.
    """
    client, uri = connect_tracking(uri)
    if not name or any(letter in name for letter in "/:%'"):
        raise InputError(f"model name {name!r} is not valid; give a name without / : % and quotes")

    def gain_over(champion: int) -> Gain | None:
        return _gain(uri, name, champion, candidate.evaluation, reevaluate)

    with tracking_errors(uri):
        with model_lock(client, uri, name, lease=UPLOAD_SECONDS):
            found = version_of_run(client, name, candidate.run_key)
            version = found or _create(client, name, candidate)
        number = int(version.version)
        collapse = candidate.evaluation.collapse
        decision = promote(client, uri, name, number, gain_over, margin=margin, collapse=collapse)
        champion = champion_of(client, name)
        if decision.promoted or champion != number:
            why = f"{decision.verdict}: {decision.reason}"
            client.set_model_version_tag(name, str(number), "pretext.promotion", why)
    log.info("%s version %s: %s, %s", name, number, decision.verdict, decision.reason)
    return Registered(name, number, found is None, decision, champion, f"models:/{name}/{number}")


def version_of_run(client: MlflowClient, name: str, run_key: str) -> ModelVersion | None:
    """The version of `name` that this run made; None if it made none."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{RUN_KEY}` = '{run_key}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _create(client: MlflowClient, name: str, candidate: Candidate) -> ModelVersion:
    metrics = candidate.headline()
    about = {"run_key": candidate.run_key, "run_id": candidate.run_id, **candidate.origin(), "metrics": metrics}
    tags = {RUN_KEY: candidate.run_key, **{f"metric.{key}": f"{value:.4f}" for key, value in metrics.items()}}
    tags |= {f"pretext.{key}": str(value) for key, value in candidate.origin().items()}
    tags["pretext.evaluation_set"] = candidate.evaluation.evaluation_set
    logged = _logged_model(client, candidate, about)
    try:
        client.create_registered_model(name, description="Encoder trained without labels by pretext.")
    except MlflowException as error:
        if error.error_code not in ALREADY_EXISTS:
            raise
    how, model_id = _how_to_load(name), logged.model_id
    version = client.create_model_version(
        name, logged.artifact_location, candidate.run_id, tags, description=how, model_id=model_id
    )
    shown = json.dumps([{"name": name, "version": int(version.version)}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": shown})  # links the run's page to the version
    return version


def _logged_model(client: MlflowClient, candidate: Candidate, about: Mapping[str, Any]) -> LoggedModel:
    """The encoder among the run's outputs, its files uploaded; one that an earlier attempt finished is reused."""
    run_id = candidate.run_id
    experiment = client.get_run(run_id).info.experiment_id
    if ready := output_of(client, run_id, LOGGED):
        return ready
    logged = client.create_logged_model(experiment, LOGGED, run_id, {RUN_KEY: candidate.run_key}, model_type="encoder")
    with tempfile.TemporaryDirectory(prefix="pretext-model-") as folder:
        artifact = write_artifact(
            candidate.model,
            Path(folder) / "model",
            layer=candidate.evaluation.best,
            about=about,
            evaluation=candidate.evaluation.to_json(),
            run_id=run_id,
            model_id=logged.model_id,
        )
        client.log_model_artifacts(logged.model_id, str(artifact))
    finished = client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return finished


def _gain(
    uri: str,
    name: str,
    champion: int,
    evaluation: Evaluation,
    reevaluate: Callable[[Path], Evaluation] | None,
) -> Gain | None:
    """Paired gain over the champion; None if the two cannot be compared."""
    if GATE not in evaluation.correct:
        return None
    with tempfile.TemporaryDirectory(prefix="pretext-champion-") as folder:
        artifact = fetch(f"models:/{name}/{champion}", Path(folder), uri)
        written = artifact / EVALUATION
        theirs = Evaluation.from_json(written.read_text()) if written.exists() else None
        if theirs is None or theirs.evaluation_set != evaluation.evaluation_set:
            theirs = reevaluate(artifact / PRETEXT) if reevaluate else None
    return paired_gain(evaluation, theirs, GATE) if theirs is not None and GATE in theirs.correct else None


def _how_to_load(name: str) -> str:
    return (
        f'mlflow.pytorch.load_model("models:/{name}@{CHAMPION}") takes uint8 [n, 3, h, w] and returns float32 [n, d]; '
        f"data/model.pt2 is the same for torch.export.load; pretext/ holds safetensors and JSON; {ABOUT} has more."
    )
