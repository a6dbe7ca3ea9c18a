"""`pretext compare`: which recipes may stand side by side, and what is left of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_local import recipe_file, runs

from components.corpus import pretext_home
from pipelines.compare import compare, load, seconds_of
from pipelines.config import COMPARISONS, RecipeError, load_recipe
from pipelines.side_by_side import markdown


@pytest.mark.parametrize(("text", "seconds"), [("100s", 100), ("90", 90), ("1.5m", 90), ("2h", 7200), ("10min", 600)])
def test_a_budget_is_a_length_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "0s", "-5s", "5 parsecs", "1e3"])
def test_any_other_budget_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="such as 100s, 10m or 2h"):
        seconds_of(text)


@pytest.mark.parametrize("name", sorted(path.stem for path in COMPARISONS.glob("*.yaml")))
def test_the_built_in_comparisons_can_be_made(name: str) -> None:
    asked = load([name])
    assert asked.budget == 100 and len(asked.recipes) > 10
    assert all(recipe.train.build().seconds == 100 and recipe.train.build().steps is None for recipe in asked.recipes)
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
    elsewhere = variant(tmp_path, "third", tiny="small")
    with pytest.raises(RecipeError, match=r"third and first cannot be compared: corpus\.name is small and tiny"):
        load([first, elsewhere])


def test_a_comparison_file_lists_recipes_beside_it_and_its_wrong_keys_are_named_with_their_line(tmp_path: Path) -> None:
    variant(tmp_path, "first")
    listed = tmp_path / "all.yaml"
    listed.write_text("name: all\nbudget: 1m\nrecipes:\n  - first.yaml\n")
    asked = load([str(listed)])
    assert (asked.name, asked.budget, [recipe.name for recipe in asked.recipes]) == ("all", 60, ["first"])
    assert load([str(listed)], "5s").budget == 5
    listed.write_text("name: all\nbudgets: 1m\nrecipes: [first.yaml]\n")
    with pytest.raises(RecipeError, match=r"all\.yaml:2: `budgets`.*name, budget, recipes"):
        load([str(listed)])
    listed.write_text("name: all\nrecipes: []\n")
    with pytest.raises(RecipeError, match=r"all\.yaml:2: `recipes`"):
        load([str(listed)])
    with pytest.raises(RecipeError, match="digits-al: no such recipe"):
        load(["digits-al"])
    with pytest.raises(RecipeError, match="run it with `pretext compare digits-all`"):
        load_recipe("digits-all")


@pytest.mark.usefixtures("ray_cluster")
def test_a_comparison_judges_all_but_what_fails_and_trains_nothing_that_is_trained(tmp_path: Path) -> None:
    bad = variant(tmp_path, "bad", **{"lr: 0.05": "lr: 1.0e+30"})
    rotation = variant(tmp_path, "turned")
    vae = variant(
        tmp_path, "coded", **{"rotation, canvas: 16, flip: false": "variational_autoencoder, canvas: 16, latent: 4"}
    )
    done = compare(load([rotation, bad, vae], "4s"))
    comparison = done.comparison
    first, failed, *others = comparison.contenders
    others = [first, *others]
    assert failed.judgement is None and "became NaN" in failed.failure
    assert "bad failed:" in markdown(comparison)
    assert [(one.recipe, one.task, one.failure) for one in others] == [
        ("turned", "rotation", ""),
        ("coded", "variational_autoencoder", ""),
        ("turned-supervised", "supervised", ""),
    ]
    assert all(one.steps > 0 and one.rate > 0 and one.memory > 1 << 26 for one in others)
    assert all(1 < one.seconds < 8 for one in others)
    files = {path.name for path in done.folder.iterdir()} - {"tracking", ".lock"}
    assert files == {"comparison.html", "comparison.json", "comparison.md", "probes.png"}
    assert (done.folder / "comparison.md").read_text() == markdown(comparison)
    assert len(json.loads((done.folder / "comparison.json").read_text())["table"]) == len(comparison.lines())

    parent = next(run for run in runs() if run.info.run_name == done.folder.name)
    children = [run for run in runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name for run in children} == {one.run for one in comparison.contenders}
    assert parent.data.metrics["turned/linear"] == comparison.metrics()["turned/linear"]
    assert parent.info.status == "FINISHED"

    before = {path: path.stat().st_mtime_ns for path in (pretext_home() / "runs").glob("*/judgement.json")}
    again = compare(load([rotation, vae], "4s")).comparison
    assert list(again.contenders) == others
    after = {path: path.stat().st_mtime_ns for path in (pretext_home() / "runs").glob("*/judgement.json")}
    assert len(before) == 3 and before.items() <= after.items()
