"""Atomic folders of safetensors and JSON, never pickle.

A folder is written as a whole (`ssl_core.atomic`), its marker COMPLETE last. The marker lists every file with its size
and SHA-256, which shows whether a folder was partly deleted, partly uploaded or damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from ssl_core.atomic import replace_bytes, replacing
from ssl_core.errors import PretextError

MARKER = "COMPLETE"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Files of a saved model (`ssl_core.train.checkpoint.save_model`)."""


class DamagedError(PretextError):
    """A checkpoint or model folder that cannot be used; the message says which and why."""


def write_folder(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes safetensors and JSON files (file name -> content) to `folder`, marker last; see `atomic.replacing`."""
    with replacing(folder) as part:
        part.mkdir()
        for name, content in tensors.items():
            _save(content, part / name)
        for name, document in documents.items():
            (part / name).write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False))
        files = {path.name: _listed(path) for path in sorted(part.iterdir())}
        (part / MARKER).write_text(json.dumps({"files": files}, indent=1, sort_keys=True))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a single small safetensors file; see `atomic.replace_bytes`."""
    replace_bytes(path, save(_storable(tensors)))


def verify(folder: Path) -> None:
    """Reads every file and compares it with the marker.

    Raises:
        DamagedError: the folder is not complete, or a file has changed since it was written.
    """
    if not is_complete(folder):
        raise DamagedError(
            f"{folder} is not complete: its {MARKER} marker or a file that it lists is missing; use an older one."
        )
    listing = json.loads((folder / MARKER).read_text())["files"]
    for name, entry in listing.items():
        if _sha256(folder / name) != entry["sha256"]:
            raise DamagedError(f"{folder / name} has changed since it was written; use an older checkpoint.")


def is_complete(folder: Path) -> bool:
    """Whether the marker exists and every file has the size that it lists; reads no tensors."""
    try:
        listing = json.loads((folder / MARKER).read_text())["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in listing.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def remove(folder: Path) -> None:
    """Deletes a checkpoint, marker first, so that no kill leaves a folder that looks complete."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        DamagedError: the file is missing or is no safetensors file.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors: {error}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedError: the file is missing or is no JSON object.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path} holds no JSON object.")
    return document


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """safetensors hides an OSError in an error of its own; this raises the OSError."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(_storable(tensors), path)
        path.chmod(mode)  # safetensors gives every file 0600
    except SafetensorError as error:
        refused = re.search(r"os error (\d+)", str(error))
        if not refused:
            raise
        code = int(refused[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors without shared memory, as safetensors needs them."""
    seen: set[int] = set()
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return stored


def _listed(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
