"""Every task at a size that a test can train, and the pictures that it is tried on.

A new task adds its form to SMALL and is then held to the contract and audited.
"""

import atexit
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from textures import (
    Pictures,
    bright_or_dark_texture,
    grey_texture,
    lens_texture,
    lit_texture,
    sharp_texture,
    smooth_texture,
    tinted_texture,
)
from torch import Generator, Tensor, nn

from ssl_core import artefact
from ssl_core.nn.encoders import Encoder, EncoderSpec
from ssl_core.task import EncoderFactory, PretextTask
from ssl_core.tasks import TASKS
from ssl_core.types import Field, media


@dataclass(frozen=True)
class Form:
    """A task as the tests try it.

    Attributes:
        fields: of the task, which make it small.
        vit: what it asks of a ViT; None where any encoder does.
        audits: cue of each of its shortcuts -> pictures that carry it, and fields for them on top of the others.
    """

    fields: Mapping[str, Any]
    vit: Mapping[str, Any] | None = None
    audits: Mapping[str, tuple[Pictures, Mapping[str, Any]]] = field(default_factory=dict)


LENS = {"canvas": 76, "cells": 3, "gap": 12, "jitter": 2}
RECOLOURED = {"canvas": 32, "size": 24, "jitter": 0.8}
BAG = {"canvas": 20, "size": 16, "words": 12, "min_area": 0.5, "jitter": 0.1, "layer": "stage2"}
MIXED = {**RECOLOURED, "jitter_chance": 1.0, "cutmix": 1.0}

SMALL: dict[str, Form] = {
    "rotation": Form(
        {"canvas": 16},
        audits={"black_bars": (grey_texture, {"canvas": 32}), "interpolation": (sharp_texture, {"canvas": 32})},
    ),
    "relative_transformation": Form(
        {"canvas": 16, "size": 16, "turns": False, "corner": 0.2, "hidden": 64, "flip": False},
        audits={"flat_wedges": (grey_texture, {"canvas": 32, "size": 32})},
    ),
    "context_prediction": Form(
        {"canvas": 58, "patch": 12, "gap": 8, "jitter": 2, "hidden": 64, "pixelate": 0.1},
        audits={
            "edge_continuity": (grey_texture, {}),
            "chromatic_aberration": (lens_texture, {"canvas": 76, "patch": 16, "gap": 12}),
            "luminance": (lit_texture, {}),
        },
    ),
    "image_position": Form(
        {"canvas": 40, "cells": 2, "patch": 16, "seen": 0.5, "colour": "project", "flip": 0.0},
        vit={"positions": "none", "patch": 16},
        audits={"chromatic_aberration": (lens_texture, LENS), "luminance": (lit_texture, LENS)},
    ),
    "jigsaw": Form(
        {"canvas": 56, "tile": 12, "gap": 6, "jitter": 3, "permutations": 6, "embed": 32, "hidden": 64},
        audits={"edge_continuity": (grey_texture, {"per_image": 4}), "luminance": (lit_texture, {"per_image": 4})},
    ),
    "colorization": Form({"canvas": 16, "stride": 4, "hidden": 32}),
    "split_brain": Form({"canvas": 16, "stride": 4, "hidden": 32}),
    "variational_autoencoder": Form({"canvas": 16, "latent": 8, "warmup": 20}),
    "denoising_autoencoder": Form(
        {"canvas": 16, "block": 4, "flip": 0.0}, audits={"local_smoothing": (grey_texture, {"canvas": 96, "block": 32})}
    ),
    "context_encoder": Form({"canvas": 16, "flip": 0.0}, audits={"middle_rim": (smooth_texture, {"canvas": 32})}),
    "masked_autoencoder": Form(
        {"canvas": 16, "size": 16, "patch": 4, "min_area": 0.8, "width": 32, "depth": 1, "heads": 2},
        vit={"positions": "sincos", "patch": 4},
        audits={"luminance": (bright_or_dark_texture, {})},
    ),
    "bag_of_words": Form(BAG, audits={"colour_histogram": (tinted_texture, MIXED)}),
    "spatial_bag_of_words": Form(BAG, audits={"colour_histogram": (tinted_texture, MIXED)}),
    "online_bag_of_words": Form(
        {
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
        audits={
            "colour_histogram": (tinted_texture, {**RECOLOURED, "crop": 24, "max_area": 0.9, "jitter_chance": 1.0})
        },
    ),
    "simclr": Form(
        {"canvas": 20, "size": 16, "min_area": 0.3, "jitter": 0.25, "temperature": 0.5, "hidden": 32, "out": 16},
        audits={"colour_histogram": (tinted_texture, {**RECOLOURED, "jitter": 1.0})},
    ),
    "moco": Form(
        {"canvas": 20, "size": 16, "min_area": 0.3, "jitter": 0, "grey": 0, "hidden": 32, "queue": 48, "splits": 2},
        audits={
            "colour_histogram": (tinted_texture, {**RECOLOURED, "hue": 0.2, "grey": 0.2, "queue": 192}),
            "batch_statistics": (tinted_texture, {"splits": 8, "jitter": 0.0, "grey": 0.0, "queue": 192}),
        },
    ),
    "cpc_image": Form(
        {"canvas": 20, "cells": 4, "patch": 8, "stride": 4, "subcrop": 6, "steps": 3, "blocks": 1, "width": 8},
        audits={"shared_pixels": (grey_texture, {"canvas": 60, "patch": 24, "stride": 12, "subcrop": 22})},
    ),
    "amdim": Form(
        {"canvas": 20, "size": 16, "jitter": 0.1, "grey": 0.0, "coarse": 2, "fine": 3, "out": 32},
        audits={"colour_histogram": (tinted_texture, {**RECOLOURED, "hue": 0.2, "grey": 0.2})},
    ),
    "exemplar_cnn": Form(
        {"canvas": 20, "size": 16, "classes": 32, "degrees": 9, "zoom": 1.1, "power": 1.5, "dropout": 0},
        audits={"colour_histogram": (tinted_texture, {"classes": 128, "power": 4.0, "hue": 0.5})},
    ),
    "exemplar_triplet": Form(
        {"canvas": 20, "size": 16, "views": 3, "min_area": 0.3, "hue": 0.05, "out": 16},
        audits={"colour_histogram": (tinted_texture, {**RECOLOURED, "views": 2, "brightness": 0.8, "hue": 0.2})},
    ),
    "supervised": Form({"canvas": 20, "size": 16, "classes": 4, "min_area": 0.6, "jitter": 0.1, "grey": 0.0}),
}
"""Every task's form."""

VITS = {name: form.vit for name, form in SMALL.items() if form.vit is not None}
"""Tasks that take patches apart, and what they ask of the ViT that they need."""

STORE = tempfile.TemporaryDirectory(prefix="pretext-test-")
"""Where the artefacts of the small tasks lie; gone at the end of the tests."""
atexit.register(STORE.cleanup)


def small(name: str, **changed: Any) -> PretextTask:
    """The task at test size, with its artefacts."""
    return fitted(TASKS[name](**{**SMALL[name].fields, **changed}))


@cache
def fitted(task: PretextTask) -> PretextTask:
    """The task with the artefacts that it lacks, made from easy pictures."""
    artefact.search_in(Path(STORE.name))
    empty = [field for field, digest in artefact.digests(task).items() if not digest]
    made = {field: artefact.store(Path(STORE.name), artefact_of(task, field)) for field in empty}
    return replace(task, **made)  # type: ignore[type-var]


def artefact_of(task: PretextTask, field: str) -> Mapping[str, Tensor]:
    """What one of the task's fits makes of easy pictures and, where it reads a saved model, of an untrained one."""
    folder = Path(STORE.name) / "untrained"
    folder.mkdir(exist_ok=True)
    spec = EncoderSpec("resnet18", width=0.125, stem="cifar", zero_init=False)
    (folder / "config.json").write_text(json.dumps({"encoder": asdict(spec)}))
    models = {name: uri or str(folder) for name, uri in artefact.saved_models(task).items()}
    batches = (scenes(task, 32, seed) for seed in itertools.count())
    return artefact.fit_functions(task)[field](replace(task, **models), batches, generator())  # type: ignore[type-var]


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
    (form,) = (form for name, form in SMALL.items() if type(task) is TASKS[name])
    return encoder if form.vit is None else EncoderSpec("vit_tiny", width=0.25, **form.vit).build


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def as_raw(task: PretextTask, pictures: Tensor) -> dict[str, Tensor]:
    """Float pictures [n, 3, s, s] in [0, 1] as the reader delivers them: uint8, channels_last; numbers and labels."""
    pixels = pictures.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous(memory_format=torch.channels_last)
    numbers = torch.arange(len(pictures))
    raw: dict[str, Tensor] = {}
    for name, wanted in task.sample.items():
        made = {"index": numbers, "label": numbers.remainder(wanted.limit or len(numbers))}
        raw[name] = made.get(wanted.modality, pixels)
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
