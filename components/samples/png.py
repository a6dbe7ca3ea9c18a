"""Pictures of sample corpora, written as PNG files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image


def write_png(path: Path, picture: NDArray[Any]) -> None:
    """Bytes [h, w] or [h, w, 3] as a file, all at once; a file that is there is kept."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    Image.fromarray(picture).save(scratch, format="PNG")
    os.replace(scratch, path)
