"""Ray's snapshot: whatever happened to it, the next start resumes from the newest whole checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from components.training.run_folder import RunFolder
from components.training.snapshot import SNAPSHOT, repair
from ssl_core.folder import MARKER
from ssl_core.train import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:The `:pydantic.warnings.PydanticDeprecatedSince20")  # Ray's own code


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    for step in (10, 20, 30):
        save(tmp_path / "run", step)
    folder = RunFolder(str(tmp_path), "run")
    repair(folder, 2)
    return folder


def save(parent: Path, step: int) -> None:
    checkpoint.save(parent / checkpoint.name_of(step), {"weight": torch.ones(3)}, {"step": step})


def what_ray_resumes_from(folder: RunFolder) -> str:
    """Loads the snapshot with Ray's own code."""
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), StorageContext(folder.storage, folder.name))
    latest = manager.latest_checkpoint_result
    assert latest is not None and latest.checkpoint is not None
    return Path(latest.checkpoint.path).name


def test_a_missing_snapshot_is_rebuilt_from_the_newest_checkpoints(folder: RunFolder) -> None:
    assert what_ray_resumes_from(folder) == "checkpoint_00000030"
    names = [entry["checkpoint_dir_name"] for entry in _snapshot(folder)["checkpoint_results"]]
    assert names == ["checkpoint_00000020", "checkpoint_00000030"]
    assert not (Path(folder.uri) / "checkpoint_00000010").exists()
    assert repair(folder, 2) == ""


HARM: dict[str, Callable[[Path], object]] = {
    "truncated": lambda run: (run / SNAPSHOT).write_bytes((run / SNAPSHOT).read_bytes()[:40]),
    "empty": lambda run: (run / SNAPSHOT).write_bytes(b""),
    "no object": lambda run: (run / SNAPSHOT).write_text("[]"),
    "missing": lambda run: (run / SNAPSHOT).unlink(),
    "another Ray": lambda run: _edit(run, ray_version="2.1.0"),
    "names one that is gone": lambda run: checkpoint.prune(run, 1),
    "lacks one": lambda run: save(run, 40),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_harmed_snapshot_is_repaired_for_rays_own_code(folder: RunFolder, harm: str) -> None:
    HARM[harm](Path(folder.uri))
    assert repair(folder, 2)
    assert what_ray_resumes_from(folder) == folder.complete()[0]


def test_a_half_written_checkpoint_is_swept_and_the_one_before_taken(folder: RunFolder) -> None:
    (Path(folder.uri) / "checkpoint_00000030" / MARKER).unlink()
    assert "gone or incomplete" in repair(folder, 2)
    assert what_ray_resumes_from(folder) == "checkpoint_00000020"
    assert not (Path(folder.uri) / "checkpoint_00000030").exists()


def test_without_any_checkpoint_ray_starts_from_scratch(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "run")
    assert repair(folder, 2) == ""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SNAPSHOT).write_text("{")
    assert repair(folder, 2)
    assert not (tmp_path / "run" / SNAPSHOT).exists()


def _snapshot(folder: RunFolder) -> dict[str, list[dict[str, str]]]:
    loaded: dict[str, list[dict[str, str]]] = json.loads((Path(folder.uri) / SNAPSHOT).read_text())
    assert str(loaded["ray_version"]) == ray.__version__
    return loaded


def _edit(run: Path, **changes: str) -> None:
    (run / SNAPSHOT).write_text(json.dumps({**json.loads((run / SNAPSHOT).read_text()), **changes}))
