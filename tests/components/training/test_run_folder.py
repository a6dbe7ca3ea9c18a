"""A run's folder behind a URI behaves as the local one does."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
import torch

from components.training.run_folder import RunFolder
from components.training.snapshot import repair
from ssl_core.train import checkpoint


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> RunFolder:
    if request.param == "local":
        return RunFolder(str(tmp_path), "run")
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=f"runs-{tmp_path.name.replace('_', '-').lower()}")
    return RunFolder(f"s3://runs-{tmp_path.name.replace('_', '-').lower()}/deep", "run")


def put(folder: RunFolder, step: int) -> None:
    tensors = {"weight": torch.full((4,), float(step))}
    folder.put(checkpoint.name_of(step), lambda path: checkpoint.save(path, tensors, {"step": step}))


def test_the_newest_whole_checkpoint_comes_back(folder: RunFolder) -> None:
    assert folder.newest() is None and folder.complete() == []
    put(folder, 5)
    put(folder, 10)
    state = folder.newest()
    assert state is not None and state[1] == {"step": 10} and torch.equal(state[0]["weight"], torch.full((4,), 10.0))
    put(folder, 10)
    assert folder.complete() == ["checkpoint_00000010", "checkpoint_00000005"]


def test_half_uploaded_ones_are_not_seen_and_swept(folder: RunFolder) -> None:
    from components.storage.files import join, remove

    for step in (5, 10, 15, 20):
        put(folder, step)
    remove(join(folder.uri, "checkpoint_00000020", "state.safetensors"))
    assert folder.complete()[0] == "checkpoint_00000015"
    assert repair(folder, 2) == "missing"
    assert folder.complete() == ["checkpoint_00000015", "checkpoint_00000010"]
    assert repair(folder, 2) == ""
