"""MLflow for the driver: `Tracker`, one MLflow run per run key, and the sweep of runs whose process died.

    with Tracker(key, folder, name=..., experiment=...) as tracker:
        tracker.params(recipe); tracker.dataset(...); tracker.point(step, time_ms, metrics); tracker.figure(...)

No method raises because a server is away: all that is logged goes to the run's journal first (journal.py), and a thread
sends it on (delivery.py). A setup that can never work is refused when the Tracker is made.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from components.storage.files import StorageError, absolute, is_remote, join, write
from components.storage.home import cache_folder
from components.storage.lease import TakenOver
from components.tracking.errors import tracking_errors, without_secrets
from components.tracking.journal import Journal, Shipper, last_header
from components.tracking.mirror import COPIES, Mirror
from components.tracking.stale_runs import is_stale
from components.tracking.store import connect_tracking, database_of, quieten, tracking_uri
from components.tracking.system_metrics import SystemMetrics
from ssl_core.errors import InputError

log = logging.getLogger("pretext.tracking")

Status = Literal["FINISHED", "FAILED", "KILLED"]
JOURNAL = "tracking"
"""In the run folder."""


def logged_copy(artifact: str) -> str:
    """Name in a run's folder of a file that was logged, such as "figures/answers.png"."""
    return join(JOURNAL, COPIES, artifact)


@dataclass(frozen=True)
class Logged:
    """Metrics of one step, as they were logged."""

    step: int
    metrics: Mapping[str, float]


class Tracker:
    """The MLflow run of `run_key`: adopted where one exists, whatever its status, else created.

    An attempt at the training sets it RUNNING and closes it with the status in which the attempt ended. A later step
    (`attempt=False`) closes it as FINISHED if it succeeds, and else leaves its status as it was.

    Attributes:
        uri: the tracking store.
        folder: path or URI of the run folder; the journal and copies of all that is logged lie in its `tracking`.
    """

    def __init__(
        self,
        run_key: str,
        folder: Path | str,
        *,
        name: str | None = None,
        experiment: str = "pretext",
        uri: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        attempt: bool = True,
        system_metrics: float = 10.0,
        wait: float = 30.0,
    ) -> None:
        """`tags`: code version and the like, None left out. `system_metrics`: seconds between samples, 0 for none.

        `wait`: seconds that the tracker has to answer; after that the run continues and its record follows later.

        Raises:
            ValueError: the URI, the key or the experiment cannot work.
            Busy: another process on this machine works on this run.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,250}", run_key):
            raise ValueError(f"run key {run_key!r} is not valid; use up to 250 letters, digits and _.:- only")
        self.uri = tracking_uri(uri)
        self.folder = absolute(str(folder))
        place = join(self.folder, JOURNAL)
        self._mirror = Mirror(place, cache_folder("journals", place)) if is_remote(place) else None
        self._journal = Journal(self._mirror.folder, self._mirror.restore) if self._mirror else Journal(Path(place))
        self._closed: str | None = None
        self._lost = 0
        present = {key: value for key, value in (tags or {}).items() if value is not None}
        header = {"kind": "run", "run_key": run_key, "experiment": experiment, "name": name or run_key, "tags": present}
        self._write_header(header)
        self._receiver, self._shipper = _start(self.uri, self._journal, attempt)
        self._await_answer(wait)
        self._system_metrics = SystemMetrics(self.point, system_metrics) if system_metrics else None

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None while the tracker has never answered."""
        run_id: str | None = self._receiver.run_id
        return run_id

    @property
    def link(self) -> str:
        """Where people can see the run: its page on a server, else the command that opens the embedded database."""
        if database_of(self.uri) is None and self.run_id:
            return f"{without_secrets(self.uri)}/#/experiments/{self._receiver.experiment_id}/runs/{self.run_id}"
        return f"mlflow ui --backend-store-uri {without_secrets(self.uri)}"

    @property
    def trouble(self) -> str:
        """Why the tracker has not taken everything yet."""
        return self._shipper.trouble or f"{without_secrets(self.uri)} is slow"

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters of the run; nested mappings become dotted names."""
        self._append({"kind": "params", "values": {key: _shown(value, 6000) for key, value in _flat(values)}})

    def tag(self, values: Mapping[str, Any]) -> None:
        if values:
            self._append({"kind": "tags", "values": {key: _shown(value, 5000) for key, value in values.items()}})

    def dataset(
        self, name: str, uri: str, version: int, digest: str, *, samples: int = 0, context: str = "training"
    ) -> None:
        """A corpus version that the run uses; `context` is its purpose ("training", "probe train", "probe test")."""
        what = {"name": name, "uri": uri, "version": version, "digest": digest, "samples": samples, "context": context}
        self._append({"kind": "dataset", **what})
        prefix = "pretext.corpus" if context == "training" else f"pretext.{context.replace(' ', '_')}"
        self.tag({prefix: name, f"{prefix}.version": version, f"{prefix}.digest": digest})

    def point(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """Points of the curves at `step`; `time_ms` since the epoch. A (metric, step) logged before is dropped."""
        self._guarded(lambda: self._journal.append_point(step, time_ms, metrics))

    def points(self) -> list[Logged]:
        """All points of the run's journal, those of earlier attempts included, in the order they were logged."""
        records = (record for record in self._journal.records() if record.get("kind") == "point")
        return [Logged(record["step"], record["metrics"]) for record in records]

    def figure(self, name: str, png: bytes) -> None:
        """A PNG as figures/<name>.png."""
        self._stage(f"figures/{name}.png", png)

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A table as tables/<name>.json, in the form that MLflow's evaluation page shows; columns of equal length."""
        rows = [[_plain(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
        content = json.dumps({"columns": list(columns), "data": rows})
        self._stage(f"tables/{name}.json", content.encode(), "table")

    def records(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """A table of records, whose keys are its columns; a record without some of them has empty cells there."""
        columns = dict.fromkeys(column for record in records for column in record)
        self.table(name, {column: [record.get(column) for record in records] for column in columns})

    def html(self, name: str, text: str) -> None:
        """A self-contained page as <name>.html."""
        self._stage(f"{name}.html", text.encode())

    def persist(self) -> None:
        """Makes what was logged so far as durable as the run's folder: on disk if it is local, uploaded if remote.

        Raises:
            StorageError: the run's folder cannot be written.
        """
        self._guarded(self._journal.sync)
        if self._mirror is not None:
            self._mirror.upload(self._journal)

    def flush(self, seconds: float = 60.0) -> bool:
        """Waits until the tracker has everything logged so far; False if it has not within `seconds`."""
        deadline, target = time.monotonic() + seconds, self._journal.size
        while self._journal.acked < target and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._journal.acked >= target

    def close(self, status: Status | None = "FINISHED", seconds: float = 30.0, persist: bool = True) -> str:
        """Ends the run; None leaves its status. What the tracker has not taken within `seconds` waits in the folder.

        `persist`: False if another process has taken the run over, since its folder must not be written any more.

        Returns:
            A sentence on what waits or is lost; empty if the tracker has everything.
        """
        if self._closed is not None:
            return self._closed
        if self._system_metrics is not None:
            self._system_metrics.stop()
        if status == "FINISHED" or (status and self._receiver.attempt):
            self._append({"kind": "end", "status": status, "time_ms": time.time_ns() // 1_000_000})
        drained = self._shipper.drain(seconds)
        left = 0 if drained else self._journal.left()
        if persist:
            self._persist_at_last()
        self._journal.close(in_use=self._shipper.is_alive())
        self._closed = ""
        if left or self._lost:
            lost = f" {self._lost} could not be written to disk and are lost." if self._lost else ""
            self._closed = (
                f"{left} records of this run wait in {self._journal.folder} ({self.trouble}); "
                f"the same command, run again, sends them.{lost}"
            )
            log.warning("%s", self._closed)
        return self._closed

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, TakenOver):
            self.close(None, persist=False)  # the run continues, and its new driver records how it ends
        else:
            stopped = kind is not None and not issubclass(kind, Exception)  # KeyboardInterrupt, SystemExit of a SIGTERM
            self.close("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")

    def _write_header(self, header: dict[str, Any]) -> None:
        """Writes which run the journal belongs to; if the experiment has changed, all of it is sent there."""
        before = last_header(self._journal)
        if before is not None and before["run_key"] != header["run_key"]:
            self._journal.close()
            raise InputError(
                f"{self.folder} belongs to the run key {before['run_key']}, not {header['run_key']}; "
                "give each run a folder of its own"
            )
        start = before["time_ms"] if before is not None else time.time_ns() // 1_000_000
        if before != (header := header | {"time_ms": start}):
            self._append(header)
        if before is not None:
            self.tag(header["tags"])

    def _await_answer(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not (self._receiver.connected.wait(0.02) or self._shipper.trouble or time.monotonic() > deadline):
            pass
        if self._receiver.fatal is not None:
            self._shipper.drain(0)
            self._journal.close(in_use=self._shipper.is_alive())
            raise self._receiver.fatal

    def _stage(self, artifact: str, content: bytes, kind: str = "file") -> None:
        """Keeps a copy in the run folder and logs it; a file of the same name is replaced."""

        def write_copy() -> None:
            write(str(self._journal.folder / COPIES / artifact), content)
            to = artifact.rpartition("/")[0]
            self._journal.append({"kind": kind, "path": f"{COPIES}/{artifact}", "to": to})

        self._guarded(write_copy)

    def _persist_at_last(self) -> None:
        try:
            self.persist()
        except (OSError, StorageError) as error:
            log.warning("The end of this run's record stays in %s alone: %s", self._journal.folder, error)

    def _append(self, record: dict[str, Any]) -> None:
        self._guarded(lambda: self._journal.append(record))

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, StorageError) as error:  # the disk is full: the training may still get to its checkpoint
            self._lost += 1
            if self._lost == 1:
                log.warning("Cannot write to %s (%s); the run continues unrecorded", self._journal.folder, error)


def _start(uri: str, journal: Journal, attempt: bool) -> tuple[Any, Shipper]:
    quieten(server=database_of(uri) is None)
    from components.tracking.delivery import MlflowRun  # imports mlflow

    receiver = MlflowRun(uri, journal, attempt)
    shipper = Shipper(journal, receiver)
    shipper.start()
    return receiver, shipper


def close_stale_runs(uri: str | None = None, minutes: float = 15.0) -> list[str]:
    """Closes as KILLED those of our RUNNING runs whose heartbeat is older than `minutes`; returns their ids.

    Raises:
        TrackingError: the tracker cannot be reached.
    """
    client, where = connect_tracking(uri)
    from components.tracking.delivery import HEARTBEAT, RUN_KEY

    def dead(run: Any) -> bool:
        beat = run.data.tags.get(HEARTBEAT)
        now = time.time_ns() // 1_000_000
        return run.info.status == "RUNNING" and is_stale(int(beat) if beat else None, run.info.start_time, now, minutes)

    closed = []
    with tracking_errors(where):
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        ours = f"attributes.status = 'RUNNING' and tags.`{RUN_KEY}` LIKE '%'"
        for run in client.search_runs(experiments, ours, max_results=1000):
            if dead(run) and dead(client.get_run(run.info.run_id)):  # there may be a heartbeat since the search
                client.set_tag(run.info.run_id, "pretext.swept", f"no heartbeat for {minutes:g} minutes")
                client.set_terminated(run.info.run_id, "KILLED")
                closed.append(run.info.run_id)
    return closed


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return pairs


def _shown(value: Any, limit: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(cell: Any) -> Any:
    """A value that JSON can hold: NumPy's scalars as Python's, NaN and infinities as null, anything else as text."""
    value = cell.item() if hasattr(cell, "item") else cell
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
