"""Crops of two photographs that come inside scikit-learn, a temple and a flower: real textures, light and colours.

write_photos(root) -> unlabelled/*.png, train/<photo>/*.png, test/<photo>/*.png, crops.parquet
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_sample_image

from components.samples.png import write_png
from ssl_core.atomic import replacing

PHOTOS = ("china", "flower")
COUNTS: Mapping[str, int] = {"unlabelled": 3000, "train": 1000, "test": 500}
TRAINED_ON = 0.7
"""Left part of each photo, as a share of its width, for all but the test; the test has the rest to itself."""


def write_photos(root: Path, counts: Mapping[str, int] = COUNTS, side: int = 64, seed: int = 0) -> dict[str, int]:
    """Write square crops as PNG files: `unlabelled/` to pretrain on; `train/<photo>/`, `test/<photo>/` to test with.

    No pixel of a test crop is in another part. `crops.parquet` has a row for each: `file` (from the root on), `part`,
    `photo`, and the crop's `left`, `top` and `size` in px of the photo. Files that are already there are kept.

    Args:
        root: folder to write into; made if missing.
        counts: part -> number of crops; "unlabelled", "train", "test".
        side: of a crop in px; each px covers half a px to three px of the photo.
        seed: decides the crops.

    Returns:
        Part -> number of crops.
    """
    photos = {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in PHOTOS}
    rows = []
    for number, part in enumerate(np.repeat(list(counts), list(counts.values()))):
        rng = np.random.default_rng([seed, number])
        name = str(rng.choice(PHOTOS))
        width, height = photos[name].size
        middle = round(TRAINED_ON * width)
        low, high = (middle, width) if part == "test" else (0, middle)
        size = round(min(side * 2 ** rng.uniform(-1, 1.6), high - low, height))
        left, top = int(rng.integers(low, high - size + 1)), int(rng.integers(0, height - size + 1))
        file = f"{number:06d}.png" if part == "unlabelled" else f"{name}/{number:06d}.png"
        rows.append({"file": f"{part}/{file}", "part": part, "photo": name, "left": left, "top": top, "size": size})
        if not (root / part / file).exists():
            crop = photos[name].resize((side, side), Image.Resampling.BICUBIC, (left, top, left + size, top + size))
            write_png(root / part / file, np.asarray(crop))
    with replacing(root / "crops.parquet", durable=False) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return dict(counts)
