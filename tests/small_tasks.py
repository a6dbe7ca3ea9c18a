"""Every task at a size that a test can train, and the pictures that it is tried on.

A new task adds one line to SMALL and is then held to the contract and audited.
"""

import atexit
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ssl_core import artefact
from ssl_core.nn.encoders import Encoder, EncoderSpec
from ssl_core.task import EncoderFactory, PretextTask
from ssl_core.tasks import TASKS
from ssl_core.types import Field, media

SMALL: Mapping[str, Mapping[str, Any]] = {
    "rotation": {"canvas": 16},
    "relative_transformation": {"canvas": 16, "size": 16, "turns": False, "corner": 0.2, "hidden": 64, "flip": False},
    "context_prediction": {"canvas": 58, "patch": 12, "gap": 8, "jitter": 2, "hidden": 64, "pixelate": 0.1},
    "image_position": {"canvas": 40, "cells": 2, "patch": 16, "seen": 0.5, "colour": "project", "flip": 0.0},
    "jigsaw": {"canvas": 56, "tile": 12, "gap": 6, "jitter": 3, "permutations": 6, "embed": 32, "hidden": 64},
    "colorization": {"canvas": 16, "stride": 4, "hidden": 32},
    "split_brain": {"canvas": 16, "stride": 4, "hidden": 32},
    "variational_autoencoder": {"canvas": 16, "latent": 8, "warmup": 20},
    "denoising_autoencoder": {"canvas": 16, "block": 4, "flip": 0.0},
    "context_encoder": {"canvas": 16, "flip": 0.0},
    "masked_autoencoder": {"canvas": 16, "size": 16, "patch": 4, "min_area": 0.8, "width": 32, "depth": 1, "heads": 2},
    "bag_of_words": {"canvas": 20, "size": 16, "words": 12, "min_area": 0.5, "jitter": 0.1, "layer": "stage2"},
    "spatial_bag_of_words": {"canvas": 20, "size": 16, "words": 12, "min_area": 0.5, "jitter": 0.1, "layer": "stage2"},
    "online_bag_of_words": {
        "canvas": 20,
        "size": 16,
        "crop": 12,
        "patches": 2,
        "patch": 8,
        "frame": 16,
        "shift": 2,
        "min_area": 0.4,
        "jitter": 0.1,
        "layer": "stage3",
        "lower": "stage2",
        "words": 48,
        "momentum": 0.9,
    },
    "simclr": {"canvas": 20, "size": 16, "min_area": 0.3, "jitter": 0.25, "temperature": 0.5, "hidden": 32, "out": 16},
    "moco": {"canvas": 20, "size": 16, "min_area": 0.3, "jitter": 0, "grey": 0, "hidden": 32, "queue": 48, "splits": 2},
    "cpc_image": {"canvas": 20, "cells": 4, "patch": 8, "stride": 4, "subcrop": 6, "steps": 3, "blocks": 1, "width": 8},
    "amdim": {"canvas": 20, "size": 16, "jitter": 0.1, "grey": 0.0, "coarse": 2, "fine": 3, "out": 32},
    "exemplar_cnn": {"canvas": 20, "size": 16, "classes": 32, "degrees": 9, "zoom": 1.1, "power": 1.5, "dropout": 0},
    "exemplar_triplet": {"canvas": 20, "size": 16, "views": 3, "min_area": 0.3, "hue": 0.05, "out": 16},
    "supervised": {"canvas": 20, "size": 16, "classes": 4, "min_area": 0.6, "jitter": 0.1, "grey": 0.0},
}

VITS: Mapping[str, Mapping[str, Any]] = {
    "masked_autoencoder": {"positions": "sincos", "patch": 4},
    "image_position": {"positions": "none", "patch": 16},
}
"""Tasks that take patches apart, and what they ask of the ViT that they need."""

STORE = tempfile.TemporaryDirectory(prefix="pretext-test-")
"""Where the artefacts of the small tasks lie; gone at the end of the tests."""
atexit.register(STORE.cleanup)


def small(name: str, **changed: Any) -> PretextTask:
    """The task at test size, with its artefacts."""
    return fitted(TASKS[name](**{**SMALL[name], **changed}))


@cache
def fitted(task: PretextTask) -> PretextTask:
    """The task with the artefacts that it lacks, made from easy pictures."""
    artefact.look_in(Path(STORE.name))
    empty = [field for field, digest in artefact.digests(task).items() if not digest]
    made = {field: artefact.keep(Path(STORE.name), artefact_of(task, field)) for field in empty}
    return replace(task, **made)  # type: ignore[type-var]


def artefact_of(task: PretextTask, field: str) -> Mapping[str, Tensor]:
    """What one of the task's fits makes of easy pictures and, where it reads a saved model, of an untrained one."""
    folder = Path(STORE.name) / "untrained"
    folder.mkdir(exist_ok=True)
    spec = EncoderSpec("resnet18", width=0.125, stem="cifar", zero_init=False)
    (folder / "config.json").write_text(json.dumps({"encoder": asdict(spec)}))
    models = {name: uri or str(folder) for name, uri in artefact.saved_models(task).items()}
    batches = (scenes(task, 32, seed) for seed in itertools.count())
    return artefact.fits(task)[field](replace(task, **models), batches, generator())  # type: ignore[type-var]


class ThreeLayers(Encoder):
    """The smallest network that keeps an encoder's promises; a ResNet-18 has twenty layers to wait for."""

    def __init__(self, channels: int, width: float) -> None:
        super().__init__()
        self.dims = {f"stage{i + 1}": int(wide * width) for i, wide in enumerate((16, 32, 64))}
        self.dim = self.dims["stage3"]
        before = channels
        for name, after in self.dims.items():
            convolution = nn.Conv2d(before, after, 3, 1 if name == "stage1" else 2, 1, bias=False)
            self.add_module(name, nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
            before = after

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name in self.dims:
            maps[name] = x = self.get_submodule(name)(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)["stage3"].mean((2, 3))


def encoder(field: Field, width: float = 1.0) -> Encoder:
    """The encoder of the tests."""
    return ThreeLayers(field.shape[0], width)


def encoder_for(task: PretextTask) -> EncoderFactory:
    """The encoder of the tests, or a narrow ViT for a task that needs one."""
    for name, wanted in VITS.items():
        if type(task) is TASKS[name]:
            return EncoderSpec("vit_tiny", width=0.25, **wanted).build
    return encoder


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def as_raw(task: PretextTask, pictures: Tensor) -> dict[str, Tensor]:
    """Float pictures [n, 3, s, s] in [0, 1] as the reader delivers them: uint8, channels_last; numbers and labels."""
    pixels = pictures.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous(memory_format=torch.channels_last)
    numbers = torch.arange(len(pictures))
    raw: dict[str, Tensor] = {}
    for name, field in task.sample.items():
        wanted = {"index": numbers, "label": numbers.remainder(field.limit or len(numbers))}
        raw[name] = wanted.get(field.modality, pixels)
    return raw


def side(task: PretextTask) -> int:
    (field,) = media(task.sample).values()
    return field.shape[-1]


def numbered(task: PretextTask) -> bool:
    """Whether it asks for a sample's number or label, and so learns only from samples that come again."""
    return task.sample != media(task.sample)


def noise(task: PretextTask, n: int, seed: int = 0) -> dict[str, Tensor]:
    """White noise: nothing can be known from it."""
    return as_raw(task, torch.rand(n, 3, side(task), side(task), generator=generator(seed)))


def scenes(task: PretextTask, n: int, seed: int = 0) -> dict[str, Tensor]:
    """Easy pictures: rings around the middle (where am I?) under a bright sky (which way is up?), each crossed by
    stripes of its own direction, width and colours (which picture is this?). Always the same where it is numbered."""
    rng, size = generator(0 if numbered(task) else seed), side(task)
    axis = (torch.arange(size) + 0.5) / size - 0.5
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)
    phase, direction, width = (torch.rand(3, n, 1, 1, generator=rng) * 2 * math.pi).unbind()
    rings = torch.sin((x.square() + y.square()).sqrt() * 38 + phase)
    stripes = torch.sin((x * direction.cos() + y * direction.sin()) * (6 + 6 * width))
    sky = 0.6 - 0.7 * y + 0.3 * x
    colours = torch.rand(n, 3, 1, 1, generator=rng)
    return as_raw(task, colours * (sky + 0.3 * rings + 0.3 * stripes).unsqueeze(1))
