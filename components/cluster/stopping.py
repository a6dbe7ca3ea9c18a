"""The signals that ask this process to stop; they unwind the stack, so that nothing half-written stays."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(BaseException):
    """The user or the cluster asked to stop. No Exception, so that nothing mistakes it for a failure.

    Attributes:
        exit_status: of the process, 128 and the signal's number.
    """

    def __init__(self, reason: str, exit_status: int) -> None:
        super().__init__(reason)
        self.exit_status = exit_status


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, SIGINT, and SIGHUP from a closing terminal, unless the process is to outlive it (nohup)."""
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, *hangup)


@contextmanager
def stoppable() -> Iterator[None]:
    """In the block, a signal that asks to stop raises Stopped in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name}; the same command goes on from here", 128 + number)

    def lost(ignored: sys.UnraisableHookArgs) -> None:
        """An exception in a destructor is only printed, so the signal is sent again."""
        if isinstance(ignored.exc_value, Stopped):
            threading.Timer(0.05, os.kill, (os.getpid(), ignored.exc_value.exit_status - 128)).start()
        else:
            hook(ignored)

    hook, sys.unraisablehook = sys.unraisablehook, lost
    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    except SystemExit as leaving:
        if leaving.code == signal.SIGTERM:  # `ray.init` has replaced our handler with one that exits with the number
            stop(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
