"""The journal of a run whose folder lies in a bucket: another machine goes on with what one that is gone uploaded."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import boto3
import pytest

from components.storage.files import StorageError, entries, read, remove
from components.tracking import mirror as module
from components.tracking.journal import Journal
from components.tracking.mirror import Mirror
from components.tracking.store import connect_tracking
from components.tracking.tracker import Tracker


@pytest.fixture
def bucket(tmp_path: Path, s3: str) -> str:
    name = f"mirror-{tmp_path.name.replace('_', '-').lower()}"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=name)
    return f"s3://{name}/runs/digits-1"


def machine(uri: str, folder: Path) -> tuple[Journal, Mirror]:
    mirror = Mirror(f"{uri}/tracking", folder)
    return Journal(folder, mirror.restore), mirror


def add(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.append_point(step, 1_700_000_000_000 + step, {"loss": 1 / (step + 1)})


def steps_of(journal: Journal) -> list[int]:
    return [record["step"] for record in journal.records()]


def segments(uri: str) -> list[tuple[str, int]]:
    found = [(entry.uri.rsplit("/", 1)[1], entry.size) for entry in entries(f"{uri}/tracking") if not entry.folder]
    return sorted(found)


@pytest.mark.parametrize("segment", [4 << 20, 500])
def test_what_was_uploaded_is_found_by_an_empty_machine_which_goes_on(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    monkeypatch.setattr(module, "SEGMENT", segment)
    here, mirror = machine(bucket, tmp_path / "a")
    add(here, range(10))
    mirror.upload(here)
    add(here, range(10, 20))
    mirror.upload(here)
    add(here, range(20, 23))  # a killed process: not uploaded
    os.close(here._lock)

    there, mirror = machine(bucket, tmp_path / "b")
    assert steps_of(there) == list(range(20))
    add(there, range(15, 30))  # those since the checkpoint come again
    mirror.upload(there)
    assert steps_of(there) == list(range(30))
    whole = b"".join(read(f"{bucket}/tracking/{name}") or b"" for name, _ in segments(bucket))
    assert whole == (tmp_path / "b" / "journal.jsonl").read_bytes()
    assert len(segments(bucket)) == (1 if segment > 500 else 3)


def test_a_machine_that_comes_back_keeps_what_it_had_not_uploaded_unless_another_went_on(
    bucket: str, tmp_path: Path
) -> None:
    here, mirror = machine(bucket, tmp_path / "a")
    add(here, range(5))
    mirror.upload(here)
    add(here, range(5, 8))
    here.close()
    again, mirror = machine(bucket, tmp_path / "a")
    assert steps_of(again) == list(range(8))
    again.close()

    there, mirror = machine(bucket, tmp_path / "b")
    add(there, range(5, 20))
    mirror.upload(there)
    there.close()
    back, _ = machine(bucket, tmp_path / "a")
    assert steps_of(back) == list(range(20))


def test_a_lost_segment_is_named_and_nothing_is_overwritten(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT", 100)
    here, mirror = machine(bucket, tmp_path / "a")
    for steps in (range(3), range(3, 6), range(6, 9)):
        add(here, steps)
        mirror.upload(here)
    first, second, third = segments(bucket)
    remove(f"{bucket}/tracking/{second[0]}")
    with pytest.raises(StorageError, match=f"lacks the segment of the journal that starts at {first[1]}"):
        machine(bucket, tmp_path / "b")
    assert segments(bucket) == [first, third]


def test_a_storage_that_refuses_for_a_moment_costs_nothing_and_one_that_goes_on_refusing_is_named(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, mirror = machine(bucket, tmp_path / "a")
    add(here, range(5))
    real, refusals = module.write, [2]

    def flaky(uri: str, data: bytes) -> None:
        if refusals[0] and uri.startswith("s3://"):
            refusals[0] -= 1
            raise StorageError(f"{uri}: SlowDown")
        real(uri, data)

    monkeypatch.setattr(module, "write", flaky)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    mirror.upload(here)
    assert len(segments(bucket)) == 1
    refusals[0] = 99
    add(here, range(5, 6))
    with pytest.raises(StorageError, match="SlowDown"):
        mirror.upload(here)


def test_a_full_disk_of_this_machine_stops_no_upload(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, mirror = machine(bucket, tmp_path / "a")
    add(here, range(5))

    def full(path: Path, text: str, *, durable: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as disk:
        disk.setattr(module, "replace_text", full)
        mirror.upload(here)
    here.close()
    assert segments(bucket) == [("journal-000000000000.jsonl", (tmp_path / "a" / "journal.jsonl").stat().st_size)]
    assert steps_of(machine(bucket, tmp_path / "a")[0]) == list(range(5))


def test_a_run_goes_on_elsewhere_with_no_point_lost_or_doubled_and_with_its_figures(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first machine logs while the tracker is away, uploads at a checkpoint, reaches the tracker, and is killed."""
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / "a"))
    away = Tracker("moved", bucket, uri="http://127.0.0.1:1", system_metrics=0, wait=0.1)
    away.figure("curves", b"png")
    for step in range(10):
        away.point(step, 1_000 + step, {"loss": 1.0})
    away.persist()
    away.close(None, seconds=0.1)
    first = Tracker("moved", bucket, uri=store, system_metrics=0)
    for step in range(10, 14):  # the tracker gets these, the bucket does not
        first.point(step, 1_000 + step, {"loss": 1.0})
    assert first.flush(20)
    first._shipper.drain(5)
    os.close(first._journal._lock)

    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / "b"))
    with Tracker("moved", bucket, uri=store, system_metrics=0) as second:
        assert [point.step for point in second.points()] == list(range(10))
        for step in range(10, 20):
            second.point(step, 2_000 + step, {"loss": 1.0})
    client, _ = connect_tracking(store)
    assert second.run_id is not None and second.run_id == first.run_id
    assert sorted(metric.step for metric in client.get_metric_history(second.run_id, "loss")) == list(range(20))
    assert [file.path for file in client.list_artifacts(second.run_id, "figures")] == ["figures/curves.png"]
    assert read(f"{bucket}/tracking/artifacts/figures/curves.png") == b"png"

    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / "c"))
    with Tracker("moved", bucket, uri=store, system_metrics=0, attempt=False) as third:
        assert [point.step for point in third.points()] == list(range(20))
    assert sorted(metric.step for metric in client.get_metric_history(second.run_id, "loss")) == list(range(20))


@pytest.mark.parametrize("last", ["b", "a"])
def test_points_of_a_machine_that_is_gone_are_not_doubled_by_one_that_is_stopped_before_it_reaches_them(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """The tracker gets more than the bucket from the first machine; or, where the first comes back, from the second."""
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def killed(home: str, steps: range, uploaded: bool) -> None:
        monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / home))
        tracker = Tracker("moved", bucket, uri=store, system_metrics=0)
        for step in steps:
            tracker.point(step, time.time_ns() // 1_000_000, {"loss": 1.0})
        if uploaded:
            tracker.persist()
        assert tracker.flush(20)
        tracker._shipper.drain(5)
        os.close(tracker._journal._lock)

    killed("a", range(5), uploaded=True)
    killed("a" if last == "b" else "b", range(5, 9), uploaded=False)
    killed("b", range(0), uploaded=False)
    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / last))
    with Tracker("moved", bucket, uri=store, system_metrics=0) as tracker:
        for step in range(5, 12):
            tracker.point(step, time.time_ns() // 1_000_000, {"loss": 1.0})
    client, _ = connect_tracking(store)
    assert tracker.run_id is not None
    assert sorted(point.step for point in client.get_metric_history(tracker.run_id, "loss")) == list(range(12))
