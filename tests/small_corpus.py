"""A real corpus (Delta table and shard) of striped images, made in milliseconds: no ingest, no Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from components.corpus import delta
from components.corpus.corpus import Corpus
from components.corpus.delta import DataFile
from ssl_core.data.decode import SampleFormat
from ssl_core.data.shards import SCHEMA, write_shard


def make_corpus(folder: Path, count: int = 64, size: int = 16) -> Corpus:
    """`count` noisy images of `size` x `size` whose upper half is the brighter one."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 120, (count, size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2] += 100
    columns = {
        "hash": [f"{i:064x}" for i in range(count)],
        "uri": [f"/images/{i}.png" for i in range(count)],
        "source_size": [1] * count,
        "source_mtime": [0] * count,
        "payload": [image.tobytes() for image in pixels],
        "codec": ["raw"] * count,
        "height": [size] * count,
        "width": [size] * count,
        "label": [None] * count,
        "batch": [1] * count,
    }
    Corpus.create(str(folder), SampleFormat(size=size))
    shard = folder / "ingest-0" / "part-0123456789abcdef.parquet"
    shard.parent.mkdir()
    write_shard(shard, pa.table(columns, schema=SCHEMA))
    table = delta.open_table(str(folder))
    assert table is not None
    delta.append(table, [DataFile(f"ingest-0/{shard.name}", count, shard.stat().st_size)], {})
    return Corpus.open(str(folder))
