"""From a corpus to what the probes work on: features of every layer, labels, and the few images that figures show.

Split (shards, digest) -> sample ids (labelled, up to a limit) -> batches, cropped as the reader does it -> Features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.data.reader import FETCHERS
from ssl_core.data.shards import Shards
from ssl_core.ops.images import random_resized_crop, to_float
from ssl_core.task import TaskModel
from ssl_core.types import CorpusVersion, Field, Raw

Ids = npt.NDArray[np.int64]
_PIXEL_SIDE = 32


@dataclass(frozen=True)
class Split:
    """Samples to evaluate with.

    Attributes:
        shards: of a corpus version.
        corpus: that version; its digest goes into the evaluation set's hash.
    """

    shards: Shards
    corpus: CorpusVersion


@dataclass(frozen=True)
class Features:
    """The features that one network computes: layer name -> [n, d] float32 on the device, shallow to deep."""

    layers: Mapping[str, Tensor]
    """Of the samples as they are."""
    views: Mapping[str, Tensor]
    """Of a mildly changed view of the first few of them; empty where the modality has no such view."""


def labelled(split: Split, most: int, seed: int) -> tuple[Ids, list[str]]:
    """Ids and labels of the split's labelled samples, a random `most` of them if there are more; in order of id."""
    labels = split.shards.labels
    ids = np.flatnonzero([label is not None for label in labels]).astype(np.int64)
    ids = random_subset(ids, most, seed)
    return ids, [str(label) for label in labels[ids]]


def random_subset(ids: Ids, most: int, seed: int) -> Ids:
    """A random `most` of the ids, in order; all of them if there are no more."""
    if len(ids) <= most:
        return ids
    return np.sort(np.random.default_rng(seed).choice(ids, most, replace=False))


def uris(split: Split, ids: Ids) -> list[str]:
    """The URIs that the samples came from."""
    values: list[str] = split.shards.column("uri").take(ids).to_pylist()
    return values


def batches(split: Split, sample: Mapping[str, Field], ids: Ids, size: int, device: torch.device) -> Iterator[Raw]:
    """The samples `ids`, centre-cropped as the reader does in evaluation; the last batch may be smaller."""
    for start in range(0, len(ids), size):
        chosen = ids[start : start + size]
        raw = {}
        for name, field in sample.items():
            fetcher = FETCHERS[field.modality]
            out = np.empty((len(chosen), *fetcher.memory(field)), dtype=np.uint8)
            fetcher.fetch(split.shards, chosen, field, None, out)
            raw[name] = fetcher.view(torch.from_numpy(out)).to(device)
        yield raw


@torch.no_grad()
def represent(
    models: Mapping[str, Callable[[Raw], Mapping[str, Tensor]]],
    raws: Iterator[Raw],
    sample: Mapping[str, Field],
    views: int,
) -> dict[str, Features]:
    """Features of each model in one pass over the data; of the first `views` samples also those of a second view."""
    layers: dict[str, dict[str, list[Tensor]]] = {name: {} for name in models}
    changed: dict[str, dict[str, list[Tensor]]] = {name: {} for name in models}
    seen = 0
    for raw in raws:
        second = mild_view(raw, sample, seed=seen) if seen < views else None
        for name, model in models.items():
            _collect(layers[name], model(raw))
            if second is not None:
                _collect(changed[name], model(second))
        seen += len(next(iter(raw.values())))
    return {name: Features(_joined(layers[name]), _joined(changed[name], views)) for name in models}


def encoder_layers(model: TaskModel) -> Callable[[Raw], Mapping[str, Tensor]]:
    """The function that computes the model's layers, as `represent` takes it; puts the model into eval mode."""
    model.eval()
    return model.represent


def pixels(raw: Raw) -> dict[str, Tensor]:
    """The images themselves as features [n, 3 * h * w], shrunk to at most 32 px a side."""
    images = next(iter(raw.values()))
    x = images.float() / 255
    height, width = (min(side, _PIXEL_SIDE) for side in x.shape[-2:])
    return {"": F.adaptive_avg_pool2d(x, (height, width)).flatten(1)}


def without_copies(train: Features, test: Features) -> tuple[Features, Features]:
    """Drops the second and third channel of `pixels` if they repeat the first on the training part (grey images)."""
    first, second, third = train.layers[""].chunk(3, 1)
    if not (torch.equal(first, second) and torch.equal(first, third)):
        return train, test
    return _first_channel(train), _first_channel(test)


def _first_channel(part: Features) -> Features:
    layers, views = ({name: x.chunk(3, 1)[0] for name, x in each.items()} for each in (part.layers, part.views))
    return Features(layers, views)


def mild_view(raw: Raw, sample: Mapping[str, Field], seed: int) -> Raw | None:
    """A second view for `alignment`: a crop of at least 80 % of each image, up to 15 % brighter or darker.

    The same for all tasks and never a task's own views: otherwise weaker augmentations would count as better alignment.
    None if a field is not an image.
    """
    if any(field.modality != "image" for field in sample.values()):
        return None
    return {name: _changed(images, seed) for name, images in raw.items()}


def _changed(images: Tensor, seed: int) -> Tensor:
    rng = torch.Generator(images.device).manual_seed(seed)
    x = random_resized_crop(to_float(images), images.shape[-1], rng, min_area=0.8, max_ratio=1.1, flip=0.0)
    light = 1 + 0.3 * (torch.rand(len(x), 1, 1, 1, generator=rng, device=x.device) - 0.5)
    return (255 * x * light).round().clamp(0, 255).to(torch.uint8)


def read_images(split: Split, sample: Mapping[str, Field], ids: Sequence[int]) -> npt.NDArray[np.uint8]:
    """[n, h, w, 3] pictures of single samples, for figures."""
    field = next(field for field in sample.values() if field.modality == "image")
    out = np.empty((len(ids), *FETCHERS["image"].memory(field)), dtype=np.uint8)
    FETCHERS["image"].fetch(split.shards, np.asarray(ids, dtype=np.int64), field, None, out)
    return out


def _collect(into: dict[str, list[Tensor]], found: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        into.setdefault(name, []).append(value.float())


def _joined(parts: Mapping[str, list[Tensor]], most: int | None = None) -> dict[str, Tensor]:
    return {name: torch.cat(values)[:most] for name, values in parts.items()}
