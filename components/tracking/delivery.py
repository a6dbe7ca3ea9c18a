"""The MLflow side of a run's journal: which run it belongs to, and what each kind of record becomes there.

Everything goes through MlflowClient, never through MLflow's fluent global state, so one process may have several runs.
Every call can be repeated without changing the outcome, so the journal can be sent again after a crash.
"""

from __future__ import annotations

import itertools
import json
import logging
import posixpath
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from components.tracking.errors import TrackingError, explain
from components.tracking.journal import Journal, JournalEntry, Record, Unavailable, last_header
from components.tracking.stale_runs import oldest_run
from components.tracking.store import connect_tracking, database_of

log = logging.getLogger("pretext.tracking")

RUN_KEY, HEARTBEAT = "pretext.run_key", "pretext.heartbeat"
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Selects MLflow's pages for training runs; without it MLflow guesses, and may show those for language models."""
TABLES = "mlflow.loggedArtifacts"  # tag by which MLflow's pages find them
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100  # MLflow's own limits
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS"}
DENIALS = {"PERMISSION_DENIED", "UNAUTHENTICATED"}


class SetupError(TrackingError):
    """The tracker is set up in a way that can never work, however long one waits."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class MlflowRun:
    """Receiver of a journal: adopts or creates the run that carries the journal's run key, and fills it.

    `attempt`: an attempt at the training sets the run RUNNING, updates its heartbeat, and ignores how earlier attempts
    ended; otherwise the run's status is that of the last end in the journal.
    """

    def __init__(self, uri: str, journal: Journal, attempt: bool) -> None:
        self.uri, self.journal, self.attempt = uri, journal, attempt
        self.client: MlflowClient | None = None
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.connected = threading.Event()
        self.fatal: SetupError | None = None
        self._known: dict[str, set[int]] = {}

    def connect(self) -> None:
        if self.run_id is not None:
            return
        try:
            self.client = connect_tracking(self.uri)[0]
            header = self._header()
            experiment = find_experiment(self.client, header["experiment"], self._artifacts())
            run = self._adopt(experiment, header)
            if self.journal.shared or self.journal.owner != run.info.run_id:  # others fed that run: see what it holds
                self._known = _steps(self.client, run)
            if self.attempt and run.info.status != "RUNNING":
                self.client.update_run(run.info.run_id, status="RUNNING")
        except Exception as error:
            sentence = explain(error, self.uri)
            if isinstance(error, SetupError) or getattr(error, "error_code", "") in DENIALS:
                self.fatal = SetupError(sentence)
            raise Unavailable(sentence) from error
        self.journal.bind(run.info.run_id)
        self.experiment_id, self.run_id = experiment.experiment_id, run.info.run_id
        self.connected.set()

    def deliver(self, entries: Sequence[JournalEntry]) -> None:
        for kind, group in itertools.groupby(entries, key=lambda entry: entry.record.get("kind")):
            if kind == "point":
                self._points([entry.record for entry in group])
                continue
            for entry in group:
                self._one(str(kind), entry)

    def pulse(self) -> None:
        """The heartbeat; RUNNING again if a sweep closed the run as dead during an outage."""
        if self.attempt:
            client, run_id = self._run()
            self._call(client.set_tag, run_id, HEARTBEAT, str(now_ms()))
            if self._call(client.get_run, run_id).info.status == "KILLED":
                self._call(client.update_run, run_id, status="RUNNING")

    def _header(self) -> Record:
        header = last_header(self.journal)
        if header is None:
            raise SetupError(f"the journal in {self.journal.folder} does not name its run; remove that folder")
        return header

    def _artifacts(self) -> str | None:
        """Where a new experiment keeps its files; None: the server decides."""
        database = database_of(self.uri)
        return (database.parent / "mlartifacts").as_uri() if database else None

    def _adopt(self, experiment: Experiment, header: Record) -> Run:
        found = _runs_of(self.client, experiment, header["run_key"])
        if found is not None:
            return found
        tags = {**header["tags"], RUN_KEY: header["run_key"], HEARTBEAT: str(now_ms())}
        made = self.client.create_run(experiment.experiment_id, header["time_ms"], tags, header["name"])  # type: ignore[union-attr]
        first = _runs_of(self.client, experiment, header["run_key"])
        if first is None or first.info.run_id == made.info.run_id:
            return made
        self.client.delete_run(made.info.run_id)  # type: ignore[union-attr]  # another machine was quicker
        return first

    def _run(self) -> tuple[MlflowClient, str]:
        assert self.client is not None and self.run_id is not None
        return self.client, self.run_id

    def _points(self, records: Sequence[Record]) -> None:
        flat = [
            Metric(key, value, record["time_ms"], record["step"])
            for record in records
            for key, value in record["metrics"].items()
            if record["step"] not in self._known.get(key, ())
        ]
        for start in range(0, len(flat), METRICS_PER_CALL):
            self._batch("metrics", flat[start : start + METRICS_PER_CALL])

    def _batch(self, what: str, items: Sequence[Any]) -> None:
        """One log_batch; if it is refused, one call for each item, so that a bad item does not cost the others."""
        client, run_id = self._run()
        try:
            self._call(client.log_batch, run_id, **{what: items})
        except MlflowException as error:
            if len(items) > 1:
                for item in items:
                    self._batch(what, [item])
            else:
                self._refuse({"kind": what, **dict(items[0])}, error)

    def _one(self, kind: str, entry: JournalEntry) -> None:
        apply = {
            "params": self._params,
            "tags": self._tags,
            "dataset": self._dataset,
            "file": self._file,
            "table": self._table,
        }.get(kind)
        try:
            if kind == "end":
                self._end(entry)
            elif apply is not None:
                apply(entry.record)
            elif kind != "run":
                raise FileNotFoundError("unreadable or of an unknown kind")
        except (MlflowException, FileNotFoundError) as error:
            self._refuse(entry.record, error)

    def _params(self, record: Record) -> None:
        params = [Param(key, value) for key, value in record["values"].items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._batch("params", params[start : start + PARAMS_PER_CALL])

    def _tags(self, record: Record) -> None:
        self._batch("tags", [RunTag(key, value) for key, value in record["values"].items()])

    def _dataset(self, record: Record) -> None:
        client, run_id = self._run()
        source = json.dumps({"path": record["uri"], "delta_table_version": record["version"]})
        profile = json.dumps({"version": record["version"], "samples": record["samples"], "digest": record["digest"]})
        dataset = Dataset(record["name"], record["digest"][:36], "delta_table", source, profile=profile)
        made = DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])
        self._call(client.log_inputs, run_id, datasets=[made])

    def _file(self, record: Record) -> None:
        client, run_id = self._run()
        path = self.journal.folder / record["path"]
        if not path.exists():
            raise FileNotFoundError(f"{path} is gone")
        log_it = client.log_artifacts if path.is_dir() else client.log_artifact
        self._call(log_it, run_id, str(path), record["to"] or None)

    def _table(self, record: Record) -> None:
        self._file(record)
        client, run_id = self._run()
        shown = json.loads(self._call(client.get_run, run_id).data.tags.get(TABLES, "[]"))
        table = {"path": posixpath.join(record["to"], Path(record["path"]).name), "type": "table"}
        if table not in shown:
            self._call(client.set_tag, run_id, TABLES, json.dumps([*shown, table]))

    def _end(self, entry: JournalEntry) -> None:
        if self.attempt and entry.start < self.journal.opened_at:
            return  # the end of an earlier attempt
        client, run_id = self._run()
        self._call(client.set_terminated, run_id, entry.record["status"], entry.record["time_ms"])

    def _refuse(self, record: Record, error: Exception) -> None:
        sentence = explain(error, self.uri)
        log.warning("The tracker refused a record (%s); it is kept in %s", sentence, self.journal.folder)
        self.journal.refuse(record, sentence)

    def _call(self, do: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Calls MLflow. Raises MlflowException if it refuses for good, Unavailable for anything that may pass."""
        try:
            return do(*arguments, **named)
        except MlflowException as error:
            if error.error_code in REFUSALS:
                raise
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good, or the store is a new one
                self.run_id = None
            raise Unavailable(explain(error, self.uri)) from error
        except Exception as error:
            raise Unavailable(explain(error, self.uri)) from error


def find_experiment(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    """The experiment, made if missing; `artifacts` is where a new one keeps files (None: the server decides)."""
    found = client.get_experiment_by_name(name) or _make_experiment(client, name, artifacts)
    if found.lifecycle_stage != "active":
        raise SetupError(
            f"the MLflow experiment {name!r} is deleted; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}` or name another one under tracking.experiment"
        )
    return found


def _make_experiment(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    try:
        return client.get_experiment(client.create_experiment(name, artifacts, tags=TRAINING))
    except MlflowException:
        made = client.get_experiment_by_name(name)  # another process may have made it meanwhile
        if made is None:
            raise
        return made


def _runs_of(client: MlflowClient | None, experiment: Experiment, run_key: str) -> Run | None:
    assert client is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'")
    chosen = oldest_run([(run.info.start_time, run.info.run_id) for run in runs])
    return next((run for run in runs if run.info.run_id == chosen), None)


def _steps(client: MlflowClient, run: Run) -> dict[str, set[int]]:
    return {
        key: {metric.step for metric in client.get_metric_history(run.info.run_id, key)} for key in run.data.metrics
    }
