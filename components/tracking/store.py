"""Where MLflow keeps runs and models: which URIs can work, and a client for one, with MLflow's own output silenced."""

from __future__ import annotations

import importlib
import logging
import os
import sqlite3
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from components.storage.locks import exclusive
from components.tracking.errors import tracking_errors, without_secrets
from ssl_core.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(given: str | None = None) -> str:
    """Where runs are recorded: `given`, else MLFLOW_TRACKING_URI, else SQLite in the pretext home. Paths made absolute.

    Raises:
        InputError: MLflow cannot keep runs there.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or _default_uri()
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in SERVERS + DATABASES:
        raise InputError(
            f"tracking URI {without_secrets(uri)!r}: MLflow no longer supports folders of files such as ./mlruns; use "
            "a server (https://host), a database (sqlite:////path/mlflow.db), or none for SQLite in the pretext home"
        )
    if scheme != "sqlite":
        return uri.rstrip("/")
    kind, _, path = uri.partition(":///")
    if path in ("", ":memory:"):
        raise InputError(f"tracking URI {uri!r} names no file, so no run would outlive the process; name a file")
    return f"{kind}:///{Path(path).expanduser().absolute()}"


def _default_uri() -> str:
    from components.storage.home import pretext_home

    return f"sqlite:///{Path(pretext_home()).absolute() / 'mlflow.db'}"


def database_of(uri: str) -> Path | None:
    """The file of an embedded database; None for a server of any kind."""
    return Path(uri.split(":///", 1)[1]) if uri.startswith("sqlite") else None


def connect_tracking(given: str | None = None) -> tuple[MlflowClient, str]:
    """A client for `tracking_uri(given)`, and that URI. A missing embedded database is made, by one process.

    Raises:
        InputError: see `tracking_uri`.  TrackingError: the database cannot be used; a server is not contacted.
    """
    uri = tracking_uri(given)
    quieten(server=database_of(uri) is None)
    from mlflow import MlflowClient

    database = database_of(uri)
    if database is None:
        with tracking_errors(uri):
            return MlflowClient(uri, uri), uri
    with exclusive(database.with_name(database.name + ".lock"), wait=120), tracking_errors(uri):
        with closing(sqlite3.connect(database)) as file:  # fails at once, where MLflow would retry for two minutes
            file.execute("PRAGMA schema_version")
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)  # makes or checks the tables
    return client, uri


def quieten(server: bool) -> None:
    """No usage reports, printed links, logs of migrations or minutes of silent retries; also imports mlflow."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_PRINT_MODEL_URLS_ON_CREATION", "false"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
    ):
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():  # deprecations inside MLflow are not our user's business
        warnings.simplefilter("ignore")
        importlib.import_module("mlflow")  # sets its loggers up, which would undo what follows
        if not server:
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
            importlib.import_module("mlflow.store.model_registry.sqlalchemy_store")
    for name, level in (
        ("mlflow", logging.WARNING),
        ("alembic", logging.WARNING),
        ("mlflow.store.db.utils", logging.CRITICAL),  # a locked database is retried here and needs no log
    ):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def ui_command(port: int = 5000, given: str | None = None) -> list[str]:
    """The command that serves MLflow's pages on an embedded database.

    Raises:
        InputError: the runs are on a server, which has pages of its own.
    """
    uri = tracking_uri(given)
    if urlsplit(uri).scheme in SERVERS:
        raise InputError(f"the runs are kept by {without_secrets(uri)}; open that in a browser")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    database = database_of(uri)
    files = ["--artifacts-destination", str(database.parent / "mlartifacts")] if database else []
    return [*command, "--backend-store-uri", uri, *files]
