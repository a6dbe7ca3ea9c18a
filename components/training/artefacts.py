"""What a task must fit before it trains, made once per run: permutation sets, colour priors, vocabularies.

    task with empty fields -> one Ray task: corpus -> reader -> fit -> tensors -> <run>/artefacts -> task with digests

The run's folder gets all of them at once, whole or not at all: a later start of the run finds them there, a kill on the
way leaves none, and the same call makes them again. The pretext home keeps them too, so that another recipe can name a
digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from components.cluster.connect import Cluster, connect, lacking_gpus
from components.cluster.driver_channel import open_driver_channel
from components.corpus.corpus import Corpus
from components.storage.files import is_remote, join, read
from components.storage.home import pretext_home
from components.storage.lease import ExclusiveLease, require
from components.training.run_folder import ARTEFACTS, RunFolder
from ssl_core import artefact
from ssl_core.data.reader import Reader, Sampler
from ssl_core.data.shards import Shards
from ssl_core.errors import PretextError
from ssl_core.folder import CONFIG, WEIGHTS, verify, write_folder
from ssl_core.task import PretextTask
from ssl_core.train.run import Run
from ssl_core.types import CorpusVersion, Raw

FIELDS = "fields.json"
"""Beside the tensors: field -> digest."""
BATCH = 256
"""Samples in a batch for a fit; the whole corpus if it is smaller."""

Tensors = Mapping[str, Tensor]


class ArtefactError(PretextError):
    """Artefacts cannot be made; the message says which and why."""


@dataclass(frozen=True)
class FitJob:
    """What the driver hands to the Ray task.

    Attributes:
        task: the pretext task.
        fields: of it, those whose artefacts are to be made.
        corpus: the version to fit on.
        seed: of the run.
        gpu: whether to compute on a GPU.
        home: the driver's pretext home, where a remote corpus is cached.
        channel: actor handle of a `DriverChannel`, for progress.
        models: field of the task -> files of the saved model that it names.
    """

    task: PretextTask
    fields: tuple[str, ...]
    corpus: CorpusVersion
    seed: int
    gpu: bool
    home: str
    channel: Any
    models: Mapping[str, Mapping[str, bytes]]


def prepare(
    run: Run,
    corpus: CorpusVersion,
    folder: RunFolder,
    cluster: Cluster | None = None,
    *,
    progress: Callable[[str, int], None] = lambda field, samples: None,
    lease: ExclusiveLease | None = None,
    tracking: str | None = None,
) -> Run:
    """The run with a digest in every artefact field of its task; the artefacts are then in the run's folder.

    Arguments are those of `components.training.pretrain.pretrain`, to which the result goes.

    Args:
        progress: called now and then with the current field and the samples that its fit has read.
        tracking: MLflow server with the saved models that the task names; default as for registering.

    Raises:
        MissingArtefactError: the recipe names a digest that is stored nowhere.
        ArtefactError, InputError: one cannot be made, from this corpus or on this machine.
        Busy: another process, here or on another machine, holds the run's folder.
        TakenOver: the lease was lost meanwhile; nothing was written after that.
    """
    wanted = artefact.digests(run.task)
    if not wanted:
        return run
    digests = recorded(folder)
    if not digests:
        with nullcontext(lease) if lease else folder.lease() as held:
            store = pretext_home() / ARTEFACTS
            artefact.search_in(store)
            for digest in filter(None, wanted.values()):
                artefact.load(digest)
            made = _fit_missing(run, corpus, cluster or Cluster(), progress, tracking)
            digests = {field: digest or artefact.store(store, made[field]) for field, digest in wanted.items()}
            require(held.record)
            folder.put(ARTEFACTS, lambda path: _write(path, digests))
    differing = [field for field, digest in wanted.items() if (digest or digests.get(field)) != digests.get(field)]
    if differing or wanted.keys() != digests.keys():
        raise ArtefactError(f"{folder.uri} holds the artefacts of another task; give this run another name.")
    return replace(run, task=replace(cast(Any, run.task), **digests))


def recorded(folder: RunFolder) -> dict[str, str]:
    """Field -> digest of the artefacts in a run's folder; empty if none were made."""
    if not folder.holds(ARTEFACTS):
        return {}
    written: dict[str, str] = json.loads(read(join(folder.uri, ARTEFACTS, FIELDS)) or b"{}")
    return written


def load_all(task: PretextTask, folder: RunFolder) -> None:
    """Reads the task's artefacts from the run's folder into this process.

    Raises:
        MissingArtefactError: one is not there, or was not made.
    """
    if artefact.fit_functions(task):
        with folder.local_copy(ARTEFACTS) as kept:
            artefact.load_all(task, kept or pretext_home() / ARTEFACTS)


def _write(path: Path, digests: Mapping[str, str]) -> None:
    content = {artefact.file_name(digest): artefact.load(digest) for digest in digests.values()}
    write_folder(path, content, {FIELDS: digests})


def _fit_missing(
    run: Run,
    corpus: CorpusVersion,
    cluster: Cluster,
    progress: Callable[[str, int], None],
    tracking: str | None,
) -> Mapping[str, Tensors]:
    """Runs the fit functions of the empty fields as one Ray task."""
    fields = tuple(field for field, digest in artefact.digests(run.task).items() if not digest)
    if not fields:
        return {}
    with connect(cluster.address):
        lacking = lacking_gpus(1, cluster.address) if cluster.gpus else ""
        if lacking:
            raise ArtefactError(lacking)
        models = {field: _files(uri, run, tracking) for field, uri in artefact.saved_models(run.task).items()}
        channel, home = open_driver_channel(), str(pretext_home())
        job = FitJob(run.task, fields, corpus, run.train.seed, cluster.gpus, home, channel, models)
        # On a small shared cluster a whole CPU may never be free; the task uses all threads of its machine anyway.
        fitting = ray.remote(fit).options(num_cpus=0.5, num_gpus=int(cluster.gpus)).remote(job)
        try:
            while not ray.wait([fitting], timeout=0.25)[0]:
                for field, samples in ray.get(channel.receive.remote(0.01))[-1:]:
                    progress(field, samples)
            return cast(Mapping[str, Tensors], ray.get(fitting))
        except RayTaskError as error:
            raise error.cause from error  # only Ray's error has the trace of the fit
        except RayError as error:
            why = " ".join(str(error).split())[:300]
            raise ArtefactError(f"the process that fits {', '.join(fields)} died; start again: {why}") from None
        finally:
            if not ray.wait([fitting], timeout=0)[0]:  # cancelling a finished task can end this process (Ray 2.60)
                ray.cancel(fitting, force=True)
            ray.kill(channel)


def _files(uri: str, run: Run, tracking: str | None) -> dict[str, bytes]:
    """The files of a saved model, wherever it lies; without a URI, the config of the run's own encoder, untrained."""
    if not uri:
        return {CONFIG: json.dumps({"encoder": asdict(run.encoder)}).encode()}
    if is_remote(uri):
        found = {name: read(join(uri, name)) for name in (CONFIG, WEIGHTS)}
        if None in found.values():
            raise ArtefactError(f"{uri} holds no model of pretext ({CONFIG} and {WEIGHTS}).")
        return cast(dict[str, bytes], found)
    from components.registry.export import PRETEXT
    from components.registry.fetch import fetch  # imports mlflow

    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch(uri, Path(scratch), tracking)
        folder = folder / PRETEXT if (folder / PRETEXT).is_dir() else folder
        verify(folder)
        return {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def fit(job: FitJob) -> dict[str, Tensors]:
    """The Ray task: field -> tensors on the CPU. The same job gives the same tensors on the same kind of machine."""
    os.environ["PRETEXT_HOME"] = job.home
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if job.gpu else "cpu")
    corpus = Corpus.open(job.corpus.uri, job.corpus.version)
    shards, digest = Shards.open(corpus.shards()), corpus.digest()
    made: dict[str, Tensors] = {}
    with tempfile.TemporaryDirectory() as scratch:
        task = _with_models(job, Path(scratch))
        for field in job.fields:
            with closing(_batches(job, field, shards, digest, device)) as batches:
                tensors = artefact.fit_functions(task)[field](task, batches, _randomness(job.seed, field, device))
                made[field] = {name: tensor.cpu() for name, tensor in tensors.items()}
    return made


def _with_models(job: FitJob, scratch: Path) -> PretextTask:
    """The task with folders of this machine where it names saved models."""
    for field, files in job.models.items():
        (scratch / field).mkdir()
        for name, content in files.items():
            (scratch / field / name).write_bytes(content)
    return cast(PretextTask, replace(cast(Any, job.task), **{field: str(scratch / field) for field in job.models}))


def _batches(job: FitJob, field: str, shards: Shards, digest: str, device: torch.device) -> Generator[Raw, None, None]:
    """The corpus in random order, without end; reports to the driver how much was read."""
    samples, reported = 0, time.monotonic()
    size = min(BATCH, len(shards))
    with Reader(shards, job.task.sample, Sampler(size, job.seed, digest), device=device) as reader:
        for batch in reader:
            samples += size
            if time.monotonic() - reported > 0.5:
                reported = time.monotonic()
                job.channel.post.remote((field, samples))
            yield batch.raw


def _randomness(seed: int, field: str, device: torch.device) -> torch.Generator:
    drawn = hashlib.blake2b(f"{field},{seed}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(drawn) >> 1)
