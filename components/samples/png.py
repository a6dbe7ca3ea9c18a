"""Pictures of sample corpora, written as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from ssl_core.atomic import replacing


def write_png(path: Path, picture: NDArray[Any]) -> None:
    """Write bytes [h, w] or [h, w, 3] as a file, whole or not at all; an existing file is kept."""
    if path.exists():
        return
    with replacing(path, durable=False) as temporary:  # it is quickly drawn again
        Image.fromarray(picture).save(temporary, format="PNG")
