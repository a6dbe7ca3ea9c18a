"""Registered encoders: what is in the artifact, who can load it, and which version is the champion."""

from __future__ import annotations

import importlib
import io
import pickletools
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tracking_server import Server

from components.embed.embed import embed
from components.evaluation.result import Correct, Evaluation, Row
from components.registry.export import load_artifact
from components.registry.register import Candidate, Registered, fetch, register
from components.tracking.store import connect_tracking
from components.tracking.tracker import Tracker
from ssl_core.folder import DamagedError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.probes.intervals import Interval
from ssl_core.tasks.simclr import SimCLR
from ssl_core.train.checkpoint import save_model

SPEC = EncoderSpec(name="resnet18", width=0.125, stem="cifar")
TASK = SimCLR(canvas=20, size=16, hidden=32, out=16)
NAME = "digits.encoder"


def evaluation(share: float) -> Evaluation:
    """As if `share` of 200 test samples were classified rightly."""
    right = torch.zeros(1, 200, dtype=torch.bool)
    right[:, : round(200 * share)] = True
    return Evaluation(
        rows=(Row("encoder", "stage3", 32, {"linear": Interval(share, share - 0.05, share + 0.05)}, {"rank_me": 9.0}),),
        best="stage3",
        samples={"train": 100, "test": 200},
        classes=("0", "1"),
        evaluation_set="e5e7",
        settings={"shots": (1, 5)},
        pretext={},
        collapse="",
        notes=(),
        correct={"linear": Correct.of(right)},
    )


def trained(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_model(folder, TASK, SPEC, TASK.build(SPEC.build).state_dict())
    return folder


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def quiet_mlflow(flavour: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"mlflow.{flavour}")


class Shop:
    """A store with three runs of one model, registered in turn: fair, significantly better, not better."""

    def __init__(self, home: Path) -> None:
        self.home, self.uri = home, f"sqlite:///{home / 'mlflow.db'}"
        self.versions = [self.run(i, evaluation(share)) for i, share in enumerate((0.5, 0.8, 0.8))]

    def run(self, seed: int, evaluated: Evaluation) -> Registered:
        folder = self.home / f"model{seed}"
        if not folder.exists():
            trained(folder, seed)
        with Tracker(f"key{seed}", self.home / f"run{seed}", uri=self.uri, system_metrics=0) as tracker:
            assert tracker.flush(30) and tracker.run_id is not None
        tags = {"corpus": "digits", "corpus_digest": "ab" * 32}
        candidate = Candidate(folder, evaluated, f"key{seed}", tracker.run_id, size=24, tags=tags)
        return register(candidate, NAME, uri=self.uri)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def blobs(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a folder and every member of every zip in it, however deep."""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield from _unzipped(str(file), file.read_bytes())


def _unzipped(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from _unzipped(f"{name}!{member}", archive.read(member))


def is_pickle(data: bytes) -> bool:
    if not data.startswith(b"\x80"):
        return False
    try:
        return any(True for opcode, *_ in pickletools.genops(data) if opcode.name == "STOP")
    except ValueError:
        return False


def test_the_better_version_is_promoted_and_the_equal_one_is_not(shop: Shop) -> None:
    assert [made.version for made in shop.versions] == [1, 2, 3] and all(made.created for made in shop.versions)
    assert [made.promotion.verdict for made in shop.versions] == ["promote", "promote", "keep"]
    assert [made.champion for made in shop.versions] == [1, 2, 2]


def test_a_version_says_where_it_comes_from_and_what_it_is_worth(shop: Shop) -> None:
    client, _ = connect_tracking(shop.uri)
    tags = client.get_model_version(NAME, "2").tags
    assert tags["pretext.run_key"] == "key1" and tags["pretext.corpus_digest"] == "ab" * 32
    assert tags["metric.linear"] == "0.8000" and tags["pretext.evaluation_set"] == "e5e7"
    assert tags["pretext.promotion"].startswith("promote: gains +30.00")


def test_registering_a_run_again_gives_its_version(shop: Shop) -> None:
    again = shop.run(1, evaluation(0.8))
    assert (again.version, again.created, again.champion) == (2, False, 2)
    client, _ = connect_tracking(shop.uri)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 3


def test_there_is_no_pickle_anywhere_in_the_artifact(shop: Shop, tmp_path: Path) -> None:
    found = dict(blobs(fetch(f"models:/{NAME}@champion", tmp_path / "m", shop.uri)))
    assert any(name.endswith("model.pt2") for name in found) and any("safetensors" in name for name in found)
    assert sum("!" in name for name in found) > 50  # the pt2 was looked into
    assert [name for name, data in found.items() if is_pickle(data)] == []
    assert is_pickle(b"\x80\x02]q\x00.")  # the scan can see one


def test_our_code_mlflow_and_plain_torch_give_the_same_embedding(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(f"models:/{NAME}@champion", tmp_path / "m", shop.uri)
    loaded = load_artifact(folder)
    assert loaded.layer == "stage3" and loaded.about["size"] == 24 and loaded.about["metrics"]["linear"] == 0.8
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.uri)
    by_mlflow = quiet_mlflow("pytorch").load_model(f"models:/{NAME}@champion")
    by_pyfunc = quiet_mlflow("pyfunc").load_model(f"models:/{NAME}/2")
    by_torch = torch.export.load(folder / "data/model.pt2").module()
    for n in (1, 2, 7):
        x = pictures(n)
        with torch.no_grad():
            ours = loaded.model.represent({"image": x})["stage3"]
            assert torch.allclose(by_torch(x), ours, atol=1e-5) and torch.allclose(by_mlflow(x), ours, atol=1e-5)
        np.testing.assert_allclose(by_pyfunc.predict(x.numpy()), ours.numpy(), atol=1e-5)
    signature = by_pyfunc.metadata.signature
    assert signature.inputs.inputs[0].shape == (-1, 3, 20, 20) and str(signature.inputs.inputs[0].type) == "uint8"
    assert by_pyfunc.metadata.load_input_example(str(folder)).shape == (1, 3, 20, 20)


def test_the_export_runs_where_there_is_neither_pretext_nor_mlflow(shop: Shop, tmp_path: Path) -> None:
    folder = fetch(f"models:/{NAME}@champion", tmp_path / "m", shop.uri)
    code = (
        "import sys, torch; network = torch.export.load(sys.argv[1]).module()\n"
        "print(tuple(network(torch.zeros(5, 3, 20, 20, dtype=torch.uint8)).shape))\n"
        "assert not {'mlflow', 'components', 'ssl_core'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder / "data/model.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(5, 32)"), done.stderr


def test_a_model_is_found_by_alias_version_run_and_folder(shop: Shop, tmp_path: Path) -> None:
    client, _ = connect_tracking(shop.uri)
    run_id = client.get_model_version(NAME, "2").run_id
    uris = (f"models:/{NAME}@champion", f"models:/{NAME}/2", f"runs:/{run_id}/encoder", str(shop.home / "model1"))
    found = [load_artifact(fetch(name, tmp_path / "m", shop.uri), layer="stage3") for name in uris]
    weights = [next(iter(loaded.model.parameters())) for loaded in found]
    assert all(torch.equal(weights[0], other) for other in weights)
    first = load_artifact(fetch(f"models:/{NAME}/1", tmp_path / "m", shop.uri), layer="stage3")
    assert not torch.equal(next(iter(first.model.parameters())), weights[0]), "version 1 is another model"


@pytest.mark.parametrize("name", ["models:/none@champion", f"models:/{NAME}/99", f"models:/{NAME}@none", "runs:/no/x"])
def test_a_model_that_is_not_there_is_named(shop: Shop, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        fetch(name, tmp_path / "m", shop.uri)


def test_files_are_embedded_by_the_champion_at_the_size_of_its_corpus(shop: Shop, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    report = embed(f"models:/{NAME}@champion", str(tmp_path / "in"), tmp_path / "out.parquet", uri=shop.uri)
    loaded = load_artifact(fetch(f"models:/{NAME}@champion", tmp_path / "m", shop.uri))
    middle = torch.from_numpy(pixels[2:22, 5:25].copy()).permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        expected = loaded.model.represent({"image": middle})["stage3"]
    found = pq.read_table(report.out)["embedding"][0].as_py()
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)


def test_a_damaged_model_and_a_bad_name_are_refused(shop: Shop, tmp_path: Path) -> None:
    broken = trained(tmp_path / "model", 5)
    (broken / "model.safetensors").write_bytes(b"")
    with Tracker("broken", tmp_path / "run", uri=shop.uri, system_metrics=0) as tracker:
        assert tracker.flush(30) and tracker.run_id is not None
    candidate = Candidate(broken, evaluation(0.5), "broken", tracker.run_id)
    with pytest.raises(DamagedError):
        register(candidate, NAME, uri=shop.uri)
    with pytest.raises(ValueError, match="a/b"):
        register(candidate, "a/b", uri=shop.uri)


def test_versions_evaluated_on_other_samples_are_evaluated_again_or_kept_back(shop: Shop) -> None:
    other = replace(evaluation(0.9), evaluation_set="f00d")
    assert shop.run(2, other).promotion.verdict == "evaluate"


@pytest.mark.slow
def test_a_server_takes_and_gives_the_model_like_an_embedded_store(tmp_path: Path) -> None:
    connect_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    server = Server(tmp_path)
    server.start()
    try:
        with Tracker("key", tmp_path / "run", uri=server.uri, system_metrics=0) as tracker:
            assert tracker.flush(30) and tracker.run_id is not None
        candidate = Candidate(trained(tmp_path / "model", 0), evaluation(0.5), "key", tracker.run_id)
        made = register(candidate, NAME, uri=server.uri)
        again = register(candidate, NAME, uri=server.uri)
        assert (made.version, made.champion, again.version, again.created) == (1, 1, 1, False)
        for name in (f"models:/{NAME}@champion", f"runs:/{tracker.run_id}/encoder"):
            assert load_artifact(fetch(name, tmp_path / name[:4], server.uri)).layer == "stage3"
        client, _ = connect_tracking(server.uri)
        assert [found.name for found in client.search_registered_models()] == [NAME]  # no lease is left
    finally:
        server.stop()
