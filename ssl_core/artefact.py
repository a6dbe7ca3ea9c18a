"""Artefacts: what a task fits before it trains, such as a permutation set, a colour prior or a vocabulary.

A task's class names the function that fits each, `artefacts = {field: fit}`. The field holds the digest of the content,
so that the task stays a handful of plain values and the same digest always means the same tensors:

    digest = store(folder, fit(task, batches, rng))     components.training.artefacts, once, before training
    task = replace(task, vocabulary=digest)
    load(task.vocabulary)                               in the task, wherever the tensors are needed

Each is one file, <digest>.safetensors. `load` searches the folders that were passed to `search_in`: the store of the
installation, a run folder, the folder of a saved model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ssl_core.atomic import sweep
from ssl_core.errors import InputError
from ssl_core.folder import DamagedError, read_tensors, write_tensors
from ssl_core.types import Raw

Fit = Callable[[Any, Iterator[Raw], Generator], Mapping[str, Tensor]]
"""(task, endless batches of the corpus in random order, generator) -> tensors. It uses as many batches as it needs;
batches and generator are on the same device."""

_FOLDERS: list[Path] = []
_LOADED: dict[tuple[str, torch.device], Mapping[str, Tensor]] = {}


class MissingArtefactError(InputError):
    """A task names an artefact that is in no folder, or names none where it needs one."""


def fit_functions(task: Any) -> Mapping[str, Fit]:
    """Field that holds an artefact's digest -> the function that fits it; empty for most tasks."""
    functions: Mapping[str, Fit] = getattr(task, "artefacts", {})
    return functions


def digests(task: Any) -> dict[str, str]:
    """Field -> digest of each artefact of a task; an empty digest where it is not fitted yet."""
    return {field: getattr(task, field) for field in fit_functions(task)}


def saved_models(task: Any) -> dict[str, str]:
    """Field -> saved model that a task's fit functions read: as the user wrote it, but a folder while they run.

    A task names such fields in a ClassVar `saved_models`. An empty value means the run's own encoder, untrained: a
    folder that holds its config alone.
    """
    return {field: getattr(task, field) for field in getattr(task, "saved_models", ())}


def file_name(digest: str) -> str:
    """File name of an artefact, the same in every folder."""
    return f"{digest}.safetensors"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {[*plain.shape]}\n".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def store(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes the tensors to the folder, atomically, unless it has them already; returns their digest."""
    sweep(folder)
    digest = digest_of(tensors)
    if not (folder / file_name(digest)).exists():
        write_tensors(folder / file_name(digest), tensors)
    return digest


def search_in(folder: Path) -> None:
    """From now on `load` also searches this folder, in this process."""
    if folder not in _FOLDERS:
        _FOLDERS.append(folder)


def load_all(task: Any, folder: Path) -> None:
    """Loads all artefacts of a task, which may lie in this folder; the process keeps them when the folder is deleted.

    Raises:
        MissingArtefactError, DamagedError: see `load`.
    """
    search_in(folder)
    for digest in digests(task).values():
        load(digest)


def path_of(digest: str) -> Path:
    """The file of an artefact.

    Raises:
        MissingArtefactError: it is in none of the folders, or no digest was given.
    """
    if not digest:
        raise MissingArtefactError(
            "The task needs an artefact that is not fitted yet; fit it with `pretext artefacts` or `pretext run`."
        )
    for folder in _FOLDERS:
        if (folder / file_name(digest)).exists():
            return folder / file_name(digest)
    searched = ", ".join(str(folder) for folder in _FOLDERS if folder.exists()) or "no folder"
    raise MissingArtefactError(
        f"The task names the artefact {digest}, which is not in {searched}; leave the field empty to fit it anew."
    )


def load(digest: str, device: torch.device | str = "cpu") -> Mapping[str, Tensor]:
    """The artefact's tensors on that device, read and checked once per process; never change them in place.

    Raises:
        MissingArtefactError: see `path_of`.
        DamagedError: the file is not what was stored.
    """
    place = torch.device(device)
    if (digest, place) not in _LOADED:
        _LOADED[digest, place] = _read(digest) if place.type == "cpu" else _moved(load(digest), place)
    return _LOADED[digest, place]


def _read(digest: str) -> Mapping[str, Tensor]:
    path = path_of(digest)
    tensors = read_tensors(path)
    if digest_of(tensors) != digest:
        raise DamagedError(f"{path} has changed since it was stored; delete it to fit it anew.")
    return tensors


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
