"""Artefacts on a real Ray: made once per run, found again, taken along by workers, model and registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import torch
from processes import running
from small_corpus import make_corpus

from components.cluster.connect import Cluster
from components.corpus.corpus import Corpus
from components.storage.files import join, remove
from components.storage.home import pretext_home
from components.training.artefacts import ArtefactError, prepare, recorded
from components.training.pretrain import pretrain
from components.training.run_folder import ARTEFACTS, MODEL, RunFolder
from ssl_core import artefact
from ssl_core.folder import MARKER, DamagedError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.bag_of_words import BagOfWords
from ssl_core.tasks.jigsaw import Jigsaw
from ssl_core.tasks.rotation import Rotation
from ssl_core.train.checkpoint import save_model
from ssl_core.train.run import Run, Runtime, Train

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning"),  # Ray's own code
]

PUZZLE = Jigsaw(canvas=32, tile=8, gap=2, jitter=1, channel_jitter=0, permutations=12, embed=8, hidden=16)
ENCODER = EncoderSpec("resnet18", width=0.125, stem="cifar")


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process knows of no artefact yet, as on another machine."""
    monkeypatch.setattr(artefact, "_FOLDERS", [])
    monkeypatch.setattr(artefact, "_LOADED", {})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "stripes", size=32)


def puzzle_run(task: Jigsaw = PUZZLE, seed: int = 0) -> Run:
    return Run(task, ENCODER, train=Train(steps=2, batch_size=16, seed=seed), runtime=Runtime(check_every=0))


def prepared(run: Run, corpus: Corpus, storage: str) -> Jigsaw:
    task = prepare(run, corpus.pinned(), RunFolder(storage, "run")).task
    assert isinstance(task, Jigsaw)
    return task


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    bucket = f"artefacts-{tmp_path.name.replace('_', '-').lower()}"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"


def test_they_are_made_once_and_found_by_the_same_name_on_another_machine(
    corpus: Corpus, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepared(puzzle_run(), corpus, storage)
    orders = artefact.load(task.permutation_set)["permutations"]
    assert orders.shape == (12, 9) and len(torch.unique(orders, dim=0)) == 12
    assert recorded(RunFolder(storage, "run")) == {"permutation_set": task.permutation_set}

    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / "another"))
    monkeypatch.setattr("components.training.artefacts._fit_missing", None)  # would fail if it were called
    assert prepared(puzzle_run(), corpus, storage) == task


@pytest.mark.parametrize("storage", ["s3"], indirect=True)  # a local one: tests/pipelines/test_local.py
def test_workers_and_whoever_has_only_the_model_find_them(corpus: Corpus, storage: str, tmp_path: Path) -> None:
    run = prepare(puzzle_run(), corpus.pinned(), RunFolder(storage, "run"))
    outcome = pretrain(run, corpus.pinned(), RunFolder(storage, "run"), Cluster(workers=2))
    assert outcome.status == "FINISHED", outcome.reason
    with RunFolder(storage, "run").local_copy(MODEL) as model:
        assert model is not None
        shutil.copytree(model, tmp_path / "model")
    code = (
        "import sys, pathlib, torch; from ssl_core.train.saved_model import load_model\n"
        "task, model = load_model(pathlib.Path(sys.argv[1]))\n"
        "raw = {'image': torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}\n"
        "inputs, targets = task.make_batch(raw, torch.Generator())\n"
        "print(task.permutation_set, model(**inputs).shape[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PRETEXT_HOME": str(tmp_path / "another")},
    )
    assert done.stdout.split() == [run.task.permutation_set, "12"], done.stderr  # type: ignore[attr-defined]


def test_the_seed_of_the_run_makes_them(corpus: Corpus, tmp_path: Path) -> None:
    digests = [
        prepared(puzzle_run(seed=seed), corpus, str(tmp_path / str(i))).permutation_set
        for i, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_digest_in_the_recipe_is_taken_from_the_home_and_a_wrong_one_is_one_sentence(
    corpus: Corpus, tmp_path: Path
) -> None:
    made = prepared(puzzle_run(), corpus, str(tmp_path / "one"))
    assert prepared(puzzle_run(made), corpus, str(tmp_path / "two")) == made
    assert recorded(RunFolder(str(tmp_path / "two"), "run")) == {"permutation_set": made.permutation_set}

    wrong = Jigsaw(permutation_set="0123456789abcdef")
    with pytest.raises(artefact.MissingArtefactError) as caught:
        prepared(puzzle_run(wrong), corpus, str(tmp_path / "three"))
    assert str(caught.value) == (
        f"The task names the artefact 0123456789abcdef, which is not in {pretext_home() / 'artefacts'}; leave the "
        "field empty to fit it anew."
    )
    assert not recorded(RunFolder(str(tmp_path / "three"), "run"))
    with pytest.raises(ArtefactError, match="holds the artefacts of another task"):
        prepared(puzzle_run(wrong), corpus, str(tmp_path / "one"))


def test_a_task_without_artefacts_starts_nothing(corpus: Corpus, tmp_path: Path) -> None:
    run = Run(Rotation(canvas=16), ENCODER)
    assert prepare(run, corpus.pinned(), RunFolder(str(tmp_path / "runs"), "run")) is run
    assert not (tmp_path / "runs").exists()


def test_training_without_them_fails_in_one_sentence(corpus: Corpus, tmp_path: Path) -> None:
    outcome = pretrain(puzzle_run(), corpus.pinned(), RunFolder(str(tmp_path), "run"))
    assert outcome.status == "FAILED" and "is not fitted yet" in outcome.reason


def test_gpus_that_are_not_there_are_refused_at_once(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="asks for 1 GPUs and this machine shows 0"):
        prepare(puzzle_run(), corpus.pinned(), RunFolder(str(tmp_path), "run"), Cluster(gpus=True))


def test_a_kill_on_the_way_leaves_nothing_that_counts_and_the_same_call_makes_the_same(
    corpus: Corpus, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(record: str) -> None:
        raise KeyboardInterrupt

    folder = RunFolder(storage, "run")
    with monkeypatch.context() as patched:
        patched.setattr("components.training.artefacts.require", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(puzzle_run(), corpus, storage)
    assert not recorded(folder)
    task = prepared(puzzle_run(), corpus, storage)

    remove(join(folder.uri, ARTEFACTS, MARKER))  # as if killed while they were uploaded or deleted
    assert not recorded(folder)
    assert prepared(puzzle_run(), corpus, storage) == task and recorded(folder)


def test_the_task_on_ray_survives_its_process(corpus: Corpus, tmp_path: Path) -> None:
    """Its worker is killed once; Ray starts it again."""
    killed = threading.Event()

    def kill_once() -> None:
        while not killed.is_set():
            for process in running("ray::fit"):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.set()
            time.sleep(0.005)

    thread = threading.Thread(target=kill_once)
    thread.start()
    try:
        large = replace(PUZZLE, permutations=300)
        assert prepared(puzzle_run(large), corpus, str(tmp_path)).permutation_set
    finally:
        seen = killed.is_set()
        killed.set()
        thread.join()
    assert seen


def word_run(**changed: Any) -> Run:
    fields = {"canvas": 32, "size": 32, "words": 20, "layer": "stage2", "flip": 0.0}
    return Run(BagOfWords(**{**fields, **changed}), ENCODER, train=Train(steps=2, batch_size=16))


def vocabulary(run: Run, corpus: Corpus, storage: Path, **options: Any) -> Mapping[str, torch.Tensor]:
    task = prepare(run, corpus.pinned(), RunFolder(str(storage), "run"), **options).task
    assert isinstance(task, BagOfWords)
    return artefact.load(task.vocabulary)


def test_a_fit_reads_the_corpus_and_tells_how_far_it_is(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []
    run = word_run(words=400, layer="stage4")  # few places per image: many images
    found = vocabulary(run, corpus, tmp_path, progress=lambda field, samples: told.append((field, samples)))
    assert found["words"].shape == (400, 64)
    assert told and {field for field, _ in told} == {"vocabulary"}
    assert [samples for _, samples in told] == sorted(samples for _, samples in told)


def test_a_teacher_is_fetched_wherever_it_lies_and_the_run_s_own_untrained_encoder_is_the_first(
    corpus: Corpus, tmp_path: Path, s3: str
) -> None:
    torch.manual_seed(7)
    model = Rotation(canvas=32).build(ENCODER.build)
    save_model(tmp_path / "model", Rotation(canvas=32), ENCODER, model.state_dict())
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="teachers")
    for name in ("config.json", "model.safetensors"):
        boto3.client("s3", endpoint_url=s3).upload_file(str(tmp_path / "model" / name), "teachers", f"model/{name}")
    uris = ("", str(tmp_path / "model"), "s3://teachers/model")
    untrained, folder, bucket = (
        vocabulary(word_run(teacher=uri), corpus, tmp_path / f"runs{i}") for i, uri in enumerate(uris)
    )
    stem = "encoder.stem.0.weight"
    assert torch.equal(folder[stem], model.state_dict()[stem]) and not torch.equal(untrained[stem], folder[stem])
    assert artefact.digest_of(folder) == artefact.digest_of(bucket)

    (tmp_path / "model" / "model.safetensors").write_bytes(b"changed")
    for uri, sentence in ((str(tmp_path / "model"), "not complete"), (str(tmp_path), "holds no encoder of pretext")):
        with pytest.raises((DamagedError, ValueError), match=sentence):
            vocabulary(word_run(teacher=uri), corpus, tmp_path / "runs9")


def test_what_a_fit_complains_of_comes_as_its_own_sentence(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layer 'conv5'; set task") as caught:
        vocabulary(word_run(layer="conv5"), corpus, tmp_path)
    assert "Traceback" not in str(caught.value)
