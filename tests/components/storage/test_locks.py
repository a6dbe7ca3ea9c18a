"""A lock has one holder of this machine, which is named, and is free the moment that its holder is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.storage.locks import Busy, acquire, exclusive

HOLDER = """
import sys
from pathlib import Path
from components.storage.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_elsewhere(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    holder = hold_elsewhere(path)
    try:
        with (
            pytest.raises(Busy, match=f"{path} is held by process {holder.pid} of this machine"),
            exclusive(path, wait=0),
        ):
            pass
    finally:
        holder.communicate("")
    with exclusive(path, wait=0):
        assert path.read_text() == str(os.getpid())


def test_it_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold_elsewhere(path) as holder:
        holder.send_signal(signal.SIGKILL)
    os.close(acquire(path))


def test_waiting_ends_as_soon_as_the_lock_is_free_and_not_before(tmp_path: Path) -> None:
    path, held = tmp_path / ".lock", acquire(tmp_path / ".lock")
    freed: list[float] = []

    def free() -> None:
        freed.append(time.monotonic())
        os.close(held)

    timer = threading.Timer(0.2, free)
    timer.start()
    os.close(acquire(path, wait=30))
    assert 0 <= time.monotonic() - freed[0] < 10
    timer.join()


def test_it_is_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / ".lock"):
        _ = 1 / 0
    os.close(acquire(tmp_path / ".lock"))


def test_two_threads_never_hold_it_at_once(tmp_path: Path) -> None:
    inside, most = [], []

    def work() -> None:
        for _ in range(10):
            with exclusive(tmp_path / ".lock", wait=60):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 30 and max(most) == 1
