"""Real images that come inside a dependency, written as ordinary files: the corpora of the quickstart and of the tests.

scikit-learn carries the test part of the UCI optical digits (Alpaydin & Kaynak 1998): 1,797 handwritten digits, 8x8 px
and grey.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from components.samples.png import write_png


def write_digits(root: Path, seed: int = 0) -> dict[str, int]:
    """Write the digits as PNG files: `unlabelled/` to pretrain on; `train/<digit>/`, `test/<digit>/` to evaluate with.

    `unlabelled` holds the 1,347 images of `train` under names without a label; the 450 of `test` are never trained
    on. Files that are already there are kept, so that ingesting again finds nothing new.

    Args:
        root: folder to write into; made if missing.
        seed: of the split.

    Returns:
        Folder name -> number of images.
    """
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(np.arange(len(images)), test_size=450, random_state=seed)
    for part, indices in zip(("train", "test"), parts, strict=True):
        for i in indices:
            write_png(root / part / str(digits.target[i]) / f"{i:04d}.png", images[i])
            if part == "train":
                write_png(root / "unlabelled" / f"{i:04d}.png", images[i])
    return {"unlabelled": len(parts[0]), "train": len(parts[0]), "test": len(parts[1])}
