"""Small shards made of random pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg

from ssl_core.data.shards import SCHEMA, Shards, write_shard


def pixels(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows(sizes: Sequence[tuple[int, int]], codec: str = "raw", first: int = 0) -> pa.Table:
    """One row per (height, width), numbered from `first`, which also seeds its pixels."""
    n = range(first, first + len(sizes))
    images = [pixels(*size, i) for i, size in zip(n, sizes)]
    encode = {"raw": np.ndarray.tobytes, "jpeg": lambda image: simplejpeg.encode_jpeg(image, quality=95)}[codec]
    return pa.table(
        {
            "hash": [f"{i:064x}" for i in n],
            "uri": [f"file-{i}.png" for i in n],
            "source_size": [1_000] * len(n),
            "source_mtime": [0] * len(n),
            "payload": [encode(image) for image in images],
            "codec": [codec] * len(n),
            "height": [height for height, _ in sizes],
            "width": [width for _, width in sizes],
            "label": [None if i % 3 == 0 else f"class-{i % 3}" for i in n],
            "batch": [0] * len(n),
        },
        schema=SCHEMA,
    )


def corpus(folder: Path, tables: Sequence[pa.Table]) -> Shards:
    """The tables as shards of one corpus, in this order."""
    paths = [folder / f"shard-{number:03d}.parquet" for number in range(len(tables))]
    for path, table in zip(paths, tables):
        write_shard(path, table)
    return Shards.open(paths)
