"""`pretext compare`: which recipes can be compared, and what a comparison leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from small_corpus import make_corpus
from test_local import recipe_file, runs

from components.evaluation.comparison import Comparison, Contender
from components.reports.tables import comparison_note
from components.steps.context import StepError, resolve
from components.steps.ingest import ingest_corpora
from components.steps.progress import Silent
from components.storage.home import pretext_home
from components.tracking.errors import TrackingError
from components.training.run_folder import RunFolder
from pipelines.compare import Compared, _reference, _train_and_evaluate, compare
from pipelines.comparison_file import load, seconds_of
from pipelines.loading import COMPARISONS, RecipeError, load_recipe
from pipelines.side_by_side import show_compared


@pytest.mark.parametrize(("text", "seconds"), [("100s", 100), ("90", 90), ("1.5m", 90), ("2h", 7200), ("10min", 600)])
def test_a_budget_is_a_length_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "0s", "-5s", "5 parsecs", "1e3", "9" * 400 + "h"])
def test_any_other_budget_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="such as 100s, 10m or 2h"):
        seconds_of(text)


@pytest.mark.parametrize("name", sorted(path.stem for path in COMPARISONS.glob("*.yaml")))
def test_the_built_in_comparisons_can_be_made(name: str) -> None:
    request = load([name])
    assert request.budget == 100 and len(request.recipes) > 10
    assert all(recipe.train.build().seconds == 100 and recipe.train.build().steps is None for recipe in request.recipes)
    assert load([name], "2m").recipes[0].train.build().seconds == 120


def variant(folder: Path, name: str, **changes: str) -> str:
    """The tiny recipe under another name, with some texts of it replaced."""
    text = Path(recipe_file(folder, workers=2)).read_text().replace("name: tiny\n", f"name: {name}\n")
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def test_what_would_not_be_a_fair_comparison_is_refused(tmp_path: Path) -> None:
    first = variant(tmp_path, "first")
    with pytest.raises(RecipeError, match="two of the recipes have the name first"):
        load([first, first])
    other = variant(tmp_path, "second", draws="seed: 3\n  draws")
    with pytest.raises(RecipeError, match=r"second and first cannot be compared: evaluate\.seed is 3 and 0"):
        load([first, other])
    wide = variant(tmp_path, "wide", workers="gpus: true, workers")
    with pytest.raises(RecipeError, match=r"wide and first cannot be compared: cluster\.gpus is True and False"):
        load([first, wide])
    elsewhere = variant(tmp_path, "third", tiny="small")
    with pytest.raises(RecipeError, match=r"third and first cannot be compared: corpus\.name is small and tiny"):
        load([first, elsewhere])


def test_a_comparison_file_lists_recipes_beside_it_and_its_wrong_keys_are_named_with_their_line(tmp_path: Path) -> None:
    variant(tmp_path, "first")
    listed = tmp_path / "all.yaml"
    listed.write_text("name: all\nbudget: 1m\nrecipes:\n  - first.yaml\n")
    request = load([str(listed)])
    assert (request.name, request.budget, [recipe.name for recipe in request.recipes]) == ("all", 60, ["first"])
    assert load([str(listed)], "5s").budget == 5
    listed.write_text("name: all\nbudgets: 1m\nrecipes: [first.yaml]\n")
    with pytest.raises(RecipeError, match=r"all\.yaml:2: `budgets`.*name, budget, recipes"):
        load([str(listed)])
    listed.write_text("name: all\nrecipes: []\n")
    with pytest.raises(RecipeError, match=r"all\.yaml:2: `recipes`"):
        load([str(listed)])
    listed.write_text("name: all\nrecipes: first.yaml\n")
    with pytest.raises(RecipeError, match=r"all\.yaml:2: `recipes`: write a list, \[a, b\];"):
        load([str(listed)])
    with pytest.raises(RecipeError, match="digits-al: no such recipe"):
        load(["digits-al"])
    with pytest.raises(RecipeError, match="run it with `pretext compare digits-all`"):
        load_recipe("digits-all")


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ("firts.yaml", r"all\.yaml:4: firts\.yaml: no such recipe file"),
        ("digits-al", r"all\.yaml:4: digits-al: no such recipe file.*did you mean"),
        ("digits-all", r"all\.yaml:4: digits-all is a comparison; list its recipes"),
        ("all.yaml", r"all\.yaml:4: all\.yaml is a comparison; list its recipes"),
    ],
)
def test_what_a_comparison_lists_wrongly_is_named_with_its_line(tmp_path: Path, recipe: str, complaint: str) -> None:
    variant(tmp_path, "first")
    listed = tmp_path / "all.yaml"
    listed.write_text(f"name: all\nrecipes:\n  - first.yaml\n  - {recipe}\n")
    with pytest.raises(RecipeError, match=complaint):
        load([str(listed)])


@pytest.mark.parametrize("key", ["epochs", "steps", "seconds"])
def test_a_budget_and_an_override_cannot_both_say_how_long_to_train(tmp_path: Path, key: str) -> None:
    first, listed = variant(tmp_path, "first"), tmp_path / "all.yaml"
    with pytest.raises(RecipeError, match=rf"^--budget 4s and --set train\.{key}=3 both say .*drop one of them$"):
        load([first], "4s", [f"train.{key}=3"])
    with pytest.raises(RecipeError, match=r"^--budget 4s and --set train=.* both say"):
        load([first], "4s", [f"train={{{key}: 3}}"])
    listed.write_text("name: all\nbudget: 1m\nrecipes: [first.yaml]\n")
    with pytest.raises(RecipeError, match=rf"all\.yaml:2: `budget: 1m` and --set train\.{key}=3 both say"):
        load([str(listed)], overrides=[f"train.{key}=3"])
    assert load([first], "4s", [f"train.{key}=null"] if key != "epochs" else []).budget == 4


def test_no_budget_is_passed_over_in_silence(tmp_path: Path) -> None:
    variant(tmp_path, "first")
    variant(tmp_path, "second")
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("name: one\nbudget: 1m\nrecipes: [first.yaml]\n")
    two.write_text("name: two\nbudget: 2m\nrecipes: [second.yaml]\n")
    with pytest.raises(RecipeError, match=r"one\.yaml:2: `budget: 1m` and .*two\.yaml:2: `budget: 2m` differ"):
        load([str(one), str(two)])
    assert load([str(one), str(two)], "5s").budget == 5
    with pytest.raises(RecipeError, match="budget ''"):
        load([str(one)], "")
    one.write_text('name: one\nbudget: ""\nrecipes: [first.yaml]\n')
    with pytest.raises(RecipeError, match=r"one\.yaml:2: budget ''"):
        load([str(one)])


def test_the_end_of_a_comparison_says_why_one_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contender = Contender("turned", "rotation", "resnet18", "turned-0123456789", None, failure="the loss became NaN")
    comparison = Comparison("all", "tiny", 1, 4.0, "CPU-seconds", (contender,))
    show_compared(Compared(comparison, RunFolder(str(tmp_path), "all-0123456789"), 2.0), as_json=False)
    assert re.search(r"done in 2 s\n(.*\n)*  turned failed +the loss became NaN\n", capsys.readouterr().out)


def test_a_failure_of_one_recipe_is_recorded_and_a_bug_ends_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path / "corpus")
    spec = load_recipe(variant(tmp_path, "first"), [f"corpus.name={tmp_path / 'corpus'}"]).spec()
    errors = [TrackingError("the server is away"), ValueError("x")]

    def refuse(*arguments: object) -> NoReturn:
        raise errors.pop(0)

    monkeypatch.setattr("pipelines.compare.at_work", refuse)
    parent, context = cast(Any, SimpleNamespace(run_id=None)), resolve(spec)
    assert _train_and_evaluate(context, parent).failure == "the server is away"
    with pytest.raises(ValueError, match="x"):
        _train_and_evaluate(context, parent)


@pytest.mark.usefixtures("ray_cluster")
def test_the_supervised_reference_is_recorded_where_the_others_are(tmp_path: Path) -> None:
    recipe = load_recipe(variant(tmp_path, "first"), ["tracking.uri=https://anna:secret@tracker.example"])
    ingest_corpora(recipe.spec(), Silent())
    (reference,) = _reference([recipe])
    assert (reference.task_name, reference.tracking) == ("supervised", recipe.tracking)

    poor = load_recipe(variant(tmp_path, "poor", **{"/train": "/train/corner", "tiny-train": "poor-train"}))
    ingest_corpora(poor.spec(), Silent())
    with pytest.raises(StepError, match=r"cannot train on poor-train \(classes: 1\): .*at least 2\. Change evaluate"):
        _reference([poor])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_comparison_evaluates_all_but_what_fails_and_trains_nothing_that_is_trained(tmp_path: Path) -> None:
    bad = variant(tmp_path, "bad", **{"lr: 0.05": "lr: 1.0e+30"})
    rotation = variant(tmp_path, "turned")
    vae = variant(
        tmp_path, "coded", **{"rotation, canvas: 16, flip: false": "variational_autoencoder, canvas: 16, latent: 4"}
    )
    done = compare(load([rotation, bad, vae], "4s"))
    comparison = done.comparison
    first, failed, *others = comparison.contenders
    others = [first, *others]
    assert failed.evaluation is None and "became NaN" in failed.failure
    assert "bad failed:" in comparison_note(comparison)
    assert [(one.recipe, one.task, one.failure) for one in others] == [
        ("turned", "rotation", ""),
        ("coded", "variational_autoencoder", ""),
        ("turned-supervised", "supervised", ""),
    ]
    assert all(one.steps > 0 and one.rate > 0 and one.memory > 1 << 26 for one in others)
    assert all(1 < one.seconds < 8 for one in others)
    files = set(done.folder.names()) - {"tracking", "_lease"}
    assert files == {"comparison.html", "comparison.json", "comparison.md", "probes.png"}
    assert (done.folder.read("comparison.md") or b"").decode() == comparison_note(comparison)
    assert len(json.loads(done.folder.read("comparison.json") or b"")["table"]) == len(comparison.lines())

    parent = next(run for run in runs() if run.info.run_name == done.folder.name)
    children = [run for run in runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name for run in children} == {one.run for one in comparison.contenders}
    assert parent.data.metrics["turned/linear"] == comparison.metrics()["turned/linear"]
    assert parent.info.status == "FINISHED"

    before = {path: path.stat().st_mtime_ns for path in (pretext_home() / "runs").glob("*/evaluation.json")}
    again = compare(load([rotation, vae], "4s")).comparison
    assert list(again.contenders) == others
    after = {path: path.stat().st_mtime_ns for path in (pretext_home() / "runs").glob("*/evaluation.json")}
    assert len(before) == 3 and before.items() <= after.items()

    listed = tmp_path / "both.yaml"
    listed.write_text("name: both\nbudget: 4s\nrecipes: [turned.yaml, coded.yaml]\n")
    both = compare(load([str(listed)]))
    path = pretext_home() / "runs" / first.run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for row in evaluation["rows"]:
        row["scores"]["linear"] = [0.5, 0.25, 0.75]
    path.write_text(json.dumps(evaluation))
    for _ in range(2):
        compare(load([str(listed)]))
    values = {run.info.run_name: run.data.metrics.get("turned/linear") for run in runs()}
    assert values[both.folder.name] == 0.5
    names = [name for name in values if name.startswith("comparison-")]
    assert len(names) == 2 and all(values[name] == comparison.metrics()["turned/linear"] for name in names)
