"""An encoder as a folder without pickle: for our code, for MLflow, and for torch alone.

    pretext/     config.json, model.safetensors, COMPLETE: `load_artifact` rebuilds the task's model from these
    data/        model.pt2: torch.export of uint8 [n, 3, h, w] -> float [n, d], n free; torch.export.load runs it
    MLmodel      signature and flavours, so that mlflow.pytorch.load_model and mlflow.pyfunc.load_model find data/
    about.json   layer, input and the evaluation's main figures;  evaluation.json  the whole evaluation

What torch.export.save writes is a zip of raw tensors, JSON and one pickle: the sample inputs, through torch.save. They
are left out here, and torch.export.load does not need them. (MLflow's extra check under
MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false refuses the empty record; torch.export.load on the same file works there.)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core.errors import InputError
from ssl_core.task import PretextTask, TaskModel
from ssl_core.train.saved_model import load_model
from ssl_core.types import Field, media

PRETEXT, PT2, ABOUT, EVALUATION = "pretext", "data/model.pt2", "about.json", "evaluation.json"


class Embedder(nn.Module):
    """One layer of a task's model as a plain network: uint8 [n, 3, h, w] -> float32 [n, d]."""

    def __init__(self, model: TaskModel, name: str, layer: str) -> None:
        super().__init__()
        self.model, self.name, self.layer = model, name, layer

    def forward(self, image: Tensor) -> Tensor:
        layers = self.model.represent({self.name: image})
        return layers[self.layer].float().contiguous()


@dataclass(frozen=True)
class Loaded:
    """A registered encoder, rebuilt.

    Attributes:
        task: as it was trained.
        model: in eval mode.
        layer: the layer that is returned by default.
        layers: name -> dimension of all layers, from shallow to deep.
        about: content of about.json; empty for a model folder without one.
    """

    task: PretextTask
    model: TaskModel
    layer: str
    layers: Mapping[str, int]
    about: Mapping[str, Any]


def load_artifact(folder: Path, device: str | torch.device = "cpu", layer: str | None = None) -> Loaded:
    """Rebuilds the encoder from a registered artifact or from the model folder of a run.

    Raises:
        DamagedError: files are missing or have changed.  InputError: it has no such layer.
    """
    wrapped = (folder / PRETEXT).is_dir()
    about = json.loads((folder / ABOUT).read_text()) if wrapped else {}
    task, model = load_model(folder / PRETEXT if wrapped else folder, device)
    layers = _probe(task, model, device)
    chosen = layer or about.get("layer") or list(layers)[-1]
    if chosen not in layers:
        raise InputError(f"the encoder in {folder} has no layer {chosen!r}; it has {', '.join(layers)}")
    return Loaded(task, model, chosen, layers, about)


def input_of(task: PretextTask) -> tuple[str, Field]:
    """Name and field of the one image that the task takes.

    Raises:
        InputError: the task takes several inputs or none that is an image.
    """
    fields = list(media(task.sample).items())
    if len(fields) != 1 or fields[0][1].modality != "image":
        kinds = ", ".join(f"{name} ({field.modality})" for name, field in fields)
        raise InputError(f"only encoders of one image can be exported and embed files; this one takes {kinds}")
    return fields[0]


def write_artifact(
    model_folder: Path,
    out: Path,
    *,
    layer: str | None,
    about: Mapping[str, Any],
    evaluation: str | None = None,
    run_id: str | None = None,
    model_id: str | None = None,
) -> Path:
    """Writes the artifact of a saved model (`ssl_core.train.checkpoint.save_model`) as the new folder `out`."""
    loaded = load_artifact(model_folder, layer=layer)
    name, field = input_of(loaded.task)
    out.mkdir(parents=True)
    shutil.copytree(model_folder, out / PRETEXT)
    (out / "data").mkdir()
    embedder = Embedder(loaded.model.requires_grad_(False), name, loaded.layer)
    _write_pt2(embedder, field.shape, out / PT2)
    dim = loaded.layers[loaded.layer]
    what = {"layer": loaded.layer, "layers": loaded.layers, "dim": dim, "input": {name: field.shape}}
    (out / ABOUT).write_text(json.dumps({**about, **what}, indent=1, sort_keys=True))
    if evaluation is not None:
        (out / EVALUATION).write_text(evaluation)
    _write_mlmodel(out, field.shape, dim, run_id, model_id)
    return out


def example(shape: tuple[int, ...], n: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[n, *shape] uint8: smooth slopes, the same every time."""
    values = np.add.outer(np.arange(n) * 37, np.indices(shape).sum(0) * 5 + np.indices(shape)[0] * 40)
    return np.asarray(values % 256, dtype=np.uint8)


@torch.no_grad()
def _probe(task: PretextTask, model: TaskModel, device: str | torch.device) -> dict[str, int]:
    fields = media(task.sample).items()
    raw = {name: torch.zeros(1, *field.shape, dtype=torch.uint8, device=device) for name, field in fields}
    return {name: int(found.shape[1]) for name, found in model.represent(raw).items()}


@torch.no_grad()
def _write_pt2(embedder: Embedder, shape: tuple[int, ...], path: Path) -> None:
    """Exports with a free batch dimension. Raises ValueError if the exported network computes other values."""
    pictures = torch.from_numpy(example(shape, 3))
    batch = torch.export.Dim("n", min=1, max=1 << 20)
    with _quiet_export():  # strict, since only then len(x) leaves the batch free
        program = torch.export.export(embedder, (pictures[:2],), dynamic_shapes=({0: batch},), strict=True)
        program.example_inputs = None  # the one record that would be a pickle
        torch.export.save(program, path)
        answers = torch.export.load(path).module()(pictures)
    expected = embedder(pictures)
    if not torch.allclose(answers, expected, rtol=1e-4, atol=1e-5):
        raise ValueError(f"the exported encoder differs from the trained one by {(answers - expected).abs().max():.1e}")


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Silences warnings of torch.export about its own internals, which also go through logging."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_mlmodel(out: Path, shape: tuple[int, ...], dim: int, run_id: str | None, model_id: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyfunc = importlib.import_module("mlflow.pyfunc")
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec
    import mlflow

    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *shape))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, dim))]),
    )
    model = Model(run_id=run_id, model_id=model_id, signature=signature)
    picture = example(shape).tolist()
    (out / "input_example.json").write_text(json.dumps(picture))
    (out / "serving_input_example.json").write_text(json.dumps({"inputs": picture}))  # what a scoring server receives
    examples = {"artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json"}
    model.saved_input_example_info = {**examples, "type": "ndarray"}
    model.add_flavor("pytorch", model_data="data", pytorch_version=str(torch.__version__), code=None)
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.pytorch",
        data="data",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"device": None},
    )
    model.model_size_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    _write_environment(
        out,
        [f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", f"torch=={torch.__version__.partition('+')[0]}"],
    )
    model.save(str(out / "MLmodel"))


def _write_environment(out: Path, requirements: list[str]) -> None:
    import platform

    python = platform.python_version()
    (out / "requirements.txt").write_text("\n".join(requirements) + "\n")
    listed = "\n".join(f"    - {name}" for name in requirements)
    (out / "conda.yaml").write_text(
        f"name: mlflow-env\nchannels:\n- conda-forge\ndependencies:\n- python={python}\n- pip\n- pip:\n{listed}\n"
    )
    build = "build_dependencies:\n- pip\n- setuptools\n- wheel\n"
    (out / "python_env.yaml").write_text(f"python: {python}\n{build}dependencies:\n- -r requirements.txt\n")
