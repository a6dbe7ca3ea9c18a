"""Artefacts: content-addressed, written once, checked when read."""

import pytest
import torch

from ssl_core import artefact
from ssl_core.folder import DamagedError

TENSORS = {"words": torch.arange(6.0).view(2, 3), "scale": torch.tensor(2.5, dtype=torch.bfloat16)}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, "_FOLDERS", [])
    monkeypatch.setattr(artefact, "_LOADED", {})
    artefact.search_in(tmp_path)
    return tmp_path


def test_the_digest_is_of_the_content_alone(store):
    first = artefact.store(store, TENSORS)
    again = artefact.store(store, dict(reversed(TENSORS.items())))
    other = artefact.store(store, {**TENSORS, "words": TENSORS["words"].view(3, 2)})
    assert first == again != other
    assert sorted(path.name for path in store.iterdir()) == sorted(map(artefact.file_name, [first, other]))
    loaded = artefact.load(first)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_a_missing_one_is_named_with_the_places_that_were_searched(store):
    with pytest.raises(artefact.MissingArtefactError, match=f"artefact abc, which is not in {store}"):
        artefact.load("abc")
    with pytest.raises(artefact.MissingArtefactError, match="is not fitted yet"):
        artefact.load("")


def test_changed_bytes_are_noticed(store):
    digest = artefact.store(store, TENSORS)
    path = store / artefact.file_name(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="has changed"):
        artefact.load(digest)


def test_what_was_taken_outlives_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, "_FOLDERS", [])
    monkeypatch.setattr(artefact, "_LOADED", {})

    class Task:
        artefacts = {"words": lambda task, batches, rng: TENSORS}  # noqa: RUF012
        words = artefact.store(tmp_path, TENSORS)

    artefact.load_all(Task(), tmp_path)
    (tmp_path / artefact.file_name(Task.words)).unlink()
    for device in ("cpu", torch.device("cpu")):
        assert torch.equal(artefact.load(Task.words, device)["words"], TENSORS["words"])
