"""The child process of `components.decoding.sandbox`: decodes one image file after the other and can do nothing else.

Frames on stdin and stdout: two big-endian uint32 (length of the JSON, length of the data), the JSON, the data.
The first frame brings limits and sample format; {"ready": true} follows once the process has locked itself in:
  no new file descriptor (so no file, no socket), no file growth, no core dump, no new privileges, its own network
  namespace where the kernel allows it, memory and CPU seconds bounded, and death together with its parent.
Imports neither torch nor ray.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import struct
import sys
import time
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from ssl_core.data.decode import Limits, Rejected, SampleFormat, decode

_HEADER = struct.Struct(">II")
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIGKILL = 9


def main(parent: int) -> None:
    """Serve until stdin ends. `parent` is the process id of the parent; orphaned, this process exits."""
    _die_with(parent)
    _prefer_as_oom_victim()
    requests, answers = _private_pipes()
    settings, _ = _receive(requests)
    limits, sample_format = Limits(**settings["limits"]), SampleFormat(**settings["sample_format"])
    PIL.Image.MAX_IMAGE_PIXELS = limits.max_pixels
    _rehearse(sample_format)
    _lock_in(limits)
    _die_with(parent)  # again: the kernel forgets it when credentials change
    _send(answers, {"ready": True})
    while True:
        _allow_cpu(limits.max_seconds)
        request, data = _receive(requests)
        _send(answers, *_answer(request, data, limits, sample_format))


def _answer(
    request: dict[str, Any], data: bytes, limits: Limits, sample_format: SampleFormat
) -> tuple[dict[str, Any], bytes]:
    try:
        image = decode(data, limits, sample_format)
    except Rejected as rejected:
        return {"id": request["id"], "reason": rejected.reason.value, "message": rejected.message}, b""
    geometry = {"codec": image.codec, "height": image.height, "width": image.width}
    return {"id": request["id"], **geometry}, image.payload


def _receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:  # the parent has closed the pipe or is gone
        os._exit(0)
    text, length = _HEADER.unpack(header)
    return json.loads(stream.read(text)), stream.read(length)


def _send(stream: BinaryIO, answer: dict[str, Any], payload: bytes = b"") -> None:
    text = json.dumps(answer).encode()
    stream.write(_HEADER.pack(len(text), len(payload)) + text)
    stream.write(payload)
    stream.flush()


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes under new descriptors, so that whatever a C library prints goes to the null device."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    return requests, answers


def _rehearse(sample_format: SampleFormat) -> None:
    """Decode one tiny file of each format, so that every lazy import is done before files can no longer be opened."""
    pixels = PIL.Image.fromarray(np.zeros((8, 12, 3), np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = BytesIO()
        pixels.save(buffer, name, **({} if name in ("GIF", "BMP") else {"exif": exif}))
        decode(buffer.getvalue(), Limits(), sample_format)
    with contextlib.suppress(Rejected):
        decode(b"no picture", Limits(), sample_format)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _prefer_as_oom_victim() -> None:
    """When memory runs out, let the kernel kill this process rather than the ingest."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")


def _lock_in(limits: Limits) -> None:
    if sys.platform == "linux":
        libc = _libc()
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # refused in many containers: the descriptor limit remains
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as statm:
            own = int(statm.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, own + limits.max_memory)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 0)  # the pipes stay usable; nothing can be opened, not even over a closed number


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _allow_cpu(seconds: float) -> None:
    """SIGXCPU ends this process on a file that takes too much CPU time, even if the parent is stopped; the parent's own
    limit is finer."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
