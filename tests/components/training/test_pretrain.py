"""Pretraining under a real Ray: live points, exact restarts and resumes, and failures in one sentence."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from processes import running
from small_corpus import make_corpus

from components.cluster.connect import Cluster
from components.cluster.driver_channel import open_driver_channel
from components.corpus.corpus import Corpus
from components.storage.lease import ExclusiveLease, TakenOver
from components.storage.locks import Busy
from components.training.pretrain import Outcome, Point, _Driver, pretrain
from components.training.run_folder import MODEL, RunFolder
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.rotation import Rotation
from ssl_core.train import checkpoint
from ssl_core.train.run import Optim, Run, Runtime, Train
from ssl_core.train.saved_model import load_model

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning"),  # Ray's own code
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "stripes")


def make_run(**train: Any) -> Run:
    runtime = Runtime(checkpoint_every=train.pop("checkpoint_every", 5), log_every=1, check_every=0)
    encoder = EncoderSpec("resnet18", width=0.125, stem="cifar")
    learning = Train(**{"steps": 12, "batch_size": 16, **train})
    return Run(Rotation(canvas=16), encoder, Optim(lr=0.05, scale_lr=False), learning, runtime)


def train(
    run: Run,
    corpus: Corpus,
    storage: Path,
    on_point: Callable[[Point], None] = lambda point: None,
    before_checkpoint: Callable[[], None] = lambda: None,
    **cluster: Any,
) -> tuple[Outcome, list[Point]]:
    points: list[Point] = []

    def sink(point: Point) -> None:
        points.append(point)
        on_point(point)

    folder = RunFolder(str(storage), "run")
    hooks: Any = {"sink": sink, "before_checkpoint": before_checkpoint}
    outcome = pretrain(run, corpus.pinned(), folder, Cluster(**cluster), **hooks)
    return outcome, points


def state(storage: Path, step: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    tensors, meta = checkpoint.load(storage / "run" / checkpoint.name_of(step))
    return tensors, meta["ids_digests"]


def assert_same_run(one: Path, other: Path, step: int) -> None:
    (ours, our_ids), (theirs, their_ids) = state(one, step), state(other, step)
    assert our_ids == their_ids
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def workers_of_ray() -> list[psutil.Process]:
    """This test's Ray Train workers; Ray gives its processes their class's name."""
    return running("RayTrainWorker")


def taking_over(storage: Path) -> Callable[[Point], None]:
    """A sink that does at step 8 what another driver does to one that it takes for dead."""

    def take_over(point: Point) -> None:
        if point.step == 8:
            (record,) = (storage / "run" / "_lease").iterdir()
            record.unlink()

    return take_over


@pytest.fixture(scope="module")
def straight(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, list[Point]]:
    """The uninterrupted run by two workers."""
    storage = tmp_path_factory.mktemp("straight")
    outcome, points = train(make_run(steps=30), corpus, storage, workers=2)
    assert outcome == Outcome("FINISHED", 30, 30)
    return storage, points


def test_every_point_arrives_once_and_the_model_is_there(straight: tuple[Path, list[Point]]) -> None:
    storage, points = straight
    assert [point.step for point in points] == list(range(1, 31))
    assert {"loss", "accuracy", "lr", "samples_per_s"} <= points[-1].metrics.keys()
    task, model = load_model(storage / "run" / MODEL)
    assert task == Rotation(canvas=16)
    tensors, _ = state(storage, 30)
    assert all(torch.equal(tensor, tensors[f"model/{name}"]) for name, tensor in model.state_dict().items())


def test_a_killed_worker_costs_no_point_and_not_one_bit(
    straight: tuple[Path, list[Point]], corpus: Corpus, tmp_path: Path
) -> None:
    def kill_once(point: Point) -> None:
        if point.step == 8:
            workers_of_ray()[-1].kill()

    outcome, points = train(make_run(steps=30), corpus, tmp_path, kill_once, workers=2)
    assert outcome == Outcome("FINISHED", 30, 30)
    assert [point.step for point in points] == list(range(1, 31))
    assert [point.metrics["loss"] for point in points] == [point.metrics["loss"] for point in straight[1]]
    assert_same_run(tmp_path, straight[0], 30)


def test_sigterm_checkpoints_and_the_same_call_goes_on_past_a_truncated_snapshot(
    straight: tuple[Path, list[Point]], corpus: Corpus, tmp_path: Path
) -> None:
    def terminate(point: Point) -> None:
        if point.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    handler, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    long = make_run(steps=30)
    outcome, _ = train(long, corpus, tmp_path, terminate, workers=2)
    assert outcome.status == "KILLED" and outcome.reason == "stopped by SIGTERM" and 6 <= outcome.step < 30
    assert signal.getsignal(signal.SIGTERM) is handler and time.monotonic() - began < 120
    assert (tmp_path / "run" / checkpoint.name_of(outcome.step)).exists()

    snapshot = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:50])
    resumed, second = train(long, corpus, tmp_path, workers=2)
    assert resumed.status == "FINISHED"
    assert [point.step for point in second] == list(range(outcome.step + 1, 31))
    assert_same_run(tmp_path, straight[0], 30)


def test_a_signal_too_late_to_stop_the_training_is_heard_by_what_follows(corpus: Corpus, tmp_path: Path) -> None:
    heard: list[int] = []

    def interrupt(point: Point) -> None:
        if point.step == point.steps:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not heard

    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        outcome, _ = train(make_run(steps=3), corpus, tmp_path, interrupt, workers=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome == Outcome("FINISHED", 3, 3) and heard == [signal.SIGTERM]


def test_errors_of_input_come_as_one_sentence_without_retries(corpus: Corpus, tmp_path: Path) -> None:
    outcome, points = train(make_run(batch_size=128), corpus, tmp_path, workers=1)
    assert outcome.status == "FAILED" and not points
    assert "64" in outcome.reason and "128" in outcome.reason and "Traceback" not in outcome.reason


def test_gpus_that_are_not_there_are_refused_at_once(corpus: Corpus, tmp_path: Path) -> None:
    outcome, _ = train(make_run(), corpus, tmp_path, workers=64, gpus=True)
    assert outcome.status == "FAILED" and "asks for 64 GPUs" in outcome.reason


def test_a_run_that_another_driver_holds_is_refused_and_nothing_of_it_is_touched(
    corpus: Corpus, tmp_path: Path
) -> None:
    half_written = tmp_path / "run" / checkpoint.name_of(5) / checkpoint.TENSORS
    half_written.parent.mkdir(parents=True)
    half_written.write_bytes(b"on its way")
    with RunFolder(str(tmp_path), "run").lease(), pytest.raises(Busy, match=f"process {os.getpid()} on"):
        train(make_run(), corpus, tmp_path)
    assert half_written.read_bytes() == b"on its way"


def test_a_driver_that_was_taken_over_stops_and_writes_nothing_more(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(TakenOver, match="this one stops"):
        train(make_run(steps=3000), corpus, tmp_path, taking_over(tmp_path))
    assert RunFolder(str(tmp_path), "run").complete() == [checkpoint.name_of(5)]


def test_a_lease_found_lost_between_checkpoints_stops_the_run(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExclusiveLease, "RENEW", 0.1)

    with pytest.raises(TakenOver):
        train(make_run(steps=100_000, checkpoint_every=100_000), corpus, tmp_path, taking_over(tmp_path))
    assert RunFolder(str(tmp_path), "run").complete() == []


def test_a_sink_that_raises_ends_the_workers_too(corpus: Corpus, tmp_path: Path) -> None:
    """Those that wait for the driver before a checkpoint would otherwise wait for ever."""

    def fail(point: Point) -> None:
        raise RuntimeError("the sink is out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        train(make_run(steps=1000), corpus, tmp_path, fail, max_failures=0)
    deadline = time.monotonic() + 60
    while workers_of_ray() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not workers_of_ray()


def test_a_posted_outcome_counts_more_than_what_befalls_ray_later(tmp_path: Path) -> None:
    channel = open_driver_channel()
    ray.get(channel.post.remote({"status": "FINISHED", "step": 12, "steps": 12, "reason": ""}))
    fit: Any = SimpleNamespace(is_alive=lambda: False, error=RuntimeError("Ray came down"))
    driver = _Driver(channel, fit, lambda point: None, lambda: None, [], RunFolder(str(tmp_path), "run").lease())
    assert driver.watch() == Outcome("FINISHED", 12, 12)


@pytest.mark.slow
def test_a_diverging_run_fails_with_the_reason(corpus: Corpus, tmp_path: Path) -> None:
    run = make_run(steps=200)
    wild = Run(run.task, run.encoder, Optim(lr=1e30, scale_lr=False), run.train)
    outcome, _ = train(wild, corpus, tmp_path)
    assert outcome.status == "FAILED" and "NaN or infinite" in outcome.reason


@pytest.mark.slow
def test_outside_the_main_thread_signals_are_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    """Ray Tune runs its trials so."""
    results: list[Outcome] = []
    thread = threading.Thread(target=lambda: results.append(train(make_run(steps=2), corpus, tmp_path)[0]))
    thread.start()
    thread.join()
    assert results == [Outcome("FINISHED", 2, 2)]
