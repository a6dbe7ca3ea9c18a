"""Artefacts: what a task must learn or fix before it trains, such as a permutation set, a colour prior, a vocabulary.

A task's class says how each is made, `artefacts = {field: fit}`; its field holds the digest of the content, so that the
task stays a handful of plain values and the same digest always means the same tensors:

    digest = keep(folder, fit(task, batches, rng))      components.artefacts, once, before training
    task = replace(task, vocabulary=digest)
    load(task.vocabulary)                               in the task, wherever the tensors are needed

`load` looks in the folders that `look_in` was told of: the store of the installation, the folder of a saved model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ssl_core.folder import is_complete, read_tensors, verify, write_folder
from ssl_core.types import Raw

Fit = Callable[[Any, Iterator[Raw], Generator], Mapping[str, Tensor]]
"""(task, batches of the corpus without end, randomness) -> tensors; takes as many batches as it needs."""

FILE = "artefact.safetensors"

_FOLDERS: list[Path] = []


class MissingArtefactError(ValueError):
    """A task names an artefact that is nowhere to be found, or names none where it needs one."""


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {[*plain.shape]}\n".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def keep(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Stores tensors as folder/<digest>, atomically and at most once; returns the digest."""
    digest = digest_of(tensors)
    if not is_complete(folder / digest):
        write_folder(folder / digest, tensors, {}, FILE)
    return digest


def look_in(folder: Path) -> None:
    """From now on `load` of this process also looks in this folder."""
    if folder not in _FOLDERS:
        _FOLDERS.append(folder)


def path_of(digest: str) -> Path:
    """The stored artefact's folder.

    Raises:
        MissingArtefactError: it is in none of the folders, or no digest was given.
    """
    if not digest:
        raise MissingArtefactError(
            "The task needs an artefact that was not made yet; `pretext run` makes it, as does components.artefacts."
        )
    for folder in _FOLDERS:
        if is_complete(folder / digest):
            return folder / digest
    looked = ", ".join(map(str, _FOLDERS)) or "no folder"
    raise MissingArtefactError(
        f"The task names the artefact {digest}, which is not in {looked}; leave the field empty to have it made anew."
    )


@cache
def load(digest: str, device: torch.device | str = "cpu") -> Mapping[str, Tensor]:
    """The artefact's tensors on that device, read and checked once per process; never change them in place.

    Raises:
        MissingArtefactError: see `path_of`.
        DamagedError: its bytes have changed since they were stored.
    """
    if torch.device(device).type != "cpu":
        return {name: tensor.to(device) for name, tensor in load(digest).items()}
    path = path_of(digest)
    verify(path)
    return read_tensors(path / FILE)
