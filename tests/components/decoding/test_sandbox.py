"""The sandbox decodes what is sound, names what is not, and outlives whatever its child does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from hostile import encoded, good_files, hostile_files, picture, slow_jpeg
from processes import ends

from components.decoding import sandbox as module
from components.decoding.sandbox import Sandbox
from ssl_core.data.decode import Limits, Reason, Rejected, SampleFormat, decode

FORMAT = SampleFormat(32)
MIB = 2**20


@pytest.fixture(scope="module")
def heavy() -> bytes:
    """A sound picture that takes the child about a second: time to shoot it."""
    return encoded(np.repeat(np.repeat(picture(500, 500), 8, 0), 8, 1), "png", compress_level=1)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Limits(), FORMAT) as box:
        yield box


def child_of(box: Sandbox) -> psutil.Process:
    assert box._child is not None
    return psutil.Process(box._child._process.pid)


def refusal(box: Sandbox, data: bytes) -> Rejected:
    with pytest.raises(Rejected) as caught:
        box.decode(data)
    return caught.value


def when_busy(box: Sandbox, strike: Callable[[psutil.Process], None], times: int = 1) -> threading.Thread:
    """Strike the child once it has worked 50 ms on a file; `times` children in turn."""

    def hunt() -> None:
        seen: set[int] = set()
        deadline = time.monotonic() + 60
        while len(seen) < times and time.monotonic() < deadline:
            time.sleep(0.005)
            child = box._child
            if child is None or child._files == 0 or child._process.pid in seen:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = psutil.Process(child._process.pid)
                start = sum(victim.cpu_times()[:2])
                while time.monotonic() < deadline and sum(victim.cpu_times()[:2]) < start + 0.05:
                    time.sleep(0.005)
                seen.add(victim.pid)
                strike(victim)

    thread = threading.Thread(target=hunt, daemon=True)
    thread.start()
    return thread


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.parametrize("payload", ["raw", "jpeg"])
def test_sound_files_come_out_as_without_a_sandbox(payload: str) -> None:
    sample_format = SampleFormat(40, payload)  # type: ignore[arg-type]
    with Sandbox(Limits(), sample_format) as box:
        for data in good_files().values():
            assert box.decode(data) == decode(data, Limits(), sample_format)
            assert box.decode(memoryview(bytearray(data))) == decode(data, Limits(), sample_format)


def test_hostile_files_are_all_named_and_harm_neither_this_process_nor_the_sound_ones(sandbox: Sandbox) -> None:
    hostile, good = hostile_files(), list(good_files().values())
    expected = [decode(data, Limits(), FORMAT) for data in good]
    assert len(hostile) >= 40
    sandbox.decode(good[0])
    pid = child_of(sandbox).pid
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is in use now
    before = peak_memory()
    for number, (name, data) in enumerate(hostile.items()):
        reason = refusal(sandbox, data).reason
        assert reason in set(Reason) - {Reason.CRASHED, Reason.TIMEOUT, Reason.MEMORY}, name
        assert sandbox.decode(good[number % len(good)]) == expected[number % len(good)]
    assert peak_memory() - before < 200 * MIB
    assert child_of(sandbox).pid == pid


def test_a_file_that_takes_too_long_is_refused_and_the_next_one_is_not() -> None:
    with Sandbox(Limits(max_seconds=0.4), FORMAT) as box:
        assert refusal(box, slow_jpeg()).reason is Reason.TIMEOUT
        assert box.decode(encoded(picture(), "png")).height == 32


def test_a_child_that_stands_still_is_given_up_after_thrice_the_time(heavy: bytes) -> None:
    with Sandbox(Limits(max_seconds=0.5), FORMAT) as box:
        hunter = when_busy(box, lambda child: child.suspend())
        began = time.monotonic()
        assert refusal(box, heavy).reason is Reason.TIMEOUT
        hunter.join()
        assert 1.4 < time.monotonic() - began < 20


def test_waiting_for_a_processor_does_not_count_as_taking_long(heavy: bytes) -> None:
    with Sandbox(Limits(max_seconds=3), FORMAT) as box:

        def pause(child: psutil.Process) -> None:
            child.suspend()
            time.sleep(3.5)
            child.resume()

        when_busy(box, pause)
        assert box.decode(heavy).height == 32


def test_a_file_that_needs_too_much_memory_is_refused_and_the_next_one_is_not(heavy: bytes) -> None:
    with Sandbox(Limits(max_memory=40 * MIB), FORMAT) as box:
        assert refusal(box, heavy).reason is Reason.MEMORY
        assert box.decode(encoded(picture(), "png")).height == 32


def test_files_over_the_limit_are_refused_before_a_child_exists() -> None:
    with Sandbox(Limits(max_bytes=1000), FORMAT) as box:
        assert refusal(box, bytes(1001)).reason is Reason.TOO_LARGE
        assert refusal(box, b"").reason is Reason.EMPTY
        assert box._child is None


def test_a_child_shot_once_costs_no_file(sandbox: Sandbox, heavy: bytes) -> None:
    hunter = when_busy(sandbox, lambda child: child.kill())
    assert sandbox.decode(heavy) == decode(heavy, Limits(), FORMAT)
    hunter.join()


def test_a_file_whose_child_dies_every_time_is_refused_as_crashed(sandbox: Sandbox, heavy: bytes) -> None:
    when_busy(sandbox, lambda child: child.kill(), times=2)
    verdict = refusal(sandbox, heavy)
    assert verdict.reason is Reason.CRASHED and "SIGKILL" in verdict.message
    assert sandbox.decode(encoded(picture(), "png")).height == 32


def test_a_child_that_dies_between_files_is_replaced(sandbox: Sandbox) -> None:
    data = encoded(picture(), "png")
    for _ in range(3):
        assert sandbox.decode(data).height == 32
        child_of(sandbox).kill()
        time.sleep(0.05)


LIES = {
    "noise": "os.write(1, os.urandom(5000))",
    "a payload of 4 GB": "os.write(1, frame({'id': 1, 'codec': 'raw', 'height': 32, 'width': 32}, 2**32 - 1))",
    "a text of 4 GB": "os.write(1, b'\\xff' * 8 + b'x' * 9000)",
    "no JSON": "os.write(1, (4).to_bytes(4, 'big') + bytes(4) + b'{{{{')",
    "deep JSON": "os.write(1, (8000).to_bytes(4, 'big') + bytes(4) + b'[' * 8000)",
    "a list": "os.write(1, frame([1]))",
    "another's answer": "os.write(1, frame({'id': 7, 'reason': 'corrupt', 'message': 'x'}))",
    "an unknown reason": "os.write(1, frame({'id': 1, 'reason': 'because', 'message': 'x'}))",
    "a reason that is a list": "os.write(1, frame({'id': 1, 'reason': [], 'message': 'x'}))",
    "another codec": "os.write(1, frame({'id': 1, 'codec': 'exe', 'height': 32, 'width': 32}, 3072) + bytes(3072))",
    "another size": "os.write(1, frame({'id': 1, 'codec': 'raw', 'height': 8, 'width': 8}, 192) + bytes(192))",
    "a negative size": "os.write(1, frame({'id': 1, 'codec': 'raw', 'height': 32, 'width': -9}))",
    "too few pixels": "os.write(1, frame({'id': 1, 'codec': 'raw', 'height': 32, 'width': 32}, 9) + bytes(9))",
    "sizes in words": "os.write(1, frame({'id': 1, 'codec': 'raw', 'height': '32', 'width': None}))",
    "half a frame": "os.write(1, b'\\0\\0')",
    "nothing": "os._exit(3)",
}
LIAR = """
import json, os
def frame(answer, length=0):
    text = json.dumps(answer).encode()
    return len(text).to_bytes(4, "big") + length.to_bytes(4, "big") + text
os.read(0, 100000)
os.write(1, frame({"ready": True}))
os.read(0, 100000)
"""


@pytest.mark.parametrize("lie", LIES)
def test_a_child_that_lies_is_not_believed(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOOT", LIAR + LIES[lie])
    with Sandbox(Limits(), FORMAT) as box:
        before = psutil.Process().memory_info().rss
        assert refusal(box, encoded(picture(), "png")).reason is Reason.CRASHED
        assert psutil.Process().memory_info().rss - before < 50 * MIB


def test_an_answer_to_the_next_file_given_in_advance_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    early = (
        "[os.write(1, frame({'id': n, 'codec': 'raw', 'height': 32, 'width': 32}, 3072) + bytes(3072)) for n in (1, 2)]"
    )
    monkeypatch.setattr(module, "_BOOT", LIAR + early + "\nos.read(0, 1)")
    with Sandbox(Limits(), FORMAT) as box:
        box.decode(b"first")
        liar = child_of(box).pid
        time.sleep(0.1)
        box.decode(b"second")
        assert child_of(box).pid != liar


def test_a_decoder_that_cannot_start_is_an_error_of_ours_and_not_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process().children()  # a Ray of other tests may be among them
    monkeypatch.setattr(module, "_BOOT", "raise ImportError('Pillow is not installed here')")
    with Sandbox(Limits(), FORMAT) as box, pytest.raises(RuntimeError, match=r"does not start.*Pillow is not"):
        box.decode(encoded(picture(), "png"))
    assert psutil.Process().children() == before


def test_closing_leaves_neither_a_process_nor_a_pipe() -> None:
    psutil_self = psutil.Process()
    pipes, children = psutil_self.num_fds(), len(psutil_self.children())
    for _ in range(3):
        with Sandbox(Limits(), FORMAT) as box:
            box.decode(encoded(picture(), "png"))
            assert len(psutil_self.children()) == children + 1
    forgotten = Sandbox(Limits(), FORMAT)
    forgotten.decode(encoded(picture(), "png"))
    del forgotten
    assert (psutil_self.num_fds(), len(psutil_self.children())) == (pipes, children)


@pytest.mark.parametrize("moment", ["idle", "busy"])
def test_the_child_does_not_outlive_a_parent_that_is_shot(moment: str, tmp_path: Path) -> None:
    (tmp_path / "slow.jpg").write_bytes(slow_jpeg())
    program = (
        "import sys, time\n"
        "from components.decoding.sandbox import Sandbox\n"
        "from ssl_core.data.decode import SampleFormat, Limits, Rejected\n"
        "box = Sandbox(Limits(max_seconds=100), SampleFormat(32))\n"
        "try: box.decode(b'none')\n"
        "except Rejected: print(box._child._process.pid, flush=True)\n"
        "box.decode(open(sys.argv[1], 'rb').read()) if sys.argv[2] == 'busy' else time.sleep(100)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "slow.jpg"), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)
        assert child.is_running()
        parent.kill()
    assert ends(child, seconds=5)


def test_the_child_knows_no_secrets(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "do-not-tell")
    sandbox.decode(encoded(picture(), "png"))
    assert "do-not-tell" not in str(child_of(sandbox).environ())


def test_a_locked_in_process_opens_no_file_no_socket_and_no_program() -> None:
    program = """
import os, socket, sys
from components.decoding import child as decoder
from ssl_core.data.decode import Limits
decoder._lock_in(Limits(max_memory=200 * 2**20))
def refused(act):
    try:
        act()
    except (OSError, MemoryError):
        return True
os.close(0)
read, write = (lambda: open("/etc/hostname")), (lambda: open("/tmp/dropped", "w"))
acts = [read, write, socket.socket, os.pipe, lambda: bytearray(2**30)]
sys.stdout.write(str([refused(act) for act in acts]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, True, True, True, True]"


def test_threads_may_share_a_sandbox(sandbox: Sandbox) -> None:
    files = [encoded(picture(seed=seed), "png") for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(sandbox.decode, files))
    assert images == [decode(data, Limits(), FORMAT) for data in files]


def test_a_child_started_by_a_thread_that_has_ended_is_replaced_without_a_word(sandbox: Sandbox) -> None:
    data = encoded(picture(), "png")
    starter = threading.Thread(target=sandbox.decode, args=(data,))
    starter.start()
    starter.join()
    time.sleep(0.1)
    assert sandbox.decode(data).height == 32


def test_an_interrupt_in_the_middle_does_not_mix_up_the_answers(
    sandbox: Sandbox, heavy: bytes, request: pytest.FixtureRequest
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a Ray of other tests may have its own
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    hunter = when_busy(sandbox, lambda child: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        while hunter.is_alive():  # on a busy machine the child may be done before the hunter has looked
            sandbox.decode(heavy)
        time.sleep(1)
    data = encoded(picture(), "png")
    assert sandbox.decode(data) == decode(data, Limits(), FORMAT)
