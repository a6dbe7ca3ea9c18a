"""Loads a saved model: `load_model` rebuilds the task and its network and fills in the weights.

The evaluation, the registry and users' own code load models; `ssl_core.train.checkpoint.save_model` writes them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core import artefact
from ssl_core.folder import CONFIG, WEIGHTS, DamagedError, read_json, read_tensors, verify
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.task import PretextTask, TaskModel
from ssl_core.tasks import TASKS
from ssl_core.train.checkpoint import FORMAT


def load_model(
    folder: Path, device: str | torch.device = "cpu", tasks: Mapping[str, type] = TASKS
) -> tuple[PretextTask, TaskModel]:
    """The task and its model in eval mode, as they were saved.

    Raises:
        DamagedError: files are missing or changed, or this version of pretext has another format, task or tensors.
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
        raise DamagedError(f"{folder} was trained on the task {config.get('task')!r}; this version has only {known}.")
    try:
        task = from_fields(tasks[config["task"]], config["task_fields"])
        return task, from_fields(EncoderSpec, config["encoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder / CONFIG} does not fit this version of pretext: {error}.") from error


def from_fields(kind: type, values: Mapping[str, Any]) -> Any:
    """A frozen dataclass from JSON values: lists become tuples, and objects the dataclasses of their fields."""
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
        ("has, unknown to this version,", sorted(weights.keys() - own.keys())),
        ("has with another shape", shapes),
    ):
        if names:
            raise DamagedError(f"{folder / WEIGHTS} {problem} {', '.join(names[:3])} ({len(names)} tensors).")
    model.load_state_dict(dict(weights))
