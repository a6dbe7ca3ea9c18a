"""Ray Train's own list of checkpoints, repaired before every start.

Ray overwrites `checkpoint_manager_snapshot.json` in place, and refuses to start a run whose snapshot is truncated or
names a checkpoint that is gone. A checkpoint of ours shows by itself whether it is complete, so the snapshot is rebuilt
from the checkpoints.
"""

from __future__ import annotations

import json
from typing import Any

import ray

from components.storage.files import join, read, remove, write
from components.training.run_folder import RunFolder
from ssl_core.train.checkpoint import step_of

SNAPSHOT = "checkpoint_manager_snapshot.json"


def repair(folder: RunFolder, keep: int) -> str:
    """Makes the snapshot name exactly the newest `keep` complete checkpoints, and deletes all others.

    Returns:
        What was wrong with the snapshot, in words; empty if it was right.
    """
    names = folder.sweep(keep)[::-1]
    path = join(folder.uri, SNAPSHOT)
    present = read(path)
    wrong = _wrong(present, names)
    if wrong and names:
        write(path, json.dumps(_rebuilt(names)).encode())
    elif wrong:
        remove(path)
    return wrong


def _wrong(present: bytes | None, names: list[str]) -> str:
    """Why Ray would not resume from the newest of `names` (oldest first); empty if it would."""
    if present is None:
        return "missing" if names else ""
    try:
        snapshot = json.loads(present)
        listed = [entry["checkpoint_dir_name"] for entry in snapshot["checkpoint_results"]]
        latest = (snapshot["latest_checkpoint_result"] or {}).get("checkpoint_dir_name")
        version = snapshot["ray_version"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "truncated or not a snapshot"
    if version != ray.__version__:
        return f"written by Ray {version}"
    gone = [name for name in listed if name not in names]
    if gone:
        return f"names checkpoints that are gone or incomplete: {', '.join(gone)}"
    newest = names[-1] if names else None
    return "" if listed == names and latest == newest else "lacks complete checkpoints"


def _rebuilt(names: list[str]) -> dict[str, Any]:
    """The snapshot as Ray 2.60 writes it (ray/train/v2/_internal/execution/checkpoint/checkpoint_manager.py)."""
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {"step": step_of(name)}} for name in names]
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(names),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
