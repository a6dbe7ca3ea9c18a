"""A pretext task and a corpus small enough for a hundred steps a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Generator, Tensor, nn

from ssl_core.data.shards import SCHEMA, Shards, write_shard
from ssl_core.nn.encoders import Encoder, EncoderSpec
from ssl_core.nn.heads import classify
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.train.run import Optim, Run, Runtime, Train
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform


class TinyModel(TaskModel):
    def __init__(self, encoder: Encoder, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.dropout(self.encoder(image)))
        return out

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        return self.encoder.layers(raw["image"].float() / 255 - 0.5)

    def after_step(self) -> None:
        assert isinstance(self.steps, Tensor)
        self.steps += 1


@dataclass(frozen=True)
class Upside:
    """Was the image turned upside down? With `collapse`, the loss instead pulls all representations together.

    Attributes:
        canvas: side of the square.
        dropout: before the head.
        collapse: learn to say nothing.
        nan: all inputs are NaN.
    """

    paper: ClassVar[str] = "none"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = ()
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {}
    canvas: int = 8
    dropout: float = 0.2
    collapse: bool = False
    nan: bool = False

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        images = raw["image"].float() / 255 - 0.5
        targets = torch.randint(2, (len(images),), generator=rng, device=images.device)
        images = torch.where(targets[:, None, None, None] == 1, images.flip(2), images)
        return {"image": images * float("nan") if self.nan else images}, targets

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return TinyModel(encoder(self.sample["image"]), self.dropout)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = classify(outputs, targets)
        return outputs.pow(2).sum(1) if self.collapse else loss, metrics

    def chance(self, batch: int) -> dict[str, float]:
        return {"accuracy": 0.5}

    def show(self, inputs: dict[str, Tensor], outputs: Any, targets: Any) -> Panel:
        return Panel({}, [])


ENCODER = EncoderSpec(name="resnet18", width=0.125, stem="cifar")


def tiny_run(task: Upside | None = None, optim: Mapping[str, Any] | None = None, **settings: Any) -> Run:
    """`settings` are fields of `Train` and `Runtime`."""
    watched = {field.name for field in fields(Runtime)} & settings.keys()
    runtime = {
        "checkpoint_every": 5,
        "log_every": 2,
        "check_every": 0,
        **{name: settings.pop(name) for name in watched},
    }
    train = Train(**{"steps": 12, "batch_size": 16, **settings})
    return Run(
        task or Upside(), ENCODER, Optim(**{"lr": 0.1, "scale_lr": False, **(optim or {})}), train, Runtime(**runtime)
    )


def tiny_shards(folder: Path, count: int = 50, size: int = 10) -> Shards:
    """Images whose upper half is brighter than the lower."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 120, (count, size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2] += 100
    columns = {
        "hash": [f"{i:064x}" for i in range(count)],
        "uri": [f"file:///{i}.png" for i in range(count)],
        "source_size": [1] * count,
        "source_mtime": [0] * count,
        "payload": [image.tobytes() for image in pixels],
        "codec": ["raw"] * count,
        "height": [size] * count,
        "width": [size] * count,
        "label": [None] * count,
        "batch": [0] * count,
    }
    path = folder / "shard.parquet"
    write_shard(path, pa.table(columns, schema=SCHEMA))
    return Shards.open([path])


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(("model/", "ema/", "optim/"))}
