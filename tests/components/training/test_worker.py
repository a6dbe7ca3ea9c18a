"""What a worker makes of errors, and which of its checkpoints the run's folder takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs
import pytest
import ray
import ray.train
import torch

from components.cluster.driver_channel import open_driver_channel
from components.storage.files import remove, write
from components.storage.lease import ExclusiveLease, TakenOver
from components.training import worker
from components.training.pretrain import sentence
from components.training.run_folder import RunFolder
from components.training.worker import FINAL, TRACE, ReportingStore, Training, _fault, pyarrow_location, work
from ssl_core.data.layout import ShardError
from ssl_core.errors import InputError, PretextError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.rotation import Rotation
from ssl_core.train import checkpoint
from ssl_core.train.run import Run
from ssl_core.types import CorpusVersion

STATE = ({"weight": torch.ones(3)}, {"step": 5})


@pytest.fixture
def channel(ray_cluster: None) -> Any:
    return open_driver_channel()


def group_of(monkeypatch: pytest.MonkeyPatch, size: int, outcome: Exception | None) -> list[str]:
    """A worker group of that size whose training ends so; -> a list that grows with each training."""
    trained: list[str] = []

    def train(training: Any) -> None:
        trained.append("trained")
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: size))
    return trained


def test_an_error_of_input_is_told_to_the_driver_and_the_next_group_returns_at_once(
    monkeypatch: pytest.MonkeyPatch, channel: Any
) -> None:
    trained = group_of(monkeypatch, 1, InputError("the corpus has one class"))
    config: Any = {"training": SimpleNamespace(channel=channel)}
    work(config)
    assert ray.get(channel.failure.remote()) == "the corpus has one class"
    work(config)
    assert trained == ["trained"], "the second group has heard of the failure"


def test_beside_others_it_is_raised_as_well_so_that_ray_ends_them_all(
    monkeypatch: pytest.MonkeyPatch, channel: Any, tmp_path: Path
) -> None:
    group_of(monkeypatch, 2, AssertionError())
    config: Any = {"training": SimpleNamespace(channel=channel, folder=RunFolder(str(tmp_path), "run"))}
    with pytest.raises(AssertionError):
        work(config)
    assert "AssertionError" in ray.get(channel.failure.remote()), "an error without words has a name"


def test_an_error_that_may_not_come_again_is_for_ray_to_retry(monkeypatch: pytest.MonkeyPatch, channel: Any) -> None:
    group_of(monkeypatch, 1, OSError("the disk is away"))
    config: Any = {"training": SimpleNamespace(channel=channel)}
    with pytest.raises(OSError, match="the disk is away"):
        work(config)
    assert ray.get(channel.failure.remote()) == ""


@pytest.fixture
def attended(channel: Any) -> Iterator[Any]:
    """A channel whose driver deals with all that arrives."""
    ended = threading.Event()

    def receive() -> None:
        while not ended.is_set():
            ray.get(channel.receive.remote(0.05))

    driver = threading.Thread(target=receive)
    driver.start()
    yield channel
    ended.set()
    driver.join()


def test_checkpoints_and_models_are_written_by_rank_0_alone_and_only_under_the_drivers_lease(
    monkeypatch: pytest.MonkeyPatch, attended: Any, tmp_path: Path
) -> None:
    reports: list[tuple[Any, Any]] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, kept, **_: reports.append((metrics, kept)))
    folder = RunFolder(str(tmp_path), "run")
    with ExclusiveLease(folder.uri) as lease:
        training: Any = SimpleNamespace(folder=folder, lease=lease.record, channel=attended)
        first, second = (ReportingStore(training, rank) for rank in (0, 1))
        second.keep(5, STATE)
        assert folder.complete() == [] and reports == [({"step": 5}, None)], "rank 1 only takes part"
        first.keep(5, STATE)
        assert folder.complete() == [checkpoint.name_of(5)]
        assert reports[1][0] == {"step": 5} and reports[1][1].path.endswith("run/checkpoint_00000005")
        remove(lease.record)
        with pytest.raises(TakenOver):
            first.keep(6, STATE)
        with pytest.raises(TakenOver):
            first.publish(Path.mkdir)
    assert folder.complete() == [checkpoint.name_of(5)] and not (tmp_path / "run" / "model").exists()


def test_a_place_is_a_path_and_the_file_system_that_reads_it(tmp_path: Path, s3: str) -> None:
    import boto3

    (tmp_path / "file").write_bytes(b"here")
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="worker-place")
    write("s3://worker-place/file", b"there")
    for uri, kind, content in (
        (str(tmp_path / "file"), pyarrow.fs.LocalFileSystem, b"here"),
        ("s3://worker-place/file", pyarrow.fs.PyFileSystem, b"there"),
    ):
        path, files = pyarrow_location(uri)
        assert isinstance(files, kind)
        with files.open_input_stream(path) as stream:
            assert stream.read() == content


def _training(storage: Path) -> Training:
    run, corpus = Run(Rotation(), EncoderSpec("resnet18")), CorpusVersion("corpus", 0, "digest", 1)
    return Training(run, corpus, RunFolder(str(storage), "run"), "lease", "home", None)


def _caught() -> Exception:
    try:
        raise ValueError("shapes do not fit")
    except ValueError as error:
        return error


def test_a_fault_of_ours_leaves_its_trace_in_the_runs_folder(tmp_path: Path) -> None:
    told = _fault(_caught(), _training(tmp_path))
    trace = tmp_path / "run" / TRACE
    assert "unexpected ValueError" in told and told.endswith(f"its trace is in {trace}")
    assert "shapes do not fit" in trace.read_text() and trace.read_text().startswith("Traceback")


def test_a_fault_is_told_where_its_trace_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert "unexpected ValueError" in _fault(_caught(), _training(tmp_path))


def test_errors_of_input_are_final() -> None:
    assert issubclass(InputError, FINAL) and issubclass(ShardError, FINAL)
    assert not issubclass(PretextError, FINAL)


def test_what_ended_all_restarts_is_told_by_what_it_is() -> None:
    assert sentence(InputError("lower the batch size")) == "lower the batch size"
    assert sentence(MemoryError("8 GiB")).startswith("out of memory (8 GiB); lower train.batch_size")
    assert sentence(RuntimeError("mat1\nmat2")) == "the workers failed, unexpectedly, with RuntimeError: mat1 mat2"
