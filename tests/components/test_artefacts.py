"""Artefacts on a real Ray: made once per run, found again, taken along by workers, model and registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import boto3
import psutil
import pytest
import torch
from small_corpus import make_corpus

from components.artefacts import ArtefactError, prepare, recorded
from components.corpus import Corpus, pretext_home
from components.pretrain import pretrain
from components.run_folder import ARTEFACTS, MODEL, RunFolder
from components.storage import join, remove
from ssl_core import artefact
from ssl_core.folder import MARKER
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.jigsaw import Jigsaw
from ssl_core.tasks.rotation import Rotation
from ssl_core.train.run import Run, Train

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
    monkeypatch.setattr(artefact, "_HELD", {})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "stripes", size=32)


def puzzle_run(task: Jigsaw = PUZZLE, seed: int = 0) -> Run:
    return Run(task, ENCODER, train=Train(steps=2, batch_size=16, check_every=0, seed=seed))


def prepared(run: Run, corpus: Corpus, storage: str) -> Jigsaw:
    task = prepare(run, corpus.uri, corpus.version, storage=storage, name="run").task
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
    monkeypatch.setattr("components.artefacts._made", None)  # would fail if it were called
    assert prepared(puzzle_run(), corpus, storage) == task


@pytest.mark.parametrize("storage", ["s3"], indirect=True)  # a local one: tests/pipelines/test_local.py
def test_workers_and_whoever_has_only_the_model_find_them(corpus: Corpus, storage: str, tmp_path: Path) -> None:
    run = prepare(puzzle_run(), corpus.uri, corpus.version, storage=storage, name="run")
    outcome = pretrain(run, corpus.uri, corpus.version, storage=storage, name="run", workers=2)
    assert outcome.status == "FINISHED", outcome.reason
    with RunFolder(storage, "run").local_copy(MODEL) as model:
        assert model is not None
        shutil.copytree(model, tmp_path / "model")
    code = (
        "import sys, pathlib, torch; from ssl_core.train.checkpoint import load_model\n"
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
        "field empty to have it made anew."
    )
    assert not recorded(RunFolder(str(tmp_path / "three"), "run"))
    with pytest.raises(ArtefactError, match="holds the artefacts of another task"):
        prepared(puzzle_run(wrong), corpus, str(tmp_path / "one"))


def test_a_task_without_artefacts_starts_nothing(corpus: Corpus, tmp_path: Path) -> None:
    run = Run(Rotation(canvas=16), ENCODER)
    assert prepare(run, corpus.uri, corpus.version, storage=str(tmp_path / "runs"), name="run") is run
    assert not (tmp_path / "runs").exists()


def test_training_without_them_fails_in_one_sentence(corpus: Corpus, tmp_path: Path) -> None:
    outcome = pretrain(puzzle_run(), corpus.uri, corpus.version, storage=str(tmp_path), name="run")
    assert outcome.status == "FAILED" and "was not made yet" in outcome.reason


def test_gpus_that_are_not_there_are_refused_at_once(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="asks for 1 GPUs and this machine shows 0"):
        prepare(puzzle_run(), corpus.uri, corpus.version, storage=str(tmp_path), name="run", gpus=True)


def test_a_kill_on_the_way_leaves_nothing_that_counts_and_the_same_call_makes_the_same(
    corpus: Corpus, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(record: str) -> None:
        raise KeyboardInterrupt

    folder = RunFolder(storage, "run")
    with monkeypatch.context() as patched:
        patched.setattr("components.artefacts.require", killed)
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
            for process in psutil.Process().children(recursive=True):
                if "ray::fit" in " ".join(process.cmdline()):
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
