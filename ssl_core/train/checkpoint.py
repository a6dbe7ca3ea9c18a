"""What training leaves on disk: checkpoints to resume from, and the trained model.

    <parent>/checkpoint_00000120/{state.safetensors, state.json, COMPLETE}
    <folder>/{model.safetensors, config.json, COMPLETE, and the task's artefacts: <digest>.safetensors}

A model's config.json names the task with its fields and the encoder's spec, from which `saved_model` rebuilds both.
Nothing here is pickled, and nothing here imports the tasks: training one does not depend on the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_core import artefact
from ssl_core.atomic import sweep
from ssl_core.folder import (
    CONFIG,
    WEIGHTS,
    DamagedError,
    is_complete,
    read_json,
    read_tensors,
    remove,
    verify,
    write_folder,
)
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.task import PretextTask

TENSORS = "state.safetensors"
META = "state.json"
_NAME, _NAMES = re.compile(r"checkpoint_(\d{8,})"), "checkpoint_*"

FORMAT = 1
"""Version of a saved model's config.json."""


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps; names sort by step."""
    return f"checkpoint_{step:08d}"


def step_of(name: str) -> int | None:
    """Inverse of `name_of`; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def save(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically; replaces an old one."""
    write_folder(folder, {TENSORS: tensors}, {META: meta})


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the JSON of a complete checkpoint.

    Raises:
        DamagedError: a file is missing or differs from its entry in COMPLETE.
    """
    verify(folder)
    return read_tensors(folder / TENSORS), read_json(folder / META)


def complete(parent: Path) -> list[Path]:
    """Complete checkpoints in `parent`, by marker and file sizes, newest first."""
    found = [path for path in _checkpoints(parent) if is_complete(path)]
    return sorted(found, key=lambda path: step_of(path.name) or 0, reverse=True)


def load_newest(parent: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Loads the newest checkpoint whose files all match their digests, falling back to older ones."""
    for path in complete(parent):
        try:
            return load(path)
        except (DamagedError, FileNotFoundError):
            continue
    return None


def prune(parent: Path, keep: int) -> None:
    """Deletes all but the newest `keep` complete checkpoints, and what killed writers left behind.

    Only the process that writes checkpoints there may call it.
    """
    sweep(parent, _NAMES, older_than=0)
    sweep(parent)
    kept = complete(parent)[:keep]
    newest = step_of(kept[0].name) if kept else None
    for path in _checkpoints(parent):
        stale = newest is not None and (step_of(path.name) or 0) <= newest
        if path not in kept and stale:
            remove(path)


def save_model(
    folder: Path,
    task: PretextTask,
    encoder: EncoderSpec,
    weights: Mapping[str, Tensor],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes the model and the task's artefacts atomically.

    weights: the TaskModel's state dict, averaged or not. notes: further JSON for its config.

    Raises:
        MissingArtefactError: one of the task's artefacts is in no folder.
    """
    config = {
        "format": FORMAT,
        "task": task_name(task),
        "task_fields": _fields(task),
        "encoder": asdict(encoder),
        "notes": dict(notes or {}),
    }
    kept = {artefact.file_name(digest): artefact.load(digest) for digest in artefact.digests(task).values()}
    write_folder(folder, {WEIGHTS: weights, **kept}, {CONFIG: config})


def task_name(task: PretextTask) -> str:
    """The task's key in TASKS, which is also the name of its module; the class name of a task from elsewhere."""
    package, _, module = type(task).__module__.rpartition(".")
    return module if package == "ssl_core.tasks" else type(task).__name__


def _fields(task: PretextTask) -> dict[str, Any]:
    if not is_dataclass(task):
        raise TypeError(f"{type(task).__name__} is no dataclass, so it cannot be saved with its model; make it one.")
    return asdict(task)


def _checkpoints(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if step_of(path.name) is not None] if parent.is_dir() else []
