"""Errors told apart: what the user or the machine must mend, as a sentence; and faults of ours, with their trace.

A `PretextError` says what went wrong. Of other exceptions `told` knows those of the environment (a full disk, no
permission, no memory); whatever it does not know is a fault in pretext, and `fault` words it.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import ClassVar

PACKAGES = ("ssl_core", "components", "pipelines")
"""Whose frames of a trace are ours."""
_ROOT = Path(__file__).parents[1]

ENVIRONMENT = {
    errno.EACCES: "permission denied; check its mode and its owner",
    errno.EPERM: "permission denied; check its mode and its owner",
    errno.EROFS: "the file system is read-only; name a place that can be written to",
    errno.ENOSPC: "no space left on the device; free some",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would be larger than the file system or `ulimit -f` allows",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "there is a file where a folder is needed",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
    errno.ENFILE: "this machine has too many open files; close some programs",
    errno.ENOMEM: "the machine is out of memory",
    errno.EIO: "the device fails to read or write; see the system's log",
    errno.ESTALE: "the network file system has lost the file; mount it again",
    errno.ETIMEDOUT: "the connection timed out",
    errno.ECONNREFUSED: "the connection was refused",
    errno.ECONNRESET: "the connection was cut by the other side",
    errno.ECONNABORTED: "the connection was cut",
    errno.EHOSTUNREACH: "the host cannot be reached",
    errno.ENETUNREACH: "the network cannot be reached",
    errno.EADDRINUSE: "the network address is in use already",
}
"""What the operating system refuses through no fault of the program, in words."""
NO_TEMPORARY = "No usable temporary directory"
"""Of what `tempfile` raises where every disk is full or read-only."""
MEMORY = "out of memory ({}); lower train.batch_size or evaluate.batch_size, or take a smaller encoder"


class PretextError(Exception):
    """What went wrong, in a sentence for the user.

    Attributes:
        exit_status: of a command that ends with it.
    """

    exit_status: ClassVar[int] = 1


class InputError(PretextError, ValueError):
    """What the user gave cannot be used; the message says what, where and how to mend it."""


def told(error: BaseException) -> str | None:
    """The sentence for the user, of an error that is no fault of ours; None for one that is."""
    if isinstance(error, PretextError):
        return str(error)
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        path = error.filename2 or error.filename
        return f"{os.fsdecode(path)}: {ENVIRONMENT[error.errno]}" if isinstance(path, str | bytes) else _bare(error)
    if isinstance(error, FileNotFoundError) and NO_TEMPORARY in str(error):
        return f"{error.strerror}; free some space there, or set TMPDIR to a folder that can be written to"
    return MEMORY.format(_first_line(error)) if _lacks_memory(error) else None


def fault(error: BaseException, trace: str) -> str:
    """The sentence for an error that is a fault of ours.

    Args:
        error: for which `told` knows nothing.
        trace: where `trace_of(error)` was written to.
    """
    return (
        f"unexpected {type(error).__name__}{_place(error)}: {_first_line(error)}; "
        f"this is a fault in pretext, not in your input; its trace is in {trace}"
    )


def trace_of(error: BaseException) -> str:
    """The traceback, with the errors that led to this one."""
    return "".join(traceback.format_exception(error))


def _bare(error: OSError) -> str:
    """Where no path is known, what the error says may name it."""
    assert error.errno is not None
    words, said = ENVIRONMENT[error.errno], str(error.strerror or "")
    return words if said in ("", os.strerror(error.errno)) else f"{words} ({' '.join(said.split())})"


def _lacks_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # its error exists only where it was imported, which takes seconds
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))  # torch's allocator on the CPU
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _place(error: BaseException) -> str:
    """The innermost line of ours that the error passed, else the innermost line."""
    passed = list(traceback.walk_tb(error.__traceback__))
    if not passed:  # it comes from another process
        return ""
    frame, line = next((at for at in reversed(passed) if _is_ours(at[0])), passed[-1])
    file = Path(frame.f_code.co_filename)
    return f" in {file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file}:{line}"


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in PACKAGES
