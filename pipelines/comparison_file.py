"""Which recipes to compare, and with which budget; a comparison is a file that lists recipes.

names, --budget, --set -> ComparisonRequest
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from components.evaluation.comparison import SUPERVISED
from pipelines.config import NAME, Recipe, Section
from pipelines.explain import WRITTEN
from pipelines.loading import COMPARISONS, RecipeError, find_recipe, load_recipe
from pipelines.source_map import SourceMap, YamlError

UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
LENGTHS = ("epochs", "steps", "seconds")
"""Keys of `train` that say how long a recipe trains; a budget replaces them."""


class ComparisonFile(Section):
    """A comparison as a file: recipes, and the budget of each."""

    name: str = Field(pattern=NAME, description="lower case, digits, dashes")
    budget: str | None = Field(None, description="computing time of each training, such as 100s, 10m or 2h")
    recipes: tuple[str, ...] = Field(min_length=1, description="names of recipes, or files beside this one")


@dataclass(frozen=True)
class ComparisonRequest:
    """What is to be compared.

    Attributes:
        name: of the comparison.
        budget: seconds of computing time for each; None keeps each recipe's own length.
        recipes: with that budget.
    """

    name: str
    budget: float | None
    recipes: tuple[Recipe, ...]


def seconds_of(text: str) -> float:
    """ "100s", "10m", "2h" or a number of seconds.

    Raises:
        RecipeError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    seconds = float(match[1]) * UNITS.get(match[2], 0) if match else 0.0
    if not 0 < seconds < math.inf:
        raise RecipeError(f"budget {text!r}: write a length of time above 0, such as 100s, 10m or 2h")
    return seconds


def load(names: Sequence[str], budget: str | None = None, overrides: Sequence[str] = ()) -> ComparisonRequest:
    """Recipes by name or file, in order; a comparison stands for the recipes that it lists.

    Raises:
        RecipeError: one is missing or wrong, or they cannot be compared.
    """
    listed: list[str] = []
    title = "comparison"
    budgets = [] if budget is None else [(f"--budget {budget}", seconds_of(budget))]
    for name in names:
        source = _source_of(name)
        if source is None:
            listed.append(name)
            continue
        file = _checked(source)
        title = file.name
        if file.budget is not None and budget is None:
            budgets.append(_budget_of(file.budget, source))
        listed += [
            _listed(recipe, Path(source.name), source.where(("recipes", i))) for i, recipe in enumerate(file.recipes)
        ]
    seconds = _one_budget(budgets, overrides)
    timed = ["train.steps=null", f"train.seconds={seconds}"] if seconds else []
    recipes = tuple(load_recipe(name, [*overrides, *timed]) for name in listed)
    _require_comparable(recipes)
    return ComparisonRequest(title, seconds, recipes)


def _budget_of(text: str, source: SourceMap) -> tuple[str, float]:
    """(where it is given, seconds) of a comparison's budget."""
    where = source.where(("budget",))
    try:
        return f"{where}: `budget: {text}`", seconds_of(text)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def _one_budget(budgets: Sequence[tuple[str, float]], overrides: Sequence[str]) -> float | None:
    """The budget that all give; None where none is given.

    Raises:
        RecipeError: two differ, or an override also says how long to train.
    """
    if not budgets:
        return None
    where, seconds = budgets[0]
    for other, length in budgets[1:]:
        if length != seconds:
            raise RecipeError(f"{where} and {other} differ; choose one with --budget")
    own = SourceMap("--set")
    try:
        for assignment in overrides:
            own.override(assignment)
    except YamlError as error:
        raise RecipeError(str(error)) from None
    train = own.data.get("train")
    for key in LENGTHS:
        if isinstance(train, dict) and train.get(key) is not None:
            raise RecipeError(
                f"{where} and {own.where(('train', key))} both say how long each trains; drop one of them"
            )
    return seconds


def _source_of(name: str) -> SourceMap | None:
    """The comparison of that name, a file or a built-in one; None for a file without the key `recipes`."""
    path = Path(name) if Path(name).is_file() else COMPARISONS / f"{name}.yaml"
    try:
        source = SourceMap.read(path)
    except (YamlError, OSError):
        return None  # reading it as a recipe says what is wrong
    return source if "recipes" in source.data else None


def _checked(source: SourceMap) -> ComparisonFile:
    try:
        return ComparisonFile.model_validate(source.data)
    except ValidationError as error:
        keys = ", ".join(ComparisonFile.model_fields)
        lines = [
            f"{source.where(problem['loc'])}: `{'.'.join(map(str, problem['loc']))}`: "
            f"{WRITTEN.get(problem['type'], problem['msg'])}; "
            f"a comparison has the keys {keys}"
            for problem in error.errors()
        ]
        raise RecipeError("\n".join(lines)) from None


def _listed(recipe: str, path: Path, where: str) -> str:
    """A listed recipe as `load_recipe` takes it: a file beside the comparison, else the name as it is.

    Args:
        recipe: as the comparison names it.
        path: of the comparison.
        where: file and line of that name.

    Raises:
        RecipeError: there is no such recipe, or it is a comparison.
    """
    near = path.parent / recipe
    name = str(near) if near.is_file() else recipe
    if _source_of(name) is not None:
        raise RecipeError(f"{where}: {recipe} is a comparison; list its recipes here instead")
    try:
        find_recipe(name)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return name


def _require_comparable(recipes: Sequence[Recipe]) -> None:
    """Raises RecipeError where two have the same name, train on different corpora, or are evaluated differently."""
    first, seen = recipes[0], set[str]()
    for recipe in recipes:
        if recipe.name in seen:
            raise RecipeError(
                f"two of the recipes have the name {recipe.name}; "
                "if they are one recipe, name it once, else give one of them another name"
            )
        seen.add(recipe.name)
        for what, mine, theirs in _must_equal(recipe, first):
            if mine != theirs:
                raise RecipeError(
                    f"{recipe.name} and {first.name} cannot be compared: {what} is {mine} and {theirs}; "
                    "compared recipes train on one corpus and one kind of device, and are evaluated on the same samples"
                )


def _must_equal(recipe: Recipe, first: Recipe) -> Iterator[tuple[str, Any, Any]]:
    mine, theirs = recipe.plain(), first.plain()
    if SUPERVISED not in (recipe.task_name, first.task_name):
        yield from ((f"corpus.{key}", mine["corpus"][key], theirs["corpus"][key]) for key in ("name", "version"))
    yield from ((f"corpus.{key}", mine["corpus"][key], theirs["corpus"][key]) for key in ("size", "payload"))
    yield from ((f"evaluate.{key}", value, theirs["evaluate"][key]) for key, value in mine["evaluate"].items())
    yield "cluster.gpus", recipe.cluster.gpus, first.cluster.gpus
