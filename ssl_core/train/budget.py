"""Computing time as a budget: how much a run has used so far, and how many steps fit into a number of seconds.

It is summed over all workers: CPU-seconds of all their threads, or GPU-seconds where they compute on
GPUs. So on CPUs it does not depend on what else the machine does, and twice the workers do not get twice as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from ssl_core.data.reader import Batch
from ssl_core.errors import InputError
from ssl_core.train.ranks import Ranks

WARM = 3
"""Steps that a trial does not measure: the first ones allocate, compile and fill caches."""
TRIAL = (5, 40)
"""Fewest and most steps that a trial measures."""
SHARE = 0.1
"""Share of the budget for the trial."""
RESERVE = 0.03
"""Share of the rest that is kept for checkpoints and for steps that take longer than those of the trial."""


class Clock:
    """Computing time since its creation, on top of that of earlier attempts at the run."""

    def __init__(self, ranks: Ranks, used: float = 0.0) -> None:
        self.ranks, self.used = ranks, used
        self.began = self._now()

    def read(self) -> float:
        """Seconds that all workers have used, estimated from those of this one."""
        return self.used + (self._now() - self.began) * self.ranks.world

    def _now(self) -> float:
        if self.ranks.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.ranks.device)
        return time.perf_counter()


def steps_within(seconds: float, clock: Clock, step: Callable[[Batch], None], batches: Iterator[Batch]) -> int:
    """How many steps fit into what is left of `seconds`; all ranks call it and get the same number.

    Args:
        seconds: the whole budget.
        clock: started with the run.
        step: one step of a train state that is thrown away afterwards.
        batches: the run's own, endless.

    Raises:
        InputError: nothing is left after the trial.
    """
    for _ in range(WARM - 1):
        step(next(batches))
    each = _timed(clock, step, batches, 1)
    fewest, most = TRIAL
    count = clock.ranks.share(max(fewest, min(most, int(SHARE * seconds / max(each, 1e-9)))))
    each = _timed(clock, step, batches, count)
    steps = int((seconds - clock.read()) * (1 - RESERVE) / max(each, 1e-9))
    steps = clock.ranks.share(steps)
    if steps < 1:
        raise InputError(
            f"train.seconds is {seconds:g}, but a step takes {each:.2g} s, so measuring how many fit used all of it; "
            "raise train.seconds or lower train.batch_size."
        )
    return int(steps)


def _timed(clock: Clock, step: Callable[[Batch], None], batches: Iterator[Batch], count: int) -> float:
    """Seconds per step."""
    began = clock.read()
    for _ in range(count):
        step(next(batches))
    return (clock.read() - began) / count
