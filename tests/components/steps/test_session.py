"""Who works on a run: one process at a time, here and on other machines, and a second one is told who does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.steps.context import StepError
from components.steps.session import exclusively, not_taken_over
from components.storage.files import remove
from components.storage.home import pretext_home
from components.storage.lease import Lease, TakenOver, is_held
from components.tracking.tracker import Tracker
from components.training.run_folder import RunFolder

WORK = """
import sys
from components.steps.session import exclusively
from components.training.run_folder import RunFolder
with exclusively("run r", RunFolder(sys.argv[1], "r")):
    print("at work", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("homes", ["one home", "two homes"])
def test_a_second_process_is_told_who_is_at_work(tmp_path: Path, homes: str) -> None:
    home = str(pretext_home()) if homes == "one home" else str(tmp_path / "another")
    first = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path)],
        env=os.environ | {"PRETEXT_HOME": home},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None and first.stdout.readline() == "at work\n"
    with (
        pytest.raises(
            StepError, match=rf"^run r is being worked on: .*process {first.pid}.*; wait for it, or stop it$"
        ),
        exclusively("run r", RunFolder(str(tmp_path), "r")),
    ):
        raise AssertionError("two at once")
    first.communicate("\n")
    with exclusively("run r", RunFolder(str(tmp_path), "r")) as lease:
        assert is_held(lease.record)
    assert not is_held(lease.record)


def test_the_run_s_folder_holds_no_lock_of_this_machine(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "runs"), "r")
    with exclusively("run r", folder):
        assert folder.names() == ["_lease"]
        assert [path.suffix for path in (pretext_home() / "locks").iterdir()] == [".lock"]


def lose(lease: Lease, failure: Exception | None) -> None:
    """Work in the middle of which another process takes over, and which may fail of it."""
    remove(lease.record)
    if failure:
        raise failure


@pytest.mark.parametrize("failure", [None, KeyError("loss")], ids=["done", "failed"])
def test_a_record_is_left_to_the_process_that_has_taken_the_run_over(tmp_path: Path, failure: Exception | None) -> None:
    folder = RunFolder(str(tmp_path / "runs"), "r")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with (
        pytest.raises(TakenOver),
        exclusively("run r", folder) as lease,
        Tracker("key", folder.uri, uri=store, system_metrics=0) as tracker,
        not_taken_over(lease),
    ):
        lose(lease, failure)
    kinds = [json.loads(line)["kind"] for line in (folder.read("tracking/journal.jsonl") or b"").splitlines()]
    assert kinds == ["run"]
    assert MlflowClient(store).get_run(tracker.run_id).info.status == "RUNNING"
