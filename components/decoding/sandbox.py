"""Decode hostile files in a child process that may crash, hang or eat memory without harm to this one.

    with Sandbox(Limits(), SampleFormat(size=256)) as sandbox:
        image = sandbox.decode(data)        # or raises Rejected(reason, message)

One persistent child per Sandbox (child.py). This side trusts nothing that the child sends: lengths, geometry
and codes are checked against what limits and sample format allow. A file whose child died is tried once more in a fresh
child, since an operator, the OOM killer or the end of the thread that started it may have killed the first one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import asdict
from types import TracebackType
from typing import Any

from ssl_core.data.decode import Image, Limits, Reason, Rejected, SampleFormat, check_size
from ssl_core.errors import PretextError

_HEADER_BYTES = 8
_MAX_TEXT = 8192
_START_SECONDS = 120.0
_WALL_FACTOR = 3.0
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from components.decoding.child import main; main(int(sys.argv[1]))"
)
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")


class DecoderError(PretextError, RuntimeError):
    """The child process that decodes does not start on this machine; the message ends with its last line of output."""


class _Died(Exception):
    """The child cannot be used any more; `reason` is the one for which its file would be rejected."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


class Sandbox:
    """`decode` with all of `Limits` enforced. May be shared by threads (one file at a time), not pickled.

    The child starts with the first file and again after a death; `close`, garbage collection and the end of this
    process (also by SIGKILL) end it.
    """

    def __init__(self, limits: Limits, sample_format: SampleFormat) -> None:
        self.limits = limits
        self.sample_format = sample_format
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def decode(self, data: bytes | bytearray | memoryview) -> Image:
        """The canonical sample; raises `Rejected` for the file's faults, DecoderError if no child can be started."""
        check_size(len(data), self.limits)
        with self._lock:
            try:
                return self._attempt(data)
            except _Died as death:
                if death.reason is not Reason.CRASHED:
                    raise Rejected(death.reason, death.message) from death
            try:
                return self._attempt(data)
            except _Died as death:
                raise Rejected(death.reason, death.message) from death

    def close(self) -> None:
        """End the child. A later `decode` starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, data: bytes | bytearray | memoryview) -> Image:
        if self._child is not None and not self._child.quiet():
            self.close()  # it died between two files: not this file's fault
        if self._child is None:
            self._child = _Child(self.limits, self.sample_format)
        try:
            return self._child.decode(data)
        except Rejected as rejected:
            if rejected.reason is Reason.MEMORY:
                self.close()  # its heap may be in pieces
            raise
        except BaseException:  # Ctrl-C too: a half-sent frame cannot be taken back
            self.close()
            raise


class _Child:
    """One decoder process and the two pipes to it."""

    def __init__(self, limits: Limits, sample_format: SampleFormat) -> None:
        self._limits, self._sample_format = limits, sample_format
        self._longest = math.ceil(sample_format.size * limits.max_aspect) + 1
        self._files = 0
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-W", "ignore", "-c", _BOOT, str(os.getpid()), json.dumps(_search_path())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=_scrubbed_environment(),
            start_new_session=True,
        )
        self.end = weakref.finalize(self, _end, self._process)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)
            _widen(pipe)
        self._start()

    def quiet(self) -> bool:
        """Whether it is alive and has sent nothing unrequested."""
        poll = select.poll()  # not select(), which knows no descriptor above 1023
        poll.register(self._from, select.POLLIN)
        return not poll.poll(0)

    def decode(self, data: bytes | bytearray | memoryview) -> Image:
        self._files += 1
        watch = _Watch(self._process.pid, self._limits.max_seconds)
        self._send({"id": self._files}, data, watch)
        answer, payload = self._receive(watch)
        return self._checked_image(answer, payload)

    def _start(self) -> None:
        watch = _Watch(self._process.pid, _START_SECONDS)
        try:
            self._send({"limits": asdict(self._limits), "sample_format": asdict(self._sample_format)}, b"", watch)
            answer, _ = self._receive(watch)
            if answer != {"ready": True}:
                raise self._violation("its first message was not the expected one")
        except _Died as death:
            line = self._last_line()
            self.end()
            raise DecoderError(f"The image decoder does not start: {death.message} {line}") from None
        self._process.stderr.close()  # type: ignore[union-attr]

    def _last_line(self) -> str:
        with contextlib.suppress(OSError):
            self._process.kill()
            lines = self._process.stderr.read(65536).decode(errors="replace").split("\n")  # type: ignore[union-attr]
            return next((line for line in reversed(lines) if line.strip()), "")
        return ""

    def _send(self, request: dict[str, Any], data: bytes | bytearray | memoryview, watch: _Watch) -> None:
        text = json.dumps(request).encode()
        head = len(text).to_bytes(4, "big") + len(data).to_bytes(4, "big") + text
        for part in (memoryview(head), memoryview(data).cast("B")):
            while part:
                self._wait(self._to, select.POLLOUT, watch)
                with contextlib.suppress(BlockingIOError):
                    part = part[self._written(part) :]

    def _written(self, part: memoryview) -> int:
        try:
            return os.write(self._to, part)
        except BrokenPipeError:
            raise self._cause_of_death() from None

    def _receive(self, watch: _Watch) -> tuple[dict[str, Any], bytes]:
        head = self._read(_HEADER_BYTES, watch)
        text, length = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
        if text > _MAX_TEXT or length > self._sample_format.size * self._longest * 3 + 65536:
            raise self._violation("it announced an answer of impossible length")
        try:
            answer = json.loads(bytes(self._read(text, watch)))
        except (ValueError, RecursionError):
            raise self._violation("its answer was not JSON") from None
        if not isinstance(answer, dict):
            raise self._violation("its answer was not an object")
        return answer, bytes(self._read(length, watch))

    def _read(self, length: int, watch: _Watch) -> bytearray:
        buffer = bytearray(length)
        rest = memoryview(buffer)
        while rest:
            self._wait(self._from, select.POLLIN, watch)
            with contextlib.suppress(BlockingIOError):
                count = os.readv(self._from, [rest])
                if count == 0:
                    raise self._cause_of_death()
                rest = rest[count:]
        return buffer

    def _wait(self, pipe: int, event: int, watch: _Watch) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(watch.seconds_to_wait() * 1000):
            if watch.seconds_to_wait() <= 0:
                raise _Died(Reason.TIMEOUT, f"Decoding took longer than max_seconds = {watch.seconds:g}.")

    def _checked_image(self, answer: dict[str, Any], payload: bytes) -> Image:
        if answer.get("id") != self._files:
            raise self._violation("it answered another request")
        if "reason" in answer:
            raise self._rejection(answer)
        codec, height, width = (answer.get(key) for key in ("codec", "height", "width"))
        if codec != self._sample_format.payload or type(height) is not int or type(width) is not int:
            raise self._violation("it returned no canonical image")
        if min(height, width) != self._sample_format.size or max(height, width) > self._longest:
            raise self._violation("it returned an image of another size")
        if codec == "raw" and len(payload) != height * width * 3:
            raise self._violation("its pixels do not fill the image")
        if codec == "jpeg" and not payload.startswith(b"\xff\xd8\xff"):
            raise self._violation("it returned no JPEG")
        return Image(payload, codec, height, width)

    def _rejection(self, answer: dict[str, Any]) -> Exception:
        try:
            reason = Reason(answer["reason"])
        except ValueError:
            return self._violation("it gave a reason that does not exist")
        message = "".join(letter for letter in str(answer.get("message")) if letter.isprintable())
        return Rejected(reason, message[:500])

    def _violation(self, what: str) -> _Died:
        return _Died(Reason.CRASHED, f"The decoder cannot be trusted after this file: {what}.")

    def _cause_of_death(self) -> _Died:
        """Why the pipe has ended, from the exit code."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return _Died(Reason.CRASHED, "The decoder closed its pipe on this file.")
        if code == -signal.SIGXCPU:
            return _Died(Reason.TIMEOUT, f"Decoding took longer than max_seconds = {self._limits.max_seconds:g}.")
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return _Died(Reason.CRASHED, f"The decoder died on this file ({cause}).")


class _Watch:
    """The time one file may take: `seconds` of the child's CPU time, and three times that in wall time.

    CPU time counts because a picture rejected as too slow stays out of the corpus, and a busy machine is not its fault.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self.seconds = seconds
        self._clock = (~pid << 3) | 2  # clock_getcpuclockid(3) of Linux
        self._began = time.monotonic()
        self._cpu_began = self._cpu()

    def seconds_to_wait(self) -> float:
        """Seconds to wait before checking again; 0 when the time is up."""
        wall = time.monotonic() - self._began
        if wall < self.seconds:
            return self.seconds - wall
        cpu = self._cpu() - self._cpu_began
        return max(0.0, min(self.seconds - cpu, _WALL_FACTOR * self.seconds - wall))

    def _cpu(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # not Linux: wall time alone
            return time.monotonic()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill, reap, close: it has no state worth saving."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _search_path() -> list[str]:
    return [os.path.abspath(entry) for entry in sys.path]


def _scrubbed_environment() -> dict[str, str]:
    """No keys, tokens or endpoints; one thread, since threads of OpenBLAS each reserve address space.

    glibc keeps up to 64 MiB between files, because fresh pages for every picture cost a tenth of the time.
    """
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    heap = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**24), "MALLOC_TRIM_THRESHOLD_": str(2**26)}
    return kept | threads | heap


def _widen(pipe: int) -> None:
    """Enlarge the pipe where the system allows it: a file takes one or two writes instead of one per 64 KiB."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 2**20)
