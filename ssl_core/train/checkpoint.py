"""What training leaves on disk: checkpoints to resume from, and the trained model.

    <parent>/checkpoint_00000120/{state.safetensors, state.json, COMPLETE}
    <folder>/{model.safetensors, config.json, COMPLETE, and the task's artefacts: <digest>.safetensors}

A model's config.json names the task with its fields and the encoder's spec; `load_model` rebuilds both and fills in the
weights. The evaluation, the registry and the user's own code read it; nothing here is pickled.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
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
from ssl_core.task import PretextTask, TaskModel
from ssl_core.tasks import TASKS

TENSORS = "state.safetensors"
META = "state.json"
_NAME, _NAMES = re.compile(r"checkpoint_(\d{8,})"), "checkpoint_*"

FORMAT = 1


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps; names sort by step."""
    return f"checkpoint_{step:08d}"


def step_of(name: str) -> int | None:
    """Inverse of `name_of`; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def save(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint so that `folder` is absent, the old one, or whole; replaces what stood there."""
    write_folder(folder, {TENSORS: tensors}, {META: meta})


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the meta of a complete checkpoint.

    Raises:
        DamagedError: a file is missing or differs from what COMPLETE says.
    """
    verify(folder)
    return read_tensors(folder / TENSORS), read_json(folder / META)


def newest_complete(parent: Path) -> Path | None:
    """The complete checkpoint with the most steps, by marker and file sizes; None where there is none."""
    return next(iter(complete(parent)), None)


def complete(parent: Path) -> list[Path]:
    """Complete checkpoints in `parent`, newest first."""
    found = [path for path in _checkpoints(parent) if is_complete(path)]
    return sorted(found, key=lambda path: step_of(path.name) or 0, reverse=True)


def load_newest(parent: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Loads the newest checkpoint that is whole to the last byte, falling back to the ones before it."""
    for path in complete(parent):
        try:
            return load(path)
        except (DamagedError, FileNotFoundError):
            continue
    return None


def prune(parent: Path, keep: int) -> None:
    """Deletes all but the newest `keep` complete checkpoints, and what killed writers left behind.

    Only for the one process that writes checkpoints there.
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

    weights: the TaskModel's state dict, averaged or not; `notes` go into its JSON.

    Raises:
        MissingArtefactError: one of the task's artefacts is nowhere to be found.
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


def load_model(
    folder: Path, device: str | torch.device = "cpu", tasks: Mapping[str, type] = TASKS
) -> tuple[PretextTask, TaskModel]:
    """The task and its model in eval mode, as they were saved.

    Raises:
        DamagedError: files are missing or changed, or this version of pretext has no such format, task or tensors.
        MissingArtefactError: it was saved without one of its artefacts.
    """
    verify(folder)
    task, encoder = read_config(folder, tasks)
    artefact.load_all(task, folder)
    model = task.build(encoder.build)
    _fill(model, read_tensors(folder / WEIGHTS), folder)
    return task, model.to(device).eval()


def read_config(folder: Path, tasks: Mapping[str, type] = TASKS) -> tuple[PretextTask, EncoderSpec]:
    """Task and encoder of a saved model, without its weights."""
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise DamagedError(
            f"{folder / CONFIG} has format {config.get('format')!r} and this version of pretext reads {FORMAT}; "
            "load it with the version that wrote it."
        )
    if config.get("task") not in tasks:
        known = ", ".join(sorted(tasks))
        raise DamagedError(f"{folder} was trained on the task {config.get('task')!r}; this version knows {known}.")
    try:
        task = from_fields(tasks[config["task"]], config["task_fields"])
        return task, from_fields(EncoderSpec, config["encoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder / CONFIG} does not fit this version of pretext: {error}.") from error


def task_name(task: PretextTask) -> str:
    """The task's key in TASKS; its class name where it is none of ours."""
    return next((name for name, kind in TASKS.items() if kind is type(task)), type(task).__name__)


def _fields(task: PretextTask) -> dict[str, Any]:
    if not is_dataclass(task):
        raise TypeError(f"{type(task).__name__} is no dataclass, so it cannot be saved with its model.")
    return asdict(task)


def from_fields(kind: type, values: Mapping[str, Any]) -> Any:
    """A frozen dataclass from JSON values: lists become tuples again, objects the dataclasses of their fields."""
    hints = typing.get_type_hints(kind)
    unknown = set(values) - {entry.name for entry in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_typed(None, item) for item in value)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    nested = next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)
    return from_fields(nested, value) if nested and isinstance(value, dict) else value


def _fill(model: TaskModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Copies weights into the model, naming the first tensors that do not fit."""
    own = model.state_dict()
    shapes = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    for problem, names in (
        ("lacks", sorted(own.keys() - weights.keys())),
        ("holds, unknown to this version,", sorted(weights.keys() - own.keys())),
        ("has in another shape", shapes),
    ):
        if names:
            raise DamagedError(f"{folder / WEIGHTS} {problem} {', '.join(names[:3])} ({len(names)} tensors).")
    model.load_state_dict(dict(weights))


def _checkpoints(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if step_of(path.name) is not None] if parent.is_dir() else []
