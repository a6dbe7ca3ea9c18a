"""Loads a recipe by its name: merged over its base, overridden by --set, and checked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pipelines.config import Recipe
from pipelines.explain import explain
from pipelines.source_map import SourceMap, YamlError
from ssl_core.errors import InputError, user_message

RECIPES = Path(__file__).parent / "recipes"
COMPARISONS = Path(__file__).parent / "comparisons"
"""Lists of recipes for `pretext compare`."""


class RecipeError(InputError):
    """A recipe that cannot run; the message says what, where and how to mend it, one problem per line."""

    exit_status = 2


def find_recipe(name: str, folder: Path = Path()) -> Path:
    """The path of a recipe: a file relative to `folder`, or one that comes with the package.

    Raises:
        RecipeError: there is neither; the message suggests the nearest name.
    """
    path = folder / name
    if path.is_file():
        return path
    built_in = {p.stem: p for p in sorted(RECIPES.glob("*.yaml"))}
    if name in built_in:
        return built_in[name]
    if (COMPARISONS / f"{name}.yaml").is_file():
        raise RecipeError(f"{name} is a comparison of recipes; run it with `pretext compare {name}`")
    near = difflib.get_close_matches(path.stem, built_in, 1)
    hint = f"did you mean {near[0]}?" if near else f"built-in recipes: {', '.join(built_in)}"
    raise RecipeError(f"{name}: no such recipe file, and no built-in recipe of that name; {hint}")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        name: file or built-in name.
        overrides: `section.key=value` assignments, applied in order.

    Raises:
        RecipeError: every problem, one per line, each with its file and line.
    """
    path = find_recipe(name)
    try:
        source = read_recipe(path)
        for assignment in overrides:
            source.override(assignment)
        if "base" in source.data:
            raise YamlError(f"{source.where(('base',))}: only a recipe file can name a `base`; write one, and run it")
    except (YamlError, OSError) as error:
        raise RecipeError(user_message(error) or str(error)) from None
    try:
        return Recipe.model_validate(source.data)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, source))) from None


def read_recipe(path: Path, above: tuple[Path, ...] = ()) -> SourceMap:
    """The keys of a recipe over those of its `base`, which may have a base itself.

    Args:
        path: the recipe's file.
        above: the files whose base this one is.

    Raises:
        YamlError, OSError: a file is unreadable, or not what a recipe can be.
        RecipeError: there is no such base, or a recipe would be its own base.
    """
    source = SourceMap.read(path)
    if "base" not in source.data:
        return source
    where, name = source.where(("base",)), source.data.pop("base")
    if not isinstance(name, str):
        raise RecipeError(f"{where}: `base` is {name!r}: write the name of a built-in recipe, or a file")
    try:
        base = find_recipe(name, path.parent)
    except RecipeError as error:
        raise RecipeError(f"{where}: base: {error}") from None
    chain = (*above, path)
    if any(base.samefile(other) for other in chain):
        shown = ", whose base is ".join(map(str, (*chain, base)))
        raise RecipeError(f"{where}: a recipe cannot be its own base: {shown}")
    return source.over(read_recipe(base, chain))
