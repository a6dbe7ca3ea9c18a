"""The training loop, without Ray: one process, torchrun, a test or a notebook can run it.

    reader -> batch -> make_batch -> model -> loss per example -> mean -> optimizer     (train_state.py)
    every log_every steps a Point, every check_every a collapse check, every checkpoint_every a checkpoint

`components.training.pretrain` hosts it in Ray Train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ssl_core.data.reader import Batch, Reader, Sampler
from ssl_core.data.shards import Shards
from ssl_core.errors import InputError
from ssl_core.train import checkpoint
from ssl_core.train.budget import Clock, steps_within
from ssl_core.train.collapse import CollapseCheck, all_finite
from ssl_core.train.memory import keep_freed_memory, peak_memory
from ssl_core.train.optim import lr_schedule
from ssl_core.train.ranks import ALONE, Checkpoint, Ranks
from ssl_core.train.run import Run
from ssl_core.train.train_state import TrainState

PROBE_SAMPLES = 256
"""Samples of the current batch that a collapse check uses."""


@dataclass(frozen=True)
class Point:
    """Metrics of one step on the run's curves, over all ranks.

    Attributes:
        step: optimizer steps done.
        time_ms: Unix time in milliseconds.
        metrics: name -> mean since the last point (loss, the task's metrics, grad_norm), or value at this step.
        steps: optimizer steps of the whole run.
    """

    step: int
    time_ms: int
    metrics: Mapping[str, float]
    steps: int


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        status: FINISHED, KILLED (stopped on request; the same call resumes it), or FAILED (resuming makes no sense).
        step: optimizer steps done.
        steps: optimizer steps of the whole run.
        reason: one sentence if it did not finish, else empty.
    """

    status: Literal["FINISHED", "KILLED", "FAILED"]
    step: int
    steps: int
    reason: str = ""


class Store(Protocol):
    """Where checkpoints are stored. `Folder` is local; components has a remote one."""

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; rank 0 only."""
        ...

    def keep(self, step: int, state: Checkpoint) -> None:
        """Stores a checkpoint; all ranks call it, rank 0's state is stored."""
        ...

    def publish(self, write: Callable[[Path], None]) -> None:
        """Stores the finished model, which `write` writes to a folder; rank 0 only."""
        ...


class Folder:
    """Checkpoints and the finished model ("model") in a local folder."""

    def __init__(self, path: Path, keep: int, rank: int = 0) -> None:
        self.path, self.kept, self.rank = path, keep, rank

    def newest(self) -> Checkpoint | None:
        return checkpoint.load_newest(self.path)

    def keep(self, step: int, state: Checkpoint) -> None:
        if self.rank == 0:
            checkpoint.save(self.path / checkpoint.name_of(step), *state)
            checkpoint.prune(self.path, self.kept)

    def publish(self, write: Callable[[Path], None]) -> None:
        write(self.path / "model")


def pretrain(
    run: Run,
    shards: Shards,
    digest: str,
    store: Store,
    *,
    ranks: Ranks = ALONE,
    on_point: Callable[[Point], None] = lambda point: None,
    stop: Callable[[], str] = str,
) -> Outcome:
    """Trains from the newest checkpoint, or from the start, to the end.

    Args:
        run: what to learn and how.
        shards: the corpus version's.
        digest: the corpus version's digest; order and resume depend on it.
        store: of checkpoints and the finished model.
        ranks: this process among those that train together, and its device; see `Ranks.join`.
        on_point: gets the curves' points, on rank 0. After a resume, those since the checkpoint come again, unchanged.
        stop: called after every step on every rank; a reason instead of "" writes a checkpoint and ends as KILLED.

    Raises:
        InputError: run, corpus and ranks do not match; the message says how to mend it.
    """
    if ranks.device.type == "cpu":
        keep_freed_memory()
    state = ranks.share_state(store.newest() if ranks.rank == 0 else None)
    clock = Clock(ranks, state[1].get("compute_seconds", 0.0) if state else 0.0)
    steps = _steps(run, shards, digest, ranks, state, clock)
    train_state = TrainState(run, ranks)
    collapse_check = CollapseCheck(run.runtime, _resume(train_state, state, digest))
    train_state.wrap()
    with _reader(run, shards, digest, train_state) as reader:
        steps = steps or run.train.epochs * reader.steps_per_epoch
        return _Training(train_state, reader, steps, collapse_check, store, clock, on_point, stop).run_steps()


def _steps(run: Run, shards: Shards, digest: str, ranks: Ranks, state: Checkpoint | None, clock: Clock) -> int | None:
    """Steps of the whole run; None if epochs decide. For a time budget: from the checkpoint, or measured now."""
    if run.train.seconds is None:
        return run.train.steps
    if state is not None:
        return int(state[1]["steps"])
    train_state = TrainState(run, ranks)
    train_state.wrap()
    with _reader(run, shards, digest, train_state) as reader:
        # a learning rate of 0 does the same work, and the weights cannot diverge
        return steps_within(run.train.seconds, clock, lambda batch: train_state.step(batch, 0.0), iter(reader))


class _Training:
    """Runs the steps, with the points, collapse checks and checkpoints between them."""

    def __init__(
        self,
        train_state: TrainState,
        reader: Reader,
        steps: int,
        collapse_check: CollapseCheck,
        store: Store,
        clock: Clock,
        on_point: Callable[[Point], None],
        stop: Callable[[], str],
    ) -> None:
        self.train_state, self.reader, self.steps = train_state, reader, steps
        self.collapse_check, self.store, self.compute = collapse_check, store, clock
        self.on_point, self.stop = on_point, stop
        self.run, self.ranks, self.digest = train_state.run, train_state.ranks, reader.sampler.digest
        self.lr = lr_schedule(self.run.optim, self.run.train, steps, reader.steps_per_epoch)
        self.checked: dict[str, float] = {}
        self.clock = (time.perf_counter(), train_state.step_count)

    def run_steps(self) -> Outcome:
        """Steps until the end, a stop or a failure."""
        batches = iter(self.reader)
        if self.run.train.seconds is not None and self.train_state.step_count == 0:
            self._save()  # stores the number of steps: another trial could measure another one
        while self.train_state.step_count < self.steps:
            batch = next(batches)
            self.train_state.step(batch, self.lr(self.train_state.step_count))
            failure = self._after_step(batch)
            if failure:
                return self._outcome("FAILED", failure)
            if self.ranks.any(bool(reason := self.stop())) and self.train_state.step_count < self.steps:
                return self._stopped(reason)
        if self.ranks.rank == 0:
            self.store.publish(self._write_model)
        return self._outcome("FINISHED", "")

    def _stopped(self, reason: str) -> Outcome:
        if not self._save():
            return self._outcome("FAILED", self._nan_sentence("weights"))
        reasons = [each for each in self.ranks.gather(reason) if each]
        return self._outcome("KILLED", reasons[0])

    def _after_step(self, batch: Batch) -> str:
        """Points, checks and checkpoints that are due; returns a sentence if the run must stop."""
        step, last = self.train_state.step_count, self.train_state.step_count == self.steps
        runtime = self.run.runtime
        if runtime.check_every and step % runtime.check_every == 0 and self._collapsed(batch):
            return self._collapse_sentence()
        if (step % runtime.log_every == 0 or last) and not self._log():
            return self._nan_sentence("loss or gradient")
        if (step % runtime.checkpoint_every == 0 or last) and not self._save():
            return self._nan_sentence("weights")
        return ""

    def _log(self) -> bool:
        """Sends a point; False if a mean is NaN or infinite."""
        train_state, now = self.train_state, time.perf_counter()
        means = train_state.meter.read(self.ranks)
        seconds, steps = now - self.clock[0], train_state.step_count - self.clock[1]
        self.clock = (now, train_state.step_count)
        metrics = {
            **means,
            **self.checked,
            "lr": self.lr(train_state.step_count - 1),
            "epoch": train_state.step_count / self.reader.steps_per_epoch,
            "samples_per_s": steps * self.run.train.batch_size / seconds,
            "compute_seconds": self.compute.read(),
            "peak_memory_mib": peak_memory(self.ranks.device) / 2**20,
            "seconds_left": (self.steps - train_state.step_count) * seconds / max(1, steps),
        }
        self.checked = {}
        if self.ranks.rank == 0:
            self.on_point(Point(train_state.step_count, time.time_ns() // 10**6, metrics, self.steps))
        return all(math.isfinite(value) for value in means.values())

    def _collapsed(self, batch: Batch) -> bool:
        """Rank 0 checks; all ranks get its verdict."""
        if self.ranks.rank == 0:
            raw = {name: value[:PROBE_SAMPLES] for name, value in batch.raw.items()}
            with self.train_state.autocast():
                self.checked = self.collapse_check.check(self.train_state.model, raw)
        return self.ranks.any(self.collapse_check.collapsed)

    def _save(self) -> bool:
        """Writes a checkpoint and returns True, unless a weight is NaN or infinite on some rank."""
        train_state = self.train_state
        if self.ranks.any(not all_finite(train_state.model.state_dict().values())):
            return False
        tensors, meta = train_state.capture()
        meta |= {"corpus": self.digest, "steps": self.steps, "failed_checks": self.collapse_check.failures}
        meta |= {"compute_seconds": self.compute.read()}
        self.store.keep(train_state.step_count, (tensors, meta))
        return True

    def _write_model(self, folder: Path) -> None:
        run, train_state = self.run, self.train_state
        notes = {"step": train_state.step_count, "corpus": self.digest, "averaged": train_state.ema is not None}
        checkpoint.save_model(folder, run.task, run.encoder, train_state.weights(), notes)

    def _outcome(self, status: Literal["FINISHED", "KILLED", "FAILED"], reason: str) -> Outcome:
        return Outcome(status, self.train_state.step_count, self.steps, reason)

    def _nan_sentence(self, what: str) -> str:
        return (
            f"The {what} became NaN or infinite before step {self.train_state.step_count}; lower optim.lr, set "
            "optim.clip, lengthen the warm-up or use train.precision fp32. The last checkpoint is from before."
        )

    def _collapse_sentence(self) -> str:
        runtime = self.run.runtime
        return (
            f"The representation has collapsed at step {self.train_state.step_count}: {runtime.collapse_checks} checks "
            f"in a row measured a spread below {runtime.collapse_std:g} or its effective rank below "
            f"{runtime.collapse_rank:g}. Change the task's settings or the learning rate; runtime.check_every 0 turns "
            "the checks off."
        )


def _resume(train_state: TrainState, state: Checkpoint | None, digest: str) -> int:
    """Restores the train state; returns the failed collapse checks in a row so far."""
    if state is None:
        return 0
    meta: dict[str, Any] = state[1]
    if meta["corpus"] != digest:
        raise InputError(
            f"The checkpoint was trained on another corpus version (digest {meta['corpus'][:12]}, now {digest[:12]}); "
            "give this run another name, or delete the checkpoints."
        )
    train_state.restore(state)
    return int(meta["failed_checks"])


def _reader(run: Run, shards: Shards, digest: str, train_state: TrainState) -> Reader:
    ranks, train = train_state.ranks, run.train
    sampler = Sampler(train.batch_size // ranks.world, train.seed, digest, ranks.rank, ranks.world)
    return Reader(
        shards,
        run.task.sample,
        sampler,
        start=train_state.cursor,
        threads=run.runtime.reader_threads,
        device=ranks.device,
    )
