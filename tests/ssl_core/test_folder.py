"""A folder is whole or not there, whatever happens while it is written, and says when its bytes have changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ssl_core import atomic, folder
from ssl_core.folder import (
    MARKER,
    DamagedError,
    is_complete,
    read_json,
    read_tensors,
    remove,
    verify,
    write_folder,
    write_tensors,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def write(path: Path, value: float = 0.0) -> Path:
    write_folder(path, {"t.safetensors": TENSORS | {"value": torch.tensor(value)}}, {"m.json": {"value": value}})
    return path


def test_tensors_and_documents_come_back_as_they_were(tmp_path: Path) -> None:
    made = write(tmp_path / "deep" / "x", 3.5)
    verify(made)
    assert is_complete(made)
    found = read_tensors(made / "t.safetensors")
    assert found.keys() == {"a", "b", "value"} and found["b"].dtype == torch.bfloat16
    assert torch.equal(found["a"], TENSORS["a"]) and found["value"] == 3.5
    assert read_json(made / "m.json") == {"value": 3.5}
    listed = json.loads((made / MARKER).read_text())["files"]
    assert {name: entry["bytes"] for name, entry in listed.items()} == {
        name: (made / name).stat().st_size for name in ("t.safetensors", "m.json")
    }


def test_views_and_shared_and_transposed_tensors_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"whole": base, "same": base, "part": base[1:], "turned": base.T}
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_writing_that_fails_at_any_point_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write(tmp_path / "x", 1.0)
    for module, step in ((folder, "save_file"), (atomic, "_sync_all"), (atomic, "_rename")):
        with monkeypatch.context() as patched:

            def full(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            patched.setattr(module, step, full)
            with pytest.raises(OSError, match="No space left"):
                write(made, 2.0)
        verify(made)
        assert read_json(made / "m.json") == {"value": 1.0}
        assert os.listdir(tmp_path) == ["x"], step
    write(made, 2.0)
    assert read_json(made / "m.json") == {"value": 2.0} and os.listdir(tmp_path) == ["x"]


def test_a_single_file_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.zeros(1)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_sync_all", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.ones(1)})
    assert read_tensors(path)["a"] == 0 and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("harm", ["no marker", "a file gone", "a file short", "a marker that says nothing"])
def test_what_is_not_whole_is_not_complete(tmp_path: Path, harm: str) -> None:
    made = write(tmp_path / "x")
    match harm:
        case "no marker":
            (made / MARKER).unlink()
        case "a file gone":
            (made / "m.json").unlink()
        case "a file short":
            (made / "t.safetensors").write_bytes((made / "t.safetensors").read_bytes()[:-1])
        case _:
            (made / MARKER).write_text("[]")
    assert not is_complete(made)
    with pytest.raises(DamagedError, match=f"{made} is not complete"):
        verify(made)


def test_a_changed_byte_is_seen_by_verifying_alone(tmp_path: Path) -> None:
    made = write(tmp_path / "x")
    data = bytearray((made / "t.safetensors").read_bytes())
    data[-1] ^= 1
    (made / "t.safetensors").write_bytes(data)
    assert is_complete(made), "sizes are right, and no tensor is read"
    with pytest.raises(DamagedError, match=r"t\.safetensors has changed since it was written"):
        verify(made)


def test_removing_takes_the_marker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write(tmp_path / "x")
    with monkeypatch.context() as patched:
        patched.setattr(folder.shutil, "rmtree", lambda *_, **__: None)  # killed here
        remove(made)
    assert not is_complete(made) and (made / "m.json").exists()
    remove(made)
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"{ no json", b"[1, 2]"])
def test_a_document_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"m\.json (cannot be read as JSON|holds no JSON object)"):
        read_json(tmp_path / "m.json")
    with pytest.raises(DamagedError, match=r"m\.json cannot be read as safetensors"):
        read_tensors(tmp_path / "m.json")
    with pytest.raises(DamagedError, match=r"none\.json cannot be read as JSON"):
        read_json(tmp_path / "none.json")
