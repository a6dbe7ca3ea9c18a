"""Checkpoints and models on disk: whole or not there, and read back as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny import ENCODER, Upside

from ssl_core import artefact
from ssl_core.folder import CONFIG, MARKER, WEIGHTS, DamagedError, is_complete, read_tensors, write_folder
from ssl_core.train import checkpoint
from ssl_core.train.saved_model import from_fields, load_model


def _save(parent: Path, step: int) -> Path:
    folder = parent / checkpoint.name_of(step)
    checkpoint.save(folder, {"weight": torch.full((3,), float(step))}, {"step": step})
    return folder


def test_tensors_and_meta_come_back_as_they_were(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tied = torch.arange(4)
    tensors = {"a": images, "b": tied, "c": tied, "count": torch.tensor(7), "empty": torch.zeros(0, 2)}
    checkpoint.save(tmp_path / "checkpoint_00000001", tensors, {"step": 1, "digest": "é"})
    loaded, meta = checkpoint.load(tmp_path / "checkpoint_00000001")
    assert meta == {"step": 1, "digest": "é"}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("harm", ["no marker", "short file", "missing file", "broken marker"])
def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path, harm: str) -> None:
    _save(tmp_path, 5)
    newest = _save(tmp_path, 10)
    state = newest / "state.safetensors"
    if harm == "no marker":
        (newest / MARKER).unlink()
    elif harm == "short file":
        state.write_bytes(state.read_bytes()[:-1])
    elif harm == "missing file":
        state.unlink()
    else:
        (newest / MARKER).write_text('{"files": {')
    assert checkpoint.complete(tmp_path)[0] == tmp_path / "checkpoint_00000005"
    with pytest.raises(DamagedError, match="not complete"):
        checkpoint.load(newest)


def test_changed_bytes_are_found_and_the_checkpoint_before_is_loaded(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    state = _save(tmp_path, 10) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match="has changed since it was written"):
        checkpoint.load(state.parent)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None and loaded[1] == {"step": 5}


def test_saving_replaces_what_stands_there(tmp_path: Path) -> None:
    folder = _save(tmp_path, 5)
    (folder / MARKER).unlink()
    assert is_complete(_save(tmp_path, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000005"]


def test_pruning_keeps_the_newest_and_sweeps_leftovers(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _save(tmp_path, step)
    (tmp_path / "checkpoint_00000003" / MARKER).unlink()
    (tmp_path / ".checkpoint_00000009.0123456789abcdef.part").mkdir()
    (tmp_path / ".report.html.0123456789abcdef.part").touch()  # another writer of the run may be at it
    (tmp_path / "model").mkdir()
    checkpoint.prune(tmp_path, 2)
    (tmp_path / ".report.html.0123456789abcdef.part").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_00000002", "checkpoint_00000004", "model"]


def test_a_checkpoint_that_was_being_replaced_when_its_writer_was_killed_is_back_after_pruning(tmp_path: Path) -> None:
    for step in (5, 10):
        _save(tmp_path, step)
    (tmp_path / "checkpoint_00000010").rename(tmp_path / ".checkpoint_00000010.0123456789abcdef.old")
    checkpoint.prune(tmp_path, 2)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None and loaded[1] == {"step": 10}


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.complete(tmp_path / "absent") == []
    assert checkpoint.load_newest(tmp_path) is None


def test_nan_in_the_meta_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_folder(tmp_path / "x", {"t.safetensors": {"a": torch.zeros(1)}}, {"meta.json": {"loss": float("nan")}})
    assert not list(tmp_path.iterdir())


TASKS = {"Upside": Upside}


def _save_model(folder: Path) -> None:
    task = Upside(canvas=8, dropout=0.5)
    checkpoint.save_model(folder, task, ENCODER, task.build(ENCODER.build).state_dict(), {"step": 3})


def test_a_model_is_rebuilt_from_its_folder_alone(tmp_path: Path) -> None:
    _save_model(tmp_path / "model")
    task, model = load_model(tmp_path / "model", tasks=TASKS)
    assert task == Upside(canvas=8, dropout=0.5)
    raw = {"image": torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)}
    again = load_model(tmp_path / "model", tasks=TASKS)[1]
    assert all(torch.equal(one, two) for one, two in zip(model.represent(raw).values(), again.represent(raw).values()))


@dataclass(frozen=True)
class Tinted(Upside):
    """Needs an artefact.

    Attributes:
        tint: digest of the colour.
    """

    artefacts: ClassVar[Mapping[str, artefact.Fit]] = {"tint": lambda task, batches, rng: {"rgb": torch.rand(3)}}
    tint: str = ""


def test_a_model_brings_its_artefacts_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "_FOLDERS", [])
    artefact.search_in(tmp_path / "store")
    task = Tinted(tint=artefact.store(tmp_path / "store", {"rgb": torch.ones(3)}))
    checkpoint.save_model(tmp_path / "model", task, ENCODER, task.build(ENCODER.build).state_dict())
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(artefact, "_FOLDERS", [])
    monkeypatch.setattr(artefact, "_LOADED", {})
    with pytest.raises(artefact.MissingArtefactError):
        artefact.load(task.tint)
    loaded, _ = load_model(tmp_path / "elsewhere", tasks={"Tinted": Tinted})
    shutil.rmtree(tmp_path / "elsewhere")
    assert loaded == task and torch.equal(artefact.load(task.tint)["rgb"], torch.ones(3))


def test_a_model_without_one_of_its_artefacts_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "_FOLDERS", [])
    artefact.search_in(tmp_path / "store")
    task = Tinted(tint=artefact.store(tmp_path / "store", {"rgb": torch.zeros(3)}))
    weights = task.build(ENCODER.build).state_dict()
    checkpoint.save_model(tmp_path / "model", task, ENCODER, weights)
    (tmp_path / "model" / artefact.file_name(task.tint)).unlink()
    assert not is_complete(tmp_path / "model")
    with pytest.raises(artefact.MissingArtefactError, match="artefact abc, which is not in"):
        checkpoint.save_model(tmp_path / "model", replace(task, tint="abc"), ENCODER, weights)


def _edit(folder: Path, **changes: object) -> None:
    """Rewrites config.json together with its marker, as another version would have written it."""
    tensors = read_tensors(folder / WEIGHTS)
    config = {**json.loads((folder / CONFIG).read_text()), **changes}
    tensors = {name: value for name, value in tensors.items() if name not in changes}
    write_folder(folder, {WEIGHTS: tensors}, {CONFIG: config})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 9}, "has format 9 and this version of pretext reads 1"),
        ({"task": "jigsaw"}, "trained on the task 'jigsaw'; this version has only Upside"),
        ({"task_fields": {"canvas": 8, "colour": 1}}, "Upside has no field colour"),
        ({"head.weight": None}, "lacks head.weight"),
        ({"encoder": {"name": "resnet18", "width": 0.25, "stem": "cifar"}}, "has with another shape encoder"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    _save_model(tmp_path / "model")
    _edit(tmp_path / "model", **changes)
    with pytest.raises(DamagedError, match=sentence):
        load_model(tmp_path / "model", tasks=TASKS)


def test_json_lists_become_tuples_and_objects_dataclasses() -> None:
    @dataclass(frozen=True)
    class Outer:
        sizes: tuple[int, ...]
        name: str = "x"

    assert from_fields(Outer, {"sizes": [1, 2]}) == Outer((1, 2))
