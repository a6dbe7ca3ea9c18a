"""A run has one home, its folder: each step by a process of its own with an empty local home, all in a bucket."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from tracking_server import Server

from components.tracking.store import connect_tracking
from components.training.run_folder import MODEL, RunFolder

pytestmark = pytest.mark.slow

SMALL = ["train.steps=40", "train.batch_size=64", "encoder.width=0.0625", "task.hidden=16", "task.out=16"]
SMALL += ["optim.warmup_steps=2", "evaluate.draws=3", "cluster.workers=2"]
OFTEN = ["runtime.log_every=1", "runtime.checkpoint_every=8", "runtime.check_every=0"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    connect_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


class Place:
    """A bucket with the digits as corpora, a tracking server, and commands that know of nothing else."""

    def __init__(self, root: Path, s3: str, server: Server) -> None:
        self.root, self.server, self.homes = root, server, 0
        self.bucket = f"home-{root.name.replace('_', '-').lower()}"
        boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=self.bucket)
        self.command("samples", "digits", home="samples")
        self.command(
            "ingest", str(root / "samples/samples/digits/unlabelled"), "--corpus", self.corpus("digits"), "--size", "16"
        )
        for part in ("train", "test"):
            folder = root / "samples/samples/digits" / part
            self.command("ingest", str(folder), "--corpus", self.corpus(part), "--size", "16", "--labels", "parent")

    def corpus(self, name: str) -> str:
        return f"s3://{self.bucket}/corpora/{name}"

    def settings(self, storage: str, *more: str) -> list[str]:
        values = [f"corpus.name={self.corpus('digits')}", f"cluster.storage={storage}", *SMALL, *OFTEN, *more]
        values += [f"evaluate.{part}.name={self.corpus(part)}" for part in ("train", "test")]
        values += [f"tracking.uri={self.server.uri}"]
        return [text for value in values for text in ("--set", value)]

    def start(self, *arguments: str, home: str = "") -> subprocess.Popen[str]:
        """A command in a home of its own, which is empty."""
        self.homes += 1
        environment = os.environ | {
            "PRETEXT_HOME": str(self.root / (home or f"home{self.homes}")),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pipelines", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def command(self, *arguments: str, home: str = "") -> str:
        process = self.start(*arguments, home=home)
        out, complaint = process.communicate(timeout=400)
        assert process.returncode == 0, complaint
        return out

    def run_folder(self, storage: str) -> RunFolder:
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        prefix = storage.removeprefix(f"s3://{self.bucket}/") + "/"
        listed = client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, Delimiter="/")["CommonPrefixes"]
        (name,) = {each["Prefix"].removeprefix(prefix).rstrip("/") for each in listed}
        return RunFolder(storage, name)

    def history(self, folder: RunFolder) -> list[int]:
        client = MlflowClient(self.server.uri)
        experiments = [each.experiment_id for each in client.search_experiments()]
        (run,) = client.search_runs(experiments, f"attributes.run_name = '{folder.name}'")
        self.status = run.info.status
        return [point.step for point in client.get_metric_history(run.info.run_id, "loss")]

    def journal(self, folder: RunFolder) -> list[dict[str, Any]]:
        names = sorted(entry for entry in RunFolder(folder.uri, "tracking").names() if entry.startswith("journal-"))
        return [json.loads(line) for name in names for line in (folder.read(f"tracking/{name}") or b"").splitlines()]


@pytest.fixture
def place(tmp_path: Path, s3: str, server: Server) -> Place:
    return Place(tmp_path, s3, server)


def weights(folder: RunFolder) -> str:
    return hashlib.sha256(folder.read(f"{MODEL}/model.safetensors") or b"").hexdigest()


def test_each_step_of_digits_works_in_an_empty_home_and_a_killed_driver_is_followed_by_one(place: Place) -> None:
    storage = f"s3://{place.bucket}/runs"
    for step in ("pretrain", "evaluate", "register"):
        out = place.command(step, "digits", *place.settings(storage))
    assert "registered digits-encoder version 1: champion" in out
    folder = place.run_folder(storage)
    held = {"model", "evaluation.json", "evaluation.0.json", "report.html", "tracking", "_lease"}
    assert held <= {*folder.names(), "_lease"}
    assert place.history(folder) == list(range(1, 41)) and place.status == "FINISHED"
    assert b"<img" in (folder.read("report.html") or b"")
    kept = [path for home in ("home5", "home6", "home7") for path in (place.root / home).rglob("*") if path.is_file()]
    assert kept and {path.relative_to(place.root).parts[1] for path in kept} <= {"cache", "locks"}

    out = place.root / "out.parquet"
    source = str(place.root / "samples/samples/digits/test")
    model = ("--model", "models:/digits-encoder@champion", "--tracking", place.server.uri)
    place.command("embed", source, *model, "-o", str(out))
    assert len(pq.read_table(out)) == 450

    killed = f"s3://{place.bucket}/killed"
    first = place.start("pretrain", "digits", *place.settings(killed))
    deadline = time.monotonic() + 300
    while not (checkpoints := [n for n in _names(place, killed) if n.startswith("checkpoint_")]):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert checkpoints
    second = place.start("pretrain", "digits", *place.settings(killed))
    _, complaint = second.communicate(timeout=400)
    assert second.returncode == 0, complaint
    again = place.run_folder(killed)
    assert again.name == folder.name and weights(again) == weights(folder)
    points = [
        (record["step"], "loss" in record["metrics"]) for record in place.journal(again) if record["kind"] == "point"
    ]
    assert [step for step, loss in points if loss] == list(range(1, 41))


def _names(place: Place, storage: str) -> list[str]:
    try:
        return place.run_folder(storage).names()
    except (KeyError, ValueError):
        return []
