"""The Tracker against real stores: SQLite in this process, and an `mlflow server` that is frozen, killed, restarted."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from tracking_server import Server

from components.storage.lease import TakenOver
from components.storage.locks import Busy
from components.tracking.store import connect_tracking, tracking_uri, ui_command
from components.tracking.tracker import Tracker, close_stale_runs

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    connect_tracking(uri)
    return uri


def tracker(store: str, folder: Path, key: str | None = None, **settings: object) -> Tracker:
    """A Tracker whose run key is the test's own folder name, so that tests share a database but no run."""
    key = key or folder.parent.name
    return Tracker(key, folder, uri=store, **({"system_metrics": 0} | settings))  # type: ignore[arg-type]


def history(client: MlflowClient, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def png() -> bytes:
    coded = io.BytesIO()
    Image.new("RGB", (600, 300), "red").save(coded, "PNG")
    return coded.getvalue()


def test_a_run_shows_what_went_in_and_what_came_out(store: str, tmp_path: Path) -> None:
    with tracker(store, tmp_path / "run", name="digits-1", tags={"pretext.code": "c0ffee", "commit": None}) as run:
        run.params({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "note": "x" * 9_000})
        run.dataset("digits", "/corpora/digits", 3, "ab" * 32, samples=1_347)
        run.point(7, 1_700_000_000_123, {"loss": 0.5, "nan": float("nan")})
        run.figure("neighbours", png())
        run.table("evaluation", {"row": ["ours", "raw"], "knn": [np.float32(0.5), float("nan")]})
        run.html("report", "<html></html>")
    client, _ = connect_tracking(store)
    assert run.run_id is not None
    found = client.get_run(run.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "digits-1")
    assert found.data.params["optim.lr"] == "0.1" and found.data.params["optim.betas"] == "[0.9, 0.99]"
    assert found.data.tags["pretext.code"] == "c0ffee" and "commit" not in found.data.tags
    dataset = found.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest, json.loads(dataset.source)["delta_table_version"]) == ("digits", "ab" * 18, 3)
    (point,) = client.get_metric_history(run.run_id, "loss")
    assert (point.step, point.timestamp, point.value) == (7, 1_700_000_000_123, 0.5)
    table = json.loads(Path(client.download_artifacts(run.run_id, "tables/evaluation.json")).read_text())
    assert table == {"columns": ["row", "knn"], "data": [["ours", 0.5], ["raw", None]]}
    assert "tables/evaluation.json" in found.data.tags["mlflow.loggedArtifacts"]
    names = [file.path for folder in ("", "figures") for file in client.list_artifacts(run.run_id, folder)]
    assert {"report.html", "figures/neighbours.png"} <= set(names)


@pytest.mark.parametrize("ended", ["KILLED", "FAILED", "FINISHED", None])
def test_the_same_key_adopts_its_run_whatever_became_of_it(store: str, tmp_path: Path, ended: str | None) -> None:
    client, _ = connect_tracking(store)
    first = tracker(store, tmp_path / "run", key=f"adopt-{ended}")
    first.point(1, 1_000, {"loss": 1.0})
    assert first.flush(10)
    assert first.run_id is not None
    if ended is None:  # SIGKILL of the driver: nobody closes anything
        first._shipper.drain(5)
        first._journal.close()
    else:
        first.close(ended)  # type: ignore[arg-type]
        assert client.get_run(first.run_id).info.status == ended
    second = tracker(store, tmp_path / "run", key=f"adopt-{ended}")
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.point(1, 2_000, {"loss": 1.0})
    second.point(2, 2_001, {"loss": 0.9})
    second.close()
    assert history(client, first.run_id, "loss") == [1, 2]
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_run_resumed_on_another_machine_doubles_no_point(store: str, tmp_path: Path) -> None:
    for machine, steps in (("here", range(50)), ("there", range(30, 80))):
        with tracker(store, tmp_path / machine, key="moved") as run:
            for step in steps:
                run.point(step, time.time_ns() // 1_000_000, {"loss": 1.0 / (step + 1)})
    client, _ = connect_tracking(store)
    assert run.run_id is not None
    assert sorted(history(client, run.run_id, "loss")) == list(range(80))


def test_a_run_deleted_by_its_user_is_written_anew_from_the_journal(store: str, tmp_path: Path) -> None:
    client, _ = connect_tracking(store)
    with tracker(store, tmp_path / "run") as first:
        first.params({"a": 1})
        first.point(1, 1_000, {"loss": 1.0})
    assert first.run_id is not None
    client.delete_run(first.run_id)
    with tracker(store, tmp_path / "run") as second:
        second.point(2, 1_001, {"loss": 0.5})
    assert second.run_id is not None and second.run_id != first.run_id
    assert history(client, second.run_id, "loss") == [1, 2]
    assert client.get_run(second.run_id).data.params == {"a": "1"}


def test_what_the_tracker_refuses_is_laid_aside_and_the_rest_passes(store: str, tmp_path: Path) -> None:
    away = tracker("http://127.0.0.1:1", tmp_path / "run", wait=0.1)
    away.params({"gpus": 1})
    away.params({"gpus": 2, "workers": 3})
    away.point(1, 1_000, {"bad\nname": 1.0, "loss": 2.0})
    away.html("missing", "<html></html>")
    away.close(seconds=0.1)
    (tmp_path / "run" / "tracking" / "artifacts" / "missing.html").unlink()
    with tracker(store, tmp_path / "run") as run:
        run.tag({"after": "all"})
    client, _ = connect_tracking(store)
    assert run.run_id is not None
    found = client.get_run(run.run_id)
    assert found.data.params == {"gpus": "1", "workers": "3"}
    assert found.data.metrics == {"loss": 2.0} and found.data.tags["after"] == "all"
    refused = (tmp_path / "run/tracking/journal.refused.jsonl").read_text()
    assert len(refused.splitlines()) == 3 and "bad\\nname" in refused and "missing.html" in refused


def test_system_metrics_are_sampled_and_end_with_the_run(store: str, tmp_path: Path) -> None:
    run = tracker(store, tmp_path / "run", system_metrics=0.05)
    time.sleep(0.5)
    run.close()
    client, _ = connect_tracking(store)
    assert run.run_id is not None
    assert "system/cpu_utilization_percentage" in client.get_run(run.run_id).data.metrics
    assert run._system_metrics is not None and not run._system_metrics.is_alive()


def test_an_exception_closes_the_run_as_failed_and_a_signal_as_killed(store: str, tmp_path: Path) -> None:
    client, _ = connect_tracking(store)
    for error, status in ((RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")):
        with pytest.raises(error), tracker(store, tmp_path / error.__name__, key=error.__name__) as run:
            raise error
        assert run.run_id is not None
        assert client.get_run(run.run_id).info.status == status


@pytest.mark.parametrize("before", ["FINISHED", "KILLED"])
def test_what_is_done_to_a_run_later_spoils_its_status_in_no_way(store: str, tmp_path: Path, before: Any) -> None:
    client, _ = connect_tracking(store)
    key = f"later-{before}"
    first = tracker(store, tmp_path / "run", key=key)
    first.close(before)
    run_id = str(first.run_id)
    for error in (RuntimeError, KeyboardInterrupt):
        with suppress(error), tracker(store, tmp_path / "run", key=key, attempt=False) as later:
            assert later.flush(10) and client.get_run(run_id).info.status == before
            later.tag({"tried": error.__name__})
            raise error
        found = client.get_run(run_id)
        assert (later.run_id, found.info.status, found.data.tags["tried"]) == (run_id, before, error.__name__)
    with tracker(store, tmp_path / "run", key=key, attempt=False):
        pass
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_was_taken_over_is_left_to_its_new_driver(store: str, tmp_path: Path) -> None:
    client, _ = connect_tracking(store)
    with suppress(TakenOver), tracker(store, tmp_path / "a", key="taken") as run:
        assert run.flush(10)
        client.set_terminated(str(run.run_id), "FINISHED")  # by the new one, on another machine
        run._receiver.pulse()
        raise TakenOver
    assert client.get_run(str(run.run_id)).info.status == "FINISHED"


def test_two_processes_cannot_be_at_one_run(store: str, tmp_path: Path) -> None:
    with tracker(store, tmp_path / "run"), pytest.raises(Busy, match=str(os.getpid())):
        tracker(store, tmp_path / "run")


def test_the_sweep_closes_the_dead_and_spares_the_living(store: str, tmp_path: Path) -> None:
    client, _ = connect_tracking(store)
    runs = {name: tracker(store, tmp_path / name, key=f"sweep-{name}") for name in ("live", "dead")}
    foreign = client.create_run("0")
    for run in runs.values():
        assert run.flush(10)
    dead, live = str(runs["dead"].run_id), str(runs["live"].run_id)
    runs["dead"]._shipper.drain(5)
    client.set_tag(dead, "pretext.heartbeat", str(time.time_ns() // 1_000_000 - 16 * 60_000))
    assert close_stale_runs(store, minutes=15) == [dead]
    status = {run_id: client.get_run(run_id).info.status for run_id in (dead, live, foreign.info.run_id)}
    assert status == {dead: "KILLED", live: "RUNNING", foreign.info.run_id: "RUNNING"}
    client.set_terminated(live, "KILLED")  # swept in an outage although it lived: its next heartbeat mends that
    runs["live"]._receiver.pulse()
    assert client.get_run(live).info.status == "RUNNING"
    runs["live"].close()
    runs["dead"]._journal.close()


@pytest.mark.parametrize("uri", ["./mlruns", "file:./mlruns", "/tmp/mlruns", "sqlite:///:memory:", "sqlite://"])
def test_stores_that_mlflow_gave_up_are_refused_with_a_sentence(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tracking URI"):
        Tracker(KEY, tmp_path, uri=uri)
    assert not list(tmp_path.iterdir())


def test_the_recipe_goes_before_the_environment_and_that_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracker.example/")
    assert tracking_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert tracking_uri() == "https://tracker.example"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("PRETEXT_HOME", "/data/home")
    assert tracking_uri() == "sqlite:////data/home/mlflow.db"


def test_the_pages_of_an_embedded_store_have_a_command_and_a_server_its_address(store: str) -> None:
    assert store in ui_command(5123, store) and "5123" in ui_command(5123, store)
    with pytest.raises(ValueError, match="https://tracker"):
        ui_command(given="https://tracker.example")


def test_a_deleted_experiment_is_named_at_once(store: str, tmp_path: Path) -> None:
    client, _ = connect_tracking(store)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ValueError, match="restore"):
        tracker(store, tmp_path / "run", experiment="gone")


def test_a_run_folder_serves_one_key(store: str, tmp_path: Path) -> None:
    tracker(store, tmp_path / "run", key="one").close()
    with pytest.raises(ValueError, match="one"):
        tracker(store, tmp_path / "run", key="two")


def test_processes_that_meet_at_a_new_database_all_work_and_share_the_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from components.tracking.tracker import Tracker\n"
        "with Tracker('same', Path(sys.argv[1]), uri=sys.argv[2], system_metrics=0, wait=100) as run:\n"
        "    run.point(int(sys.argv[3]), 1, {'loss': 1.0})\n"
        "print(run.run_id)"
    )
    uri = f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"
    (tmp_path / "home").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / f"run{i}"), uri, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [err for _, err in said] == ["", ""]
    ids = {out.strip() for out, _ in said}
    assert len(ids) == 1
    client, _ = connect_tracking(uri)
    assert sorted(history(client, ids.pop(), "loss")) == [0, 1]


def test_a_run_that_never_met_its_tracker_is_delivered_afterwards(store: str, tmp_path: Path) -> None:
    run = tracker("http://127.0.0.1:1", tmp_path / "run", wait=0.1)
    run.params({"a": 1})
    for step in range(100):
        run.point(step, 1_700_000_000_000 + step, {"loss": 1.0})
    run.figure("neighbours", png())
    started = time.monotonic()
    left = run.close("FAILED", seconds=0.2)
    assert time.monotonic() - started < 5
    assert left.startswith("104 records") and str(tmp_path) in left and run.run_id is None
    with pytest.raises(KeyboardInterrupt), tracker(store, tmp_path / "run", attempt=False):
        raise KeyboardInterrupt  # whoever only looks after a run leaves it as it ended
    client, _ = connect_tracking(store)
    experiment = client.get_experiment_by_name("pretext")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`pretext.run_key` = '{tmp_path.name}'")
    assert found.info.status == "FAILED" and found.data.params == {"a": "1"}
    assert history(client, found.info.run_id, "loss") == list(range(100))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    connect_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")  # migrations here, not under the server's start-up
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.mark.slow
def test_a_server_that_freezes_and_dies_neither_stops_the_run_nor_loses_or_doubles_a_point(
    server: Server, tmp_path: Path
) -> None:
    run = Tracker(KEY, tmp_path / "run", uri=server.uri, system_metrics=0, wait=20)  # nothing listens yet
    assert run.run_id is None
    slowest, step = 0.0, 0

    def train(steps: int) -> None:
        nonlocal slowest, step
        for _ in range(steps):
            started = time.monotonic()
            run.point(step, 1_700_000_000_000 + step, {"loss": 1 / (step + 1), "accuracy": step / 3})
            slowest, step = max(slowest, time.monotonic() - started), step + 1
            time.sleep(0.001)

    run.params({"optim": {"lr": 0.1}})
    train(300)
    server.start()
    train(1_500)
    run._shipper._wake.set()
    assert run.flush(60)
    train(200)
    server.send(signal.SIGSTOP)
    train(500)
    run.figure("neighbours", png())
    server.send(signal.SIGCONT)
    train(500)
    server.send(signal.SIGKILL)
    train(500)
    assert "run again" in run.close("FINISHED", seconds=1.0)
    server.start()
    assert Tracker(KEY, tmp_path / "run", uri=server.uri, system_metrics=0, attempt=False).close(seconds=60) == ""
    assert slowest < 1.0
    client, _ = connect_tracking(server.uri)
    assert run.run_id is not None
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED" and found.data.params == {"optim.lr": "0.1"}
    for key in ("loss", "accuracy"):
        assert Counter(history(client, run.run_id, key)) == Counter(range(step))
    assert [file.path for file in client.list_artifacts(run.run_id, "figures")] == ["figures/neighbours.png"]
