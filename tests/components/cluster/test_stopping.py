"""What surrounds a step: signals."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from components.cluster.stopping import Stopped, stoppable


def stopped(handler: Callable[[int, object], object] | None = None) -> None:
    """SIGTERM in a step, where another library may have put a handler of its own."""
    with stoppable():
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("handler", [None, lambda number, frame: sys.exit(number)], ids=["ours", "as Ray's"])
def test_sigterm_stops_with_143_also_where_ray_has_put_its_own_handler(
    handler: Callable[[int, object], object] | None,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM") as stop:
        stopped(handler)
    assert stop.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_lands_in_a_destructor_is_not_lost() -> None:
    """Python only prints what is raised there; weak references run such code all the time."""

    class Last:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def forget() -> None:
        with stoppable():
            Last()
            time.sleep(10)

    hook = sys.unraisablehook
    with pytest.raises(Stopped, match="SIGTERM"):
        forget()
    assert sys.unraisablehook is hook
