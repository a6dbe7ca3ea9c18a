"""What one Ray Train worker does: open the corpus, run the loop, report checkpoints, stop on the driver's request."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.train.v2.api.report_config import CheckpointUploadMode

from components.corpus.corpus import Corpus
from components.storage.files import join, remote, write
from components.storage.lease import TakenOver, require
from components.training import artefacts
from components.training.run_folder import MODEL, RunFolder
from ssl_core.data.reader import ReadError
from ssl_core.data.shards import Shards
from ssl_core.errors import PretextError, bug_message, trace_of, user_message
from ssl_core.train import checkpoint
from ssl_core.train.loop import pretrain
from ssl_core.train.ranks import Checkpoint, Ranks
from ssl_core.train.run import Run
from ssl_core.types import CorpusVersion

FINAL = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    AssertionError,
    ReadError,
    TakenOver,
)
"""Errors that come again however often the workers are restarted: of the input, of the code, of another driver."""
TRACE = "fault.txt"
"""File in the run's folder with the trace of a fault of ours that stopped the workers."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What the driver hands to every worker.

    Attributes:
        run: what to learn and how.
        corpus: the version to train on.
        folder: the run's folder.
        lease: record of the driver's lease of that folder; nothing is written there once it is gone.
        home: the driver's pretext home, where a remote corpus is cached.
        channel: actor handle of the run's `DriverChannel`.
    """

    run: Run
    corpus: CorpusVersion
    folder: RunFolder
    lease: str
    home: str
    channel: Any


def work(config: dict[str, Training]) -> None:
    """The `train_loop_per_worker`: trains, and posts points and outcome from rank 0."""
    training = config["training"]
    if ray.get(training.channel.failure.remote()):
        return
    try:
        _train(training)
    except FINAL as error:
        ray.get(training.channel.fail.remote(user_message(error) or _fault(error, training)))
        if ray.train.get_context().get_world_size() > 1:
            raise  # the others may wait for this one; Ray ends them all, and the next group returns at once


def _fault(error: Exception, training: Training) -> str:
    """The message for a fault of ours; its trace goes into the run's folder, which the user can reach."""
    where = join(training.folder.uri, TRACE)
    try:
        write(where, trace_of(error).encode())
    except PretextError as refused:
        where = f"the worker's log only ({refused})"
        log.exception("%s", error, exc_info=error)
    return bug_message(error, where)


def _train(training: Training) -> None:
    os.environ["PRETEXT_HOME"] = training.home
    context, device = ray.train.get_context(), _device()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    artefacts.load_all(training.run.task, training.folder)
    corpus = Corpus.open(training.corpus.uri, training.corpus.version)
    outcome = pretrain(
        training.run,
        Shards.open(corpus.shards()),
        corpus.digest(),
        ReportingStore(training, rank),
        ranks=Ranks.join(rank, context.get_world_size(), device),
        on_point=lambda point: training.channel.post.remote(asdict(point)),
        stop=_listen(training.channel) if rank == 0 else str,
    )
    if rank == 0:
        ray.get(training.channel.post.remote(asdict(outcome)))


def _device() -> torch.device:
    from ray.train.torch import get_device

    device: torch.device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _listen(channel: Any) -> Callable[[], str]:
    """The loop's `stop`: a thread waits for the driver's request, so that checking for it costs nothing."""
    reasons: list[str] = []

    def wait() -> None:
        try:
            reasons.append(ray.get(channel.stop_requested.remote()))
        except ray.exceptions.RayError:
            return  # the driver is gone, and Ray ends this process with it

    threading.Thread(target=wait, name="stop-listener", daemon=True).start()
    return lambda: reasons[0] if reasons else ""


class ReportingStore:
    """The loop's store in the run's folder; reports every checkpoint to Ray Train, which keeps the newest ones."""

    def __init__(self, training: Training, rank: int) -> None:
        self.folder, self.lease, self.channel, self.rank = training.folder, training.lease, training.channel, rank

    def newest(self) -> Checkpoint | None:
        return self.folder.newest()

    def keep(self, step: int, state: Checkpoint) -> None:
        reported = None
        if self.rank == 0:
            # Workers outlive a killed driver by seconds. Their checkpoint would skip points that no driver received.
            self.channel.post.remote({"checkpoint": step})
            ray.get(self.channel.settle.remote())
            require(self.lease)
            name = checkpoint.name_of(step)
            self.folder.put(name, lambda path: checkpoint.save(path, *state))
            reported = ray.train.Checkpoint(*pyarrow_location(join(self.folder.uri, name)))
        ray.train.report({"step": step}, reported, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    def publish(self, write: Callable[[Path], None]) -> None:
        require(self.lease)
        self.folder.put(MODEL, write)


def pyarrow_location(uri: str) -> tuple[str, pyarrow.fs.FileSystem]:
    """Path and pyarrow file system of a URI, through fsspec, so that all parts of a run use the same client."""
    if "://" not in uri:
        return uri, pyarrow.fs.LocalFileSystem()
    fs, path = remote(uri)
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
