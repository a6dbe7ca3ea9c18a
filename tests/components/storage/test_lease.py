"""The lease of a run: processes that pass for two machines, at a shared folder and at an S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from components.storage.files import read, write
from components.storage.lease import ExclusiveLease, TakenOver, is_held, record_of, require
from components.storage.locks import Busy

DRIVER = """
import sys
from components.storage import lease
lease._machine = lambda: sys.argv[2]
Lease = lease.ExclusiveLease
Lease.RENEW, Lease.DEAD_AFTER, Lease.LOOK = 0.3, float(sys.argv[3]), 0.1
try:
    with Lease(sys.argv[1]) as mine:
        print(mine.record, flush=True)
        for _ in sys.stdin:
            lease.require(mine.record)
            print("goes on", flush=True)
except (lease.Busy, lease.TakenOver) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "runs" / "tiny")
    bucket = f"lease-{tmp_path.name.replace('_', '-').lower()}"
    boto3.client("s3", endpoint_url=request.getfixturevalue("s3")).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/tiny"


@pytest.fixture
def start() -> Iterator[Start]:
    """A driver at `root` that passes for a process of `machine`; it ends with the test."""
    started = []

    def start(root: str, machine: str, dead_after: float = 60) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, root, machine, str(dead_after)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    print(file=process.stdin, flush=True)
    return line(process)


@pytest.mark.parametrize("machine", ["a", "b"])
def test_the_second_is_told_who_holds_it_and_the_first_is_left_alone(root: str, start: Start, machine: str) -> None:
    first = start(root, "a")
    record = line(first)
    assert is_held(record)
    began = time.monotonic()
    second = line(start(root, machine))
    assert second.startswith(f"Busy: {root} is held by process {first.pid} on ") and " since 20" in second
    assert "takes over 60 s after" in second and time.monotonic() - began < 30
    assert is_held(record) and ask(first) == "goes on"


def test_after_an_end_the_next_one_holds_it_at_once(root: str, start: Start) -> None:
    first = start(root, "a")
    record = line(first)
    first.communicate()
    assert not is_held(record)
    assert line(start(root, "b")).startswith(root)


@pytest.mark.parametrize(("machine", "at_least"), [("a", 0.0), ("b", 2.0)])
def test_a_killed_holder_is_outlived(root: str, start: Start, machine: str, at_least: float) -> None:
    """At once on its own machine, after the stated time on another one."""
    first = start(root, "a", 5)
    record = line(first)
    first.kill()
    first.communicate()
    began = time.monotonic()
    second = start(root, machine, 5)
    assert is_held(line(second))
    assert at_least <= time.monotonic() - began < 30
    assert not is_held(record)


def test_a_sleeper_that_was_taken_over_stops(root: str, start: Start) -> None:
    first = start(root, "a", 2)
    record = line(first)
    first.send_signal(signal.SIGSTOP)
    second = start(root, "b", 2)
    mine = line(second)
    first.send_signal(signal.SIGCONT)
    answer = ask(first)
    assert answer.startswith(f"TakenOver: {record} is gone") and "this one stops" in answer
    assert is_held(mine) and ask(second) == "goes on"


def test_of_many_that_start_at_once_one_holds_it(root: str, start: Start) -> None:
    answers = [line(process) for process in [start(root, f"machine {i}") for i in range(5)]]
    assert sum(answer.startswith(root) for answer in answers) == 1, answers
    assert sum("is held by process" in answer for answer in answers) == 4


def test_a_renewal_that_comes_in_late_does_not_bring_the_dead_back(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExclusiveLease, "RENEW", 0.1)
    with ExclusiveLease(root) as mine:
        late = record_of(mine.folder, "20200101T000000-00000000")
        write(late, json.dumps({"machine": "another", "pid": 1, "started": 1.0}).encode())
        deadline = time.monotonic() + 10
        while is_held(late) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_held(late) and is_held(mine.record)


def test_a_record_that_a_killed_holder_had_half_written_is_nobodys_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "_lease"
    folder.mkdir()
    left, young = (folder / f".20200101T000000-00000000.json.{digit * 16}.part" for digit in "01")
    for path in (left, young):
        path.write_text('{"machine": "a')
    os.utime(left, (1e9, 1e9))
    with ExclusiveLease(str(tmp_path)) as mine:
        assert [path for path in folder.iterdir() if path != Path(mine.record)] == [young]
        assert mine.others() == []


def test_within_a_process_it_is_exclusive_too_and_a_garbled_record_is_nobodys(root: str) -> None:
    write(record_of(f"{root}/_lease", "20200101T000000-00000000"), b'{"machine": "a')
    with ExclusiveLease(root) as mine:
        require(mine.record)
        assert json.loads(read(mine.record) or b"")["pid"] == os.getpid()
        with pytest.raises(Busy, match=str(os.getpid())), ExclusiveLease(root):
            pass
        assert is_held(mine.record)
    with pytest.raises(TakenOver):
        require(mine.record)
