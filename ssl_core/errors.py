"""Two kinds of errors: those that the user or the machine must mend, as one sentence, and bugs of ours, with a trace.

A `PretextError` says what went wrong. Of other exceptions `user_message` covers those of the environment (a full disk,
no permission, no memory). Every other exception is a bug in pretext; `bug_message` describes it.
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
"""Packages whose stack frames are ours."""
_ROOT = Path(__file__).parents[1]

ENVIRONMENT = {
    errno.EACCES: "permission denied; check its mode and owner",
    errno.EPERM: "permission denied; check its mode and owner",
    errno.EROFS: "the file system is read-only; name a writable place",
    errno.ENOSPC: "no space left on the device; free some",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would be larger than the file system or `ulimit -f` allows",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.EEXIST: "a file is in the place of a folder; move it away",
    errno.ELOOP: "its symbolic links form a loop",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
    errno.ENFILE: "this machine has too many open files; close some programs",
    errno.ENOMEM: "the machine is out of memory",
    errno.EIO: "the device cannot be read or written; see the system log",
    errno.ESTALE: "the network file system has lost the file; mount it again",
    errno.ETIMEDOUT: "the connection timed out",
    errno.ECONNREFUSED: "the connection was refused",
    errno.ECONNRESET: "the connection was closed by the other side",
    errno.ECONNABORTED: "the connection was aborted",
    errno.EHOSTUNREACH: "the host cannot be reached",
    errno.ENETUNREACH: "the network cannot be reached",
    errno.EADDRINUSE: "the network address is already in use",
}
"""errno -> what the operating system refused, and how to mend it; none of these is a bug of the program."""
NO_TEMPORARY = "No usable temporary directory"
"""Start of the message that `tempfile` raises where every disk is full or read-only."""
MEMORY = "out of memory ({}); lower train.batch_size or evaluate.batch_size, or choose a smaller encoder"


class PretextError(Exception):
    """An error whose message is one sentence for the user.

    Attributes:
        exit_status: exit status of a command that ends with it.
    """

    exit_status: ClassVar[int] = 1


class InputError(PretextError, ValueError):
    """Input that cannot be used; the message says what is wrong, where, and how to mend it."""


def user_message(error: BaseException) -> str | None:
    """The message for the user of an error that is not our bug; None for a bug of ours."""
    if isinstance(error, PretextError):
        return str(error)
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        path = error.filename2 or error.filename
        known = isinstance(path, str | bytes)
        return f"{os.fsdecode(path)}: {ENVIRONMENT[error.errno]}" if known else _without_path(error)
    if isinstance(error, FileNotFoundError) and NO_TEMPORARY in str(error):
        return f"{error.strerror}; free some space there, or set TMPDIR to a writable folder"
    return MEMORY.format(_first_line(error)) if _lacks_memory(error) else None


def bug_message(error: BaseException, trace: str) -> str:
    """The message for an error that is a bug of ours.

    Args:
        error: an error for which `user_message` returns None.
        trace: path of the file that holds `trace_of(error)`.
    """
    return (
        f"unexpected {type(error).__name__}{_place(error)}: {_first_line(error)}; "
        f"this is a bug in pretext, not in your input; its trace is in {trace}"
    )


def trace_of(error: BaseException) -> str:
    """The traceback, with those of the errors that caused this one."""
    return "".join(traceback.format_exception(error))


def _without_path(error: OSError) -> str:
    """An error without a path; its own text, which may name one, is appended."""
    assert error.errno is not None
    words, detail = ENVIRONMENT[error.errno], str(error.strerror or "")
    return words if detail in ("", os.strerror(error.errno)) else f"{words} ({' '.join(detail.split())})"


def _lacks_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # not imported here: that takes seconds, and without it there is no such error
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))  # torch's allocator on the CPU
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _place(error: BaseException) -> str:
    """The innermost line of our code in the traceback, else the innermost line of all."""
    passed = list(traceback.walk_tb(error.__traceback__))
    if not passed:  # it comes from another process
        return ""
    frame, line = next((at for at in reversed(passed) if _is_ours(at[0])), passed[-1])
    file = Path(frame.f_code.co_filename)
    return f" in {file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file}:{line}"


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in PACKAGES
