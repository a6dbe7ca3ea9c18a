"""Pretraining on Ray Train: workers that restart, checkpoints that survive, points that arrive once.

    pretrain(run, corpus version, run folder, cluster) -> Outcome;  the model is then in <run folder>/model

The same folder resumes from its newest whole checkpoint, however the last attempt ended.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # workers stay in the user's folder, so relative paths stay valid
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # the default notices an end only after 2 s
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
# raylet prints a paragraph on stdout for each worker that died, although the group restarts
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task")

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from components.cluster.connect import Cluster, connect, lacking_gpus
from components.cluster.driver_channel import open_driver_channel
from components.cluster.stopping import stop_signals
from components.storage.home import pretext_home
from components.storage.lease import ExclusiveLease, require
from components.training.run_folder import RunFolder
from components.training.snapshot import repair
from components.training.worker import Training, pyarrow_location, work
from ssl_core.errors import user_message
from ssl_core.train.loop import Outcome, Point
from ssl_core.train.run import Run
from ssl_core.types import CorpusVersion

__all__ = ["Outcome", "Point", "pretrain"]

GRACE_S = 60.0
"""How long workers may take for the checkpoint after a request to stop, before the driver ends without it."""

log = logging.getLogger(__name__)


def pretrain(
    run: Run,
    corpus: CorpusVersion,
    folder: RunFolder,
    cluster: Cluster | None = None,
    *,
    sink: Callable[[Point], None] = lambda point: None,
    before_checkpoint: Callable[[], None] = lambda: None,
    lease: ExclusiveLease | None = None,
) -> Outcome:
    """Trains `run` on a version of a corpus, or resumes it from its folder.

    SIGTERM, SIGINT and SIGHUP to this process checkpoint at the next step and end the run as KILLED; the same call
    resumes it. A signal that comes too late for that is raised again at the end.

    Args:
        run: what to learn and how.
        corpus: the version.
        folder: the run's own, which all workers can reach; another task, corpus or code needs another folder.
        cluster: where and how wide.
        sink: gets each step's point once, as it happens, in this process. After a killed driver the points since the
            checkpoint come again, equal.
        before_checkpoint: called in this process once the sink has every point up to a checkpoint, and before that
            checkpoint counts: here the caller can make its record of the points as durable as the checkpoint.
        lease: of the run's folder, which the caller holds already; None takes it for this call.

    Returns:
        FINISHED, KILLED, or FAILED with the reason in one sentence.

    Raises:
        Busy: another process, here or on another machine, holds the run's folder.
        TakenOver: the lease was lost meanwhile; nothing was written after that.
    """
    cluster = cluster or Cluster()
    with nullcontext(lease) if lease else folder.lease() as held, connect(cluster.address):
        lacking = lacking_gpus(cluster.workers, cluster.address) if cluster.gpus else ""
        if lacking:
            return Outcome("FAILED", 0, 0, lacking)
        wrong = repair(folder, run.runtime.keep)
        if wrong:
            log.info("repaired Ray's snapshot of %s, which was %s", folder.uri, wrong)
        channel = open_driver_channel()
        training = Training(run, corpus, folder, held.record, str(pretext_home()), channel)
        fit = _Fit(_trainer(training, cluster))
        try:
            with _stop_requests() as request:
                outcome = _Driver(channel, fit, sink, before_checkpoint, request.reasons, held).watch()
        finally:  # workers that still wait for this driver must not wait for ever
            with suppress(ray.exceptions.RayError):
                ray.kill(channel)
        if outcome.status != "FINISHED":
            require(held.record)
    if outcome.status == "FAILED" and request.signal is not None:
        log.error("%s", outcome.reason)  # the handler of the signal that is raised again does not report it
    if outcome.status != "KILLED":
        request.raise_again()
    return outcome


def _trainer(training: Training, cluster: Cluster) -> TorchTrainer:
    path, filesystem = pyarrow_location(training.folder.storage)
    return TorchTrainer(
        work,
        train_loop_config={"training": training},
        torch_config=TorchConfig(backend="nccl" if cluster.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus, resources_per_worker=_resources(cluster)
        ),
        run_config=RunConfig(
            name=training.folder.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=training.run.runtime.keep),
        ),
    )


def _resources(cluster: Cluster) -> dict[str, float]:
    """A fraction of a CPU for each worker if there are as many workers as CPUs: others need some CPU, too."""
    share = 0.8 * ray.cluster_resources().get("CPU", 1.0) / cluster.workers
    cpu = {"CPU": 1.0 if share >= 1 else max(0.01, round(share, 2))}
    return {**cpu, "GPU": 1.0} if cluster.gpus else cpu


class _Fit(threading.Thread):
    """`trainer.fit()` beside the driver's own loop, so that points and signals never wait for it."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.trainer = trainer
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error


class _Driver:
    """Passes on points and the request to stop, and returns how the training ended."""

    def __init__(
        self,
        channel: Any,
        fit: _Fit,
        sink: Callable[[Point], None],
        before_checkpoint: Callable[[], None],
        reasons: list[str],
        lease: ExclusiveLease,
    ) -> None:
        self.channel, self.fit, self.reasons, self.lease = channel, fit, reasons, lease
        self.sink, self.before_checkpoint = sink, before_checkpoint
        self.last = Point(0, 0, {}, 0)
        self.outcome: Outcome | None = None
        self.stop_requested_at: float | None = None

    def watch(self) -> Outcome:
        """Runs until the workers are done, or have not stopped `GRACE_S` seconds after the request."""
        while self.fit.is_alive() and not self._grace_is_over():
            self._receive(0.25)
            if self.lease.lost and not self.reasons:
                self.reasons.append("taken over by another driver")
            if self.reasons and self.stop_requested_at is None:
                self.stop_requested_at = time.monotonic()
                log.warning("%s: a checkpoint is written first; a second signal does not wait for it", self.reasons[0])
                ray.get(self.channel.request_stop.remote(self.reasons[0]))
        self._receive(0.01)
        return self._final_outcome()

    def _receive(self, seconds: float) -> None:
        for item in ray.get(self.channel.receive.remote(seconds)):
            if "status" in item:
                self.outcome = Outcome(**item)
            elif "checkpoint" in item:  # rank 0 waits for the next `receive` before it writes
                require(self.lease.record)
                self.before_checkpoint()
            elif item["step"] > self.last.step:  # a restarted group repeats the steps since its checkpoint
                self.last = Point(**item)
                self.sink(self.last)

    def _grace_is_over(self) -> bool:
        return self.stop_requested_at is not None and time.monotonic() - self.stop_requested_at > GRACE_S

    def _final_outcome(self) -> Outcome:
        if self.outcome:  # it counts whatever happened to Ray after rank 0 had sent it
            return self.outcome
        failure = ray.get(self.channel.failure.remote())
        if failure or self.fit.error:
            return self._ended("FAILED", failure or sentence(self.fit.error))
        if self.reasons:
            return self._ended("KILLED", f"{self.reasons[0]}; the workers did not write a checkpoint in {GRACE_S:g} s")
        return self._ended(
            "FAILED", "The workers ended and gave no reason; their logs are in /tmp/ray/session_latest/logs."
        )

    def _ended(self, status: Any, reason: str) -> Outcome:
        return Outcome(status, self.last.step, self.last.steps, reason)


@dataclass
class _StopRequest:
    """Why to stop, and the signal that requested it."""

    reasons: list[str] = field(default_factory=list)
    signal: int | None = None

    def raise_again(self) -> None:
        """Raise a signal again that did not stop the training, so that the code after it can handle it."""
        if self.signal is not None:
            signal.raise_signal(self.signal)


@contextmanager
def _stop_requests() -> Iterator[_StopRequest]:
    """Collects the signals that ask to stop; the second one interrupts as usual."""
    request = _StopRequest()

    def record_signal(number: int, frame: Any) -> None:
        if request.reasons:
            raise KeyboardInterrupt
        request.reasons.append(f"stopped by {signal.Signals(number).name}")
        request.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, record_signal) for number in stop_signals()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sentence(error: BaseException | None) -> str:
    """The message for the user from Ray's nested exceptions: that of the cause, on one line."""
    causes = list(getattr(error, "worker_failures", {}).values())
    causes = [getattr(cause, "_base_exc", cause) for cause in causes]
    deaths = [cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError)]
    cause = next((cause for cause in causes if cause not in deaths), None)
    cause = cause or getattr(error, "controller_failure", None)
    if cause is None and deaths:
        return (
            "A worker process died again and again (killed, or out of memory); lower train.batch_size or raise "
            "train.accumulate if memory is short. The same command resumes from the last checkpoint."
        )
    last = cause or error
    known = user_message(last) if isinstance(last, BaseException) else None
    text = known or f"the workers failed, unexpectedly, with {type(last).__name__}: {last}"
    return " ".join(text.split())[:500]
