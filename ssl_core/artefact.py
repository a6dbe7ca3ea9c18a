"""Artefacts: what a task must learn or fix before it trains, such as a permutation set, a colour prior, a vocabulary.

A task's class says how each is made, `artefacts = {field: fit}`; its field holds the digest of the content, so that the
task stays a handful of plain values and the same digest always means the same tensors:

    digest = keep(folder, fit(task, batches, rng))      components.training.artefacts, once, before training
    task = replace(task, vocabulary=digest)
    load(task.vocabulary)                               in the task, wherever the tensors are needed

Each is one file, <digest>.safetensors. `load` looks in the folders that `look_in` was told of: the store of the
installation, the folder of a run, the folder of a saved model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ssl_core.errors import InputError
from ssl_core.folder import DamagedError, read_tensors, write_tensors
from ssl_core.types import Raw

Fit = Callable[[Any, Iterator[Raw], Generator], Mapping[str, Tensor]]
"""(task, batches of the corpus in random order without end, randomness) -> tensors; takes as many batches as it needs,
on the device where they are and where the generator is."""

_FOLDERS: list[Path] = []
_HELD: dict[tuple[str, torch.device], Mapping[str, Tensor]] = {}


class MissingArtefactError(InputError):
    """A task names an artefact that is nowhere to be found, or names none where it needs one."""


def fits(task: Any) -> Mapping[str, Fit]:
    """How each artefact of a task is made, by the field that holds its digest; most tasks have none."""
    made: Mapping[str, Fit] = getattr(task, "artefacts", {})
    return made


def digests(task: Any) -> dict[str, str]:
    """Field -> digest of each artefact of a task; empty where it was not made yet."""
    return {field: getattr(task, field) for field in fits(task)}


def saved_models(task: Any) -> dict[str, str]:
    """Field -> saved model that the fits of a task read; a folder where they are called, else what the user wrote.

    A task names such fields in a ClassVar `saved_models`. An empty one means the run's own encoder, untrained: a folder
    that holds its config alone.
    """
    return {field: getattr(task, field) for field in getattr(task, "saved_models", ())}


def file_name(digest: str) -> str:
    """Of the artefact, in whatever folder it lies."""
    return f"{digest}.safetensors"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {[*plain.shape]}\n".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def keep(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Stores tensors in the folder, atomically and at most once; returns their digest."""
    digest = digest_of(tensors)
    if not (folder / file_name(digest)).exists():
        write_tensors(folder / file_name(digest), tensors)
    return digest


def look_in(folder: Path) -> None:
    """From now on `load` of this process also looks in this folder."""
    if folder not in _FOLDERS:
        _FOLDERS.append(folder)


def load_all(task: Any, folder: Path) -> None:
    """Reads all artefacts of a task, which may lie in this folder: the process then has them when the folder is gone.

    Raises:
        MissingArtefactError, DamagedError: see `load`.
    """
    look_in(folder)
    for digest in digests(task).values():
        load(digest)


def path_of(digest: str) -> Path:
    """The file of an artefact.

    Raises:
        MissingArtefactError: it is in none of the folders, or no digest was given.
    """
    if not digest:
        raise MissingArtefactError(
            "The task needs an artefact that was not made yet; `pretext run` makes it, as does `pretext artefacts`."
        )
    for folder in _FOLDERS:
        if (folder / file_name(digest)).exists():
            return folder / file_name(digest)
    looked = ", ".join(str(folder) for folder in _FOLDERS if folder.exists()) or "no folder"
    raise MissingArtefactError(
        f"The task names the artefact {digest}, which is not in {looked}; leave the field empty to have it made anew."
    )


def load(digest: str, device: torch.device | str = "cpu") -> Mapping[str, Tensor]:
    """The artefact's tensors on that device, read and checked once per process; never change them in place.

    Raises:
        MissingArtefactError: see `path_of`.
        DamagedError: the file is not what was stored.
    """
    place = torch.device(device)
    if (digest, place) not in _HELD:
        _HELD[digest, place] = _read(digest) if place.type == "cpu" else _moved(load(digest), place)
    return _HELD[digest, place]


def _read(digest: str) -> Mapping[str, Tensor]:
    path = path_of(digest)
    tensors = read_tensors(path)
    if digest_of(tensors) != digest:
        raise DamagedError(f"{path} has changed since it was stored; delete it and let it be made anew.")
    return tensors


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
