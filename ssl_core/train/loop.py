"""The training loop, without Ray: one process, torchrun, a test or a notebook can run it.

    reader -> batch -> make_batch -> model -> loss per example -> mean -> optimizer     (train_state.py)
    every log_every steps a Point, every check_every a look for collapse, every checkpoint_every a checkpoint

`components.training.pretrain` hosts it in Ray Train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ssl_core.data.reader import Batch, Reader
from ssl_core.data.shards import Shards
from ssl_core.errors import InputError
from ssl_core.train import checkpoint
from ssl_core.train.budget import Clock, steps_within
from ssl_core.train.collapse import CollapseCheck, all_finite
from ssl_core.train.memory import keep_freed_memory, peak_memory
from ssl_core.train.optim import lr_schedule
from ssl_core.train.ranks import Checkpoint, Ranks
from ssl_core.train.run import Run
from ssl_core.train.train_state import TrainState

PROBE_SAMPLES = 256
"""Samples that a look for collapse takes from the batch at hand."""


@dataclass(frozen=True)
class Point:
    """Metrics of one step on the run's curves, over all ranks.

    Attributes:
        step: optimizer steps done.
        time_ms: Unix time in milliseconds.
        metrics: name -> mean since the point before (loss, the task's metrics, grad_norm), or value at this step.
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
        status: FINISHED, KILLED (stopped on request; the same call goes on), or FAILED (going on makes no sense).
        step: optimizer steps done.
        steps: optimizer steps of the whole run.
        reason: one sentence where it did not finish, else empty.
    """

    status: Literal["FINISHED", "KILLED", "FAILED"]
    step: int
    steps: int
    reason: str = ""


class Store(Protocol):
    """Where checkpoints live. `Folder` is the local one; a remote one is in components."""

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; rank 0 only."""
        ...

    def keep(self, step: int, state: Checkpoint) -> None:
        """Stores a checkpoint; all ranks call it, rank 0's state counts."""
        ...

    def publish(self, write: Callable[[Path], None]) -> None:
        """Puts the finished model, which `write` writes as a folder, in its place; rank 0 only."""
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
    rank: int = 0,
    world: int = 1,
    device: str | torch.device = "cpu",
    on_point: Callable[[Point], None] = lambda point: None,
    stop: Callable[[], str] = str,
) -> Outcome:
    """Trains from the newest checkpoint, or from the start, to the end.

    Args:
        run: what to learn and how.
        shards: the corpus.
        digest: the corpus version's digest; order and resume depend on it.
        store: checkpoints and the finished model.
        rank: this process of `world`; with more than one, torch.distributed must be initialised.
        world: number of processes.
        device: where this rank computes.
        on_point: receives the curves' points, on rank 0. After a resume, points since the checkpoint come again, equal.
        stop: asked after every step on every rank; a reason instead of "" writes a checkpoint and ends as KILLED.

    Raises:
        InputError: run, corpus and ranks do not fit together; the message says how to mend it.
    """
    ranks = Ranks.join(rank, world, device)
    if ranks.device.type == "cpu":
        keep_freed_memory()
    state = ranks.share_state(store.newest() if rank == 0 else None)
    clock = Clock(ranks, state[1].get("compute_seconds", 0.0) if state else 0.0)
    steps = _steps(run, shards, digest, ranks, state, clock)
    train_state = TrainState(run, ranks)
    collapse_check = CollapseCheck(run.train, _resume(train_state, state, digest))
    train_state.wrap()
    with _reader(run, shards, digest, train_state) as reader:
        steps = steps or run.train.epochs * reader.steps_per_epoch
        training = _Training(
            train_state, collapse_check, store, digest, steps, reader.steps_per_epoch, on_point, stop, clock
        )
        return training.go(reader)


def _steps(run: Run, shards: Shards, digest: str, ranks: Ranks, state: Checkpoint | None, clock: Clock) -> int | None:
    """Of the whole run; None where its epochs decide. A budget's are in the checkpoint, or found out anew."""
    if run.train.seconds is None:
        return run.train.steps
    if state is not None:
        return int(state[1]["steps"])
    train_state = TrainState(run, ranks)
    train_state.wrap()
    with _reader(run, shards, digest, train_state) as reader:
        # a learning rate of 0 does the same work, and the weights cannot go astray in it
        return steps_within(run.train.seconds, clock, lambda batch: train_state.step(batch, 0.0), iter(reader))


class _Training:
    """The cadence around the steps: points, checks, checkpoints, the end."""

    def __init__(
        self,
        train_state: TrainState,
        collapse_check: CollapseCheck,
        store: Store,
        digest: str,
        steps: int,
        steps_per_epoch: int,
        on_point: Callable[[Point], None],
        stop: Callable[[], str],
        clock: Clock,
    ) -> None:
        self.train_state, self.collapse_check, self.store, self.digest = train_state, collapse_check, store, digest
        self.compute = clock
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.on_point, self.stop = on_point, stop
        self.run, self.ranks = train_state.run, train_state.ranks
        self.lr = lr_schedule(self.run.optim, self.run.train, steps, steps_per_epoch)
        self.checked: dict[str, float] = {}
        self.clock = (time.perf_counter(), train_state.step_count)

    def go(self, reader: Reader) -> Outcome:
        """Steps until the end, a stop or a failure."""
        batches = iter(reader)
        if self.run.train.seconds is not None and self.train_state.step_count == 0:
            self._save()  # the number of steps that was found: another trial could find another one
        while self.train_state.step_count < self.steps:
            batch = next(batches)
            self.train_state.step(batch, self.lr(self.train_state.step_count))
            trouble = self._after_step(batch)
            if trouble:
                return self._outcome("FAILED", trouble)
            if self.ranks.any(bool(reason := self.stop())) and self.train_state.step_count < self.steps:
                return self._stopped(reason)
        if self.ranks.rank == 0:
            self.store.publish(self._write_model)
        return self._outcome("FINISHED", "")

    def _stopped(self, reason: str) -> Outcome:
        if not self._save():
            return self._outcome("FAILED", self._nan_sentence("weights"))
        reasons = [said for said in self.ranks.gather(reason) if said]
        return self._outcome("KILLED", reasons[0])

    def _after_step(self, batch: Batch) -> str:
        """Points, checks and checkpoints that are due; a sentence if the run must not go on."""
        step, last = self.train_state.step_count, self.train_state.step_count == self.steps
        train = self.run.train
        if train.check_every and step % train.check_every == 0 and self._collapsed(batch):
            return self._collapse_sentence()
        if (step % train.log_every == 0 or last) and not self._log():
            return self._nan_sentence("loss or gradient")
        if (step % train.checkpoint_every == 0 or last) and not self._save():
            return self._nan_sentence("weights")
        return ""

    def _log(self) -> bool:
        """Sends a point; false where a mean is NaN or infinite."""
        train_state, now = self.train_state, time.perf_counter()
        means = train_state.meter.read(self.ranks)
        seconds, steps = now - self.clock[0], train_state.step_count - self.clock[1]
        self.clock = (now, train_state.step_count)
        metrics = {
            **means,
            **self.checked,
            "lr": self.lr(train_state.step_count - 1),
            "epoch": train_state.step_count / self.steps_per_epoch,
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
        """Rank 0 looks, all agree."""
        if self.ranks.rank == 0:
            raw = {name: value[:PROBE_SAMPLES] for name, value in batch.raw.items()}
            with self.train_state.autocast():
                self.checked = self.collapse_check.check(self.train_state.model, raw)
        return self.ranks.any(self.collapse_check.collapsed)

    def _save(self) -> bool:
        """Writes a checkpoint, unless a weight is NaN or infinite on some rank."""
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
            "optim.clip, lengthen the warm-up or use train.precision fp32. The last checkpoint is from before that."
        )

    def _collapse_sentence(self) -> str:
        train = self.run.train
        return (
            f"The representation has collapsed at step {self.train_state.step_count}: {train.collapse_checks} checks "
            f"in a row found its spread below {train.collapse_std:g} or its effective rank below "
            f"{train.collapse_rank:g}. Change the task's settings or the learning rate; train.check_every 0 trains on "
            "regardless."
        )


def _resume(train_state: TrainState, state: Checkpoint | None, digest: str) -> int:
    """Restores the train_state; returns the failed checks so far."""
    if state is None:
        return 0
    meta: dict[str, Any] = state[1]
    if meta["corpus"] != digest:
        raise InputError(
            f"The checkpoint was trained on another corpus version (digest {meta['corpus'][:12]}, now {digest[:12]}); "
            "give this run another name or delete the checkpoints."
        )
    train_state.restore(state)
    return int(meta["failed_checks"])


def _reader(run: Run, shards: Shards, digest: str, train_state: TrainState) -> Reader:
    ranks = train_state.ranks
    return Reader(
        shards,
        run.task.sample,
        seed=run.train.seed,
        digest=digest,
        batch_size=run.train.batch_size // ranks.world,
        rank=ranks.rank,
        world=ranks.world,
        start=train_state.cursor,
        threads=run.train.reader_threads,
        device=ranks.device,
    )
