"""From mapped payloads to a batch of image crops."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import simplejpeg
from torch import Tensor

from ssl_core.data.layout import CODECS
from ssl_core.data.mapping import Bytes
from ssl_core.data.shards import Places, Shards
from ssl_core.data.shuffle import Ints, draw
from ssl_core.errors import InputError, PretextError
from ssl_core.types import Field

Crop = Callable[[Bytes, int, int, int, int, Bytes], None]
"""(payload, height, width, top, left, block): copies rows `top:` and columns `left:` into the [h, w * 3] block."""

GATHER_BYTES = 8 << 10
"""Crops up to this size are gathered in one call; above it one copy per crop is as fast, without a second buffer."""

_scratch = threading.local()


class ReadError(PretextError):
    """A sample that cannot be read; the message names its shard and row."""


def memory(field: Field) -> tuple[int, ...]:
    """The shape of one sample in memory: rows, columns, colours. Raises ValueError if the field is no RGB image."""
    if len(field.shape) != 3 or field.shape[0] != 3 or min(field.shape) < 1:
        raise ValueError(
            f"The corpus holds RGB images, so a field of shape {field.shape} cannot be read; declare (3, h, w)."
        )
    return (*field.shape[1:], field.shape[0])


def view(batch: Tensor) -> Tensor:
    """[n, h, w, 3] memory as [n, 3, h, w], which makes it channels_last."""
    return batch.permute(0, 3, 1, 2)


def check_samples(shards: Shards, ids: Ints, field: Field) -> None:
    """Raises InputError if a crop of the field's size cannot be cut from one of the samples."""
    places = shards.places(ids)
    _, h, w = field.shape
    small = np.flatnonzero((places.height < h) | (places.width < w))
    if len(small):
        j = int(small[0])
        path, row = shards.locate(int(ids[j]))
        raise InputError(
            f"The task needs crops of {h}x{w} pixels, but row {row} of shard {path} is {places.height[j]}x"
            f"{places.width[j]}; ingest with a larger size, or lower the task's canvas."
        )


def check_training(shards: Shards, field: Field) -> None:
    """No check: reading the sizes of a large corpus takes long, so each image is checked when it is read."""


def fetch(shards: Shards, ids: Ints, field: Field, key: str | None, out: Bytes) -> None:
    """Fills `out` [n, h, w, 3] with a crop of each sample: its place is drawn from `key` and id, or central if None."""
    check_samples(shards, ids, field)
    places = shards.places(ids)
    shards.will_need(places)
    tops, lefts = _corners(places, ids, field, key)
    _, h, w = field.shape
    blocks = out.reshape(len(ids), h, w * 3)
    if _gatherable(places, blocks):
        _gather(shards, places, places.offset + (tops * places.width + lefts) * 3, blocks)
    else:
        _cut(shards, ids, places, tops, lefts, blocks)


def _gatherable(places: Places, blocks: Bytes) -> bool:
    """Whether one gather is cheaper than n copies: small crops of raw images of one width, many from each shard."""
    small = blocks[0].size <= GATHER_BYTES and len(blocks) >= 4 * len(np.unique(places.shard))
    return bool(small and not places.codec.any() and (places.width == places.width[0]).all())


def _gather(shards: Shards, places: Places, starts: Ints, blocks: Bytes) -> None:
    _, h, bytes_w = blocks.shape
    stride = 3 * int(places.width[0])
    for shard in np.unique(places.shard):
        mine, mapped = places.shard == shard, shards.mapped(int(shard))
        # every block of the file: block i starts at byte i, so neighbours overlap
        shape = (len(mapped) - (h - 1) * stride - bytes_w + 1, h, bytes_w)
        windows: Bytes = np.ndarray(shape, np.uint8, mapped, strides=(1, stride, 1))
        blocks[mine] = windows[starts[mine]]


def _cut(shards: Shards, ids: Ints, places: Places, tops: Ints, lefts: Ints, blocks: Bytes) -> None:
    columns = (places.shard, places.offset, places.length, places.height, places.width, places.codec, tops, lefts)
    j = 0
    try:
        for j, place in enumerate(zip(*(column.tolist() for column in columns))):
            shard, start, length, height, width, codec, top, left = place
            payload = shards.mapped(shard)[start : start + length]
            _CROPS[codec](payload, height, width, top, left, blocks[j])
    except Exception as error:
        path, row = shards.locate(int(ids[j]))
        raise ReadError(f"Cannot read sample {ids[j]} (row {row} of shard {path}): {error}") from error


def _corners(places: Places, ids: Ints, field: Field, key: str | None) -> tuple[Ints, Ints]:
    _, h, w = field.shape
    down, right = places.height.astype(np.int64) - h, places.width.astype(np.int64) - w
    if key is None:
        return down // 2, right // 2
    return draw(ids, f"{key}/top", down + 1), draw(ids, f"{key}/left", right + 1)


def _crop_raw(payload: Bytes, height: int, width: int, top: int, left: int, block: Bytes) -> None:
    h, bytes_w = block.shape
    stride = 3 * width
    block[:] = payload[top * stride : (top + h) * stride].reshape(h, stride)[:, 3 * left : 3 * left + bytes_w]


def _crop_jpeg(payload: Bytes, height: int, width: int, top: int, left: int, block: Bytes) -> None:
    size = height * width * 3
    if len(getattr(_scratch, "pixels", b"")) < size:
        _scratch.pixels = np.empty(size, dtype=np.uint8)
    pixels = simplejpeg.decode_jpeg(payload, "RGB", buffer=_scratch.pixels)
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"the JPEG is {pixels.shape[0]}x{pixels.shape[1]}, its row says {height}x{width}")
    _crop_raw(pixels.reshape(-1), height, width, top, left, block)


_CROPS: tuple[Crop, ...] = tuple({"raw": _crop_raw, "jpeg": _crop_jpeg}[name] for name in CODECS)
