"""From a model's URI to the folder with its files: registered, logged by a run, or already here."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException

from components.registry.export import PRETEXT
from components.tracking.errors import TrackingError, explain
from components.tracking.store import connect_tracking
from ssl_core.errors import InputError

LOGGED = "encoder"  # name of the model among its run's outputs: runs:/RUN/encoder


def locate(client: MlflowClient, model_uri: str, uri: str) -> str:
    """Where the files of models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID and runs:/RUN/encoder lie.

    Raises:
        TrackingError: there is no such model, version, alias or run, or the tracker cannot be reached.
        InputError: the run has no encoder of that name.
    """
    kind, _, rest = model_uri.partition(":/")
    name, alias, number = rest.strip("/"), "", ""
    if "@" in name:
        name, _, alias = name.rpartition("@")
    elif "/" in name:
        name, _, number = name.rpartition("/")
    try:
        if kind == "runs" and (found := output_of(client, name, number)):
            return str(found.artifact_location)
        if kind == "runs":
            raise InputError(f"{model_uri}: the run has no encoder of that name; try runs:/{name}/{LOGGED}")
        if not alias and not number:
            return str(client.get_logged_model(name).artifact_location)
        number = client.get_model_version_by_alias(name, alias).version if alias else number
        return str(client.get_model_version_download_uri(name, number))
    except MlflowException as error:
        raise TrackingError(f"{model_uri}: {explain(error, uri)}") from error


def fetch(model_uri: str, into: Path, uri: str | None = None) -> Path:
    """The folder of a registered or local model; files that are not on this machine are downloaded to `into`.

    Raises:
        TrackingError: there is no such model, or it cannot be fetched.
        InputError: it is not one of ours.
    """
    folder = Path(model_uri).expanduser()
    if model_uri.startswith(("models:/", "runs:/")):
        client, uri = connect_tracking(uri)
        folder = _local(locate(client, model_uri, uri), into, uri)
    if not ((folder / PRETEXT / "config.json").exists() or (folder / "config.json").exists()):
        raise InputError(
            f"{model_uri}: {folder} holds no encoder of pretext (no config.json); "
            "give models:/NAME@champion, models:/NAME/VERSION, runs:/RUN/encoder or a model folder"
        )
    return folder


def _local(where: str, into: Path, uri: str) -> Path:
    if where.startswith("file:"):
        return Path(url2pathname(urlsplit(where).path))
    if "://" not in where and Path(where).is_dir():
        return Path(where)
    import mlflow.artifacts

    into.mkdir(parents=True, exist_ok=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(where, dst_path=str(into), tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise TrackingError(f"cannot fetch the model from {where}: {explain(error, uri)}") from error


def output_of(client: MlflowClient, run_id: str, name: str) -> LoggedModel | None:
    """The finished model of that name among the run's outputs."""
    outputs = client.get_run(run_id).outputs
    logged = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
    return next((model for model in logged if model.name == name and model.status == LoggedModelStatus.READY), None)
