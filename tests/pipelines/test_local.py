"""The pipeline end to end on real parts: files on disk, Ray, Ray Train, SQLite MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.embed.embed import embed
from components.evaluation.factors import FactorsError
from components.steps.context import StepError, resolve
from components.steps.ingest import ingest_corpora
from components.steps.progress import Silent
from components.tracking.store import connect_tracking, tracking_uri
from pipelines.loading import load_recipe
from pipelines.local import artefacts_alone, evaluate_alone, pretrain_alone, register_alone, run_pipeline
from pipelines.summary import show_summary
from ssl_core.folder import DamagedError

RECIPE = """\
name: tiny
corpus: {{name: tiny, sources: ["{folder}/all"], size: 16}}
task: {{name: rotation, canvas: 16, flip: false}}
encoder: {{name: resnet18, stem: cifar, width: 0.0625}}
optim: {{name: sgd, lr: 0.05}}
train: {{steps: {steps}, batch_size: 16}}
runtime: {{log_every: 1, check_every: 0, checkpoint_every: 20}}
cluster: {{workers: {workers}}}
evaluate:
  draws: 3
  train: {{name: tiny-train, sources: ["{folder}/train"]}}
  test: {{name: tiny-test, sources: ["{folder}/test"]}}
register: {{model: tiny}}
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_pictures(folder: Path) -> None:
    """Two kinds of picture, upright stripes and a bright corner, under folders that name the kind."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 16)):
        for i in range(count):
            pixels = rng.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            kind = ("stripes", "corner")[i % 2]
            if kind == "stripes":
                pixels[:, :: 2 + i % 3] += 150
            else:
                pixels[:8, : 5 + i % 4] += 150
            for place in (folder / part / kind, *([folder / "all"] if part == "train" else [])):
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / f"{i}.png")


def recipe_file(folder: Path, steps: int = 6, workers: int = 1) -> str:
    write_pictures(folder)
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(folder=folder, steps=steps, workers=workers))
    return str(path)


def runs() -> list[Any]:
    client, _ = connect_tracking()
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.mark.usefixtures("ray_cluster")
def test_a_recipe_ends_as_a_registered_evaluated_encoder_and_running_it_again_changes_nothing(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    first = run_pipeline(recipe)
    assert {name: report.added for name, report in first.ingested.items()} == {
        "tiny": 24,
        "tiny-train": 24,
        "tiny-test": 16,
    }
    assert first.registered is not None and first.registered.champion == 1
    assert {row.source for row in first.evaluation.rows} == {"encoder", "random init", "raw pixels"}
    assert b"<img" in (first.context.folder.read("report.html") or b"")

    again = run_pipeline(recipe)
    assert all(report.added == 0 for report in again.ingested.values())
    assert again.context == first.context
    assert again.evaluation == first.evaluation
    assert again.registered is not None and (again.registered.version, again.registered.created) == (1, False)

    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["pretext.corpus.version"] == str(first.context.corpus.version)
    assert run.data.params["train.steps"] == "6"
    history = connect_tracking()[0].get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5, 6]

    renamed = resolve(load_recipe(str(tmp_path / "tiny.yaml"), ["name=small"]).spec())
    assert renamed.trained and renamed.name == first.context.name, "a recipe that is renamed keeps its run"
    other = load_recipe(str(tmp_path / "tiny.yaml"), ["evaluate.draws=4"])
    assert resolve(other.spec()).key == first.context.key
    evaluation, _ = evaluate_alone(other)
    assert evaluation != first.evaluation
    assert register_alone(other).version == 1

    weights = Path(first.context.folder.uri) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError):
        evaluate_alone(other)
    (run,) = runs()
    assert run.info.status == "FINISHED", "a later step that fails does not spoil the training's status"


PUZZLE = "task: {name: jigsaw, canvas: 32, tile: 8, gap: 2, jitter: 1, permutations: 8, embed: 8, hidden: 16}"


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_task_needs_first_is_made_recorded_and_registered_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(recipe_file(tmp_path))
    text = path.read_text().replace("task: {name: rotation, canvas: 16, flip: false}", PUZZLE)
    path.write_text(text.replace(", size: 16}", ", size: 32}"))
    recipe = load_recipe(str(path))
    ingest_corpora(recipe.spec(), Silent())
    made, context = artefacts_alone(recipe)
    assert list(made) == ["permutation_set"] and not tracking_database().exists()
    assert f"artefacts permutation_set {made['permutation_set']}" in capsys.readouterr().err
    assert artefacts_alone(recipe) == (made, context)

    summary = run_pipeline(recipe)
    assert summary.context == context
    (run,) = runs()
    assert run.data.params["artefacts.permutation_set"] == made["permutation_set"]
    assert artefacts_alone(recipe) == (made, context), "trained already"

    monkeypatch.setattr("ssl_core.artefact._FOLDERS", [])
    monkeypatch.setattr("ssl_core.artefact._LOADED", {})
    for folder in (context.folder.uri, tmp_path / "home" / "artefacts"):
        shutil.rmtree(folder)
    report = embed("models:/tiny@champion", str(tmp_path / "test"), tmp_path / "out.parquet")
    assert report.rows == 16


@pytest.mark.usefixtures("ray_cluster")
def test_known_factors_are_evaluated_and_shown_and_a_missing_file_is_reported_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path)
    recipe = load_recipe(path, ["evaluate.factors='{home}/factors.parquet'", "register=null"])
    with pytest.raises(FactorsError, match=r"home/factors.parquet: there is no such file"):
        run_pipeline(recipe)
    assert not tracking_database().exists(), "nothing has been trained"

    files = sorted(
        file.relative_to(tmp_path) for part in ("train", "test") for file in (tmp_path / part).rglob("*.png")
    )
    columns = {"file": list(map(str, files)), "kind": [file.parts[1] for file in files]}
    columns["brightness"] = [float(np.asarray(Image.open(tmp_path / file)).mean()) for file in files]
    pq.write_table(pa.table(columns), tmp_path / "home" / "factors.parquet")
    summary = run_pipeline(recipe)
    kind = summary.evaluation.factors["kind"]
    assert kind.chance == 0.5 and set(kind.known) == {"encoder", "random init", "raw pixels"}
    assert b"What the encoder knows" in (summary.context.folder.read("report.html") or b"")
    (run,) = runs()
    assert run.data.metrics["evaluation/factors/kind/encoder"] == kind.known["encoder"].score.mean
    assert {"factors.json", "evaluation.json"} <= {
        Path(file.path).name for file in connect_tracking()[0].list_artifacts(run.info.run_id, "tables")
    }
    assert "| brightness |" in run.data.tags["mlflow.note.content"]

    capsys.readouterr()
    show_summary(summary, as_json=False)
    shown = capsys.readouterr().out
    assert "What the encoder knows" in shown and "chance" in shown
    assert any(line.split()[:1] == ["brightness"] and line.split()[-1] == "0.0" for line in shown.splitlines())
    show_summary(summary, as_json=True)
    assert [record["factor"] for record in json.loads(capsys.readouterr().out)["factors"]] == ["kind", "brightness"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_step_out_of_order_says_which_comes_first(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    ingest_corpora(recipe.spec(), Silent())
    for step in (evaluate_alone, register_alone):
        with pytest.raises(StepError, match="`pretext pretrain` comes first"):
            step(recipe)
    assert not tracking_database().exists(), "a step out of order leaves no trace in MLflow"
    pretrain_alone(recipe)
    with pytest.raises(StepError, match="`pretext evaluate` comes first"):
        register_alone(recipe)


def tracking_database() -> Path:
    return Path(tracking_uri().removeprefix("sqlite:///"))


def start(recipe: str, home: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines", "run", recipe, *options]
    environment = os.environ | {"PRETEXT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(wanted: int, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for run in runs() if tracking_database().exists() else []:
            if len(connect_tracking()[0].get_metric_history(run.info.run_id, "loss")) >= wanted:
                return
        time.sleep(0.2)
    raise AssertionError(f"no {wanted} points in {seconds} s")


@pytest.mark.slow
def test_sigterm_closes_the_run_as_killed_and_the_same_command_goes_on(tmp_path: Path, home: Path) -> None:
    recipe = recipe_file(tmp_path, steps=400, workers=2)
    first = start(recipe, home)
    wait_for_steps(30)
    first.send_signal(signal.SIGTERM)
    _, complaint = first.communicate(timeout=120)
    assert first.returncode == 143, complaint
    assert "the same command goes on" in complaint
    (run,) = runs()
    assert run.info.status == "KILLED"

    second = start(recipe, home)
    out, complaint = second.communicate(timeout=400)
    assert second.returncode == 0, complaint
    assert "champion" in out
    (run,) = runs()
    assert run.info.status == "FINISHED"
    history = connect_tracking()[0].get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 401))


@pytest.mark.slow
@pytest.mark.parametrize("homes", ["one home", "two homes, one storage"])
def test_two_processes_do_not_train_the_same_run_at_once(tmp_path: Path, home: Path, homes: str) -> None:
    recipe = recipe_file(tmp_path, steps=400)
    storage = f"cluster.storage={tmp_path / 'shared'}"
    first = start(recipe, home, "--set", storage)
    wait_for_steps(5)
    second = start(recipe, home if homes == "one home" else tmp_path / "another", "--set", storage)
    _, complaint = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "is being worked on" in complaint and str(first.pid) in complaint
    _, complaint = first.communicate(timeout=400)
    assert first.returncode == 0, complaint
