"""Several recipes side by side: each trained with the same budget on the same corpus, evaluated by the same probes.

    names of recipes, or of a comparison (a file that lists recipes) -> Recipes -> runs as `pretext run` makes them,
    without registration -> Comparison -> table, figures, one page, an MLflow run above those of the recipes

What was trained and evaluated before is not done again, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, ValidationError

from components.cluster.connect import connect
from components.corpus.corpus import Corpus
from components.evaluation.comparison import SUPERVISED, Comparison, Contender
from components.storage.home import pretext_home
from pipelines import local
from pipelines.config import NAME, Recipe, Section
from pipelines.console import complain, say
from pipelines.explain import WRITTEN
from pipelines.loading import COMPARISONS, RecipeError, find_recipe, load_recipe
from pipelines.plan import Plan, plan
from pipelines.session import StepError, locked, started_by, stoppable
from pipelines.side_by_side import markdown
from pipelines.source_map import SourceMap, YamlError
from ssl_core.errors import PretextError
from ssl_core.tasks import TASKS

if TYPE_CHECKING:
    from components.tracking.tracker import Logged, Tracker

UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
LENGTHS = ("epochs", "steps", "seconds")
"""Keys of `train` that say how long a recipe trains; a budget stands in their place."""


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


@dataclass(frozen=True)
class Compared:
    """The outcome, and where it lies: `folder` has comparison.json, comparison.md, figures and comparison.html."""

    comparison: Comparison
    folder: Path
    seconds: float


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
    said = [] if budget is None else [(f"--budget {budget}", seconds_of(budget))]
    for name in names:
        source = _source_of(name)
        if source is None:
            listed.append(name)
            continue
        found = _checked(source)
        title = found.name
        if found.budget is not None and budget is None:
            said.append(_budget_of(found.budget, source))
        listed += [
            _listed(recipe, Path(source.name), source.where(("recipes", i))) for i, recipe in enumerate(found.recipes)
        ]
    seconds = _agreed(said, overrides)
    timed = ["train.steps=null", f"train.seconds={seconds}"] if seconds else []
    recipes = tuple(load_recipe(name, [*overrides, *timed]) for name in listed)
    _check(recipes)
    return ComparisonRequest(title, seconds, recipes)


def _budget_of(text: str, source: SourceMap) -> tuple[str, float]:
    """(where it is said, seconds) of a comparison's budget."""
    where = source.where(("budget",))
    try:
        return f"{where}: `budget: {text}`", seconds_of(text)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def _agreed(said: Sequence[tuple[str, float]], overrides: Sequence[str]) -> float | None:
    """The one budget; None where none is said.

    Raises:
        RecipeError: two differ, or an override says as well how long to train.
    """
    if not said:
        return None
    where, seconds = said[0]
    for other, length in said[1:]:
        if length != seconds:
            raise RecipeError(f"{where} and {other} differ; say by --budget which of them counts")
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
    """The comparison of that name, a file or a built-in one; a file is one if it has the key `recipes`."""
    path = Path(name) if Path(name).is_file() else COMPARISONS / f"{name}.yaml"
    try:
        source = SourceMap.read(path)
    except (YamlError, OSError):
        return None  # as a recipe it is complained about
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
    """A file beside the comparison, else as the user would name it.

    Args:
        recipe: as the comparison names it.
        path: of the comparison.
        where: file and line at which it does.

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


def _check(recipes: Sequence[Recipe]) -> None:
    """Raises RecipeError where two have one name, or train on unlike things, or are evaluated on other samples."""
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
                    "what is compared trains on one corpus and one kind of device, and is evaluated on the same samples"
                )


def _must_equal(recipe: Recipe, first: Recipe) -> Iterator[tuple[str, Any, Any]]:
    mine, theirs = recipe.plain(), first.plain()
    if SUPERVISED not in (recipe.task_name, first.task_name):
        yield from ((f"corpus.{key}", mine["corpus"][key], theirs["corpus"][key]) for key in ("name", "version"))
    yield from ((f"corpus.{key}", mine["corpus"][key], theirs["corpus"][key]) for key in ("size", "payload"))
    yield from ((f"evaluate.{key}", value, theirs["evaluate"][key]) for key, value in mine["evaluate"].items())
    yield "cluster.gpus", recipe.cluster.gpus, first.cluster.gpus


def compare(request: ComparisonRequest) -> Compared:
    """Train and evaluate all, or go on where it was stopped; then write what they show beside each other.

    Raises:
        StorageError, CorpusError: a corpus cannot be used.
        StepError: another process works on it, samples are missing, or there can be no supervised reference.
        Stopped: by a signal; what was reached is kept.
    """
    began = time.monotonic()
    with stoppable(), connect(request.recipes[0].cluster.address):
        for recipe in _first_of_each_source(request.recipes):
            local.ingest_step(recipe)
        runs = [(recipe, plan(recipe)) for recipe in (*request.recipes, *_reference(request.recipes))]
        key = _key(request.name, runs)
        folder = pretext_home() / "comparisons" / f"{request.name}-{key[:10]}"
        with _record(request, folder, key) as tracker:
            contenders = []
            for number, (recipe, planned) in enumerate(runs, 1):
                say(f"compare {number}/{len(runs)}: {recipe.name}")
                contenders.append(_contend(recipe, planned, tracker))
            comparison = _comparison(request, runs[0][1], contenders)
            answers = {planned.name: _answers(planned) for _, planned in runs}
            _publish(comparison, answers, folder, tracker)
    return Compared(comparison, folder, time.monotonic() - began)


def _first_of_each_source(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Recipes of which each ingests something that those before it do not."""
    chosen, seen = [], set[str]()
    for recipe in recipes:
        sections = (recipe.corpus, recipe.evaluate.train, recipe.evaluate.test)
        new = {repr(section) for section in sections if section and section.sources} - seen
        if new:
            chosen.append(recipe)
            seen |= new
    return chosen


def _reference(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The first recipe with labels for answers, where there are labels and no supervised recipe was named.

    Raises:
        StepError: no such recipe can be made, as where the labelled corpus has too few classes.
    """
    first = recipes[0]
    labelled = first.evaluate.train
    if labelled is None or any(recipe.task_name == SUPERVISED for recipe in recipes):
        return []
    from ssl_core.data.shards import Shards

    classes = len(Shards.open(Corpus.open(labelled.name).shards()).classes.names)
    task = {"name": SUPERVISED, "classes": classes} | max((_views(recipe) for recipe in recipes), key=len)
    whole = first.plain()
    corpus = whole["corpus"] | {"name": labelled.name, "sources": [], "version": None}
    name = f"{first.name[:25]}-supervised"
    own: dict[str, Any] = {"name": name, "task": task, "corpus": corpus, "register": None}
    own["tracking"] = first.tracking  # a plain one has lost its password
    try:
        return [Recipe.model_validate(whole | own)]
    except ValidationError as error:
        why = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
        raise StepError(
            f"the supervised reference cannot train on {labelled.name} (classes: {classes}): {why} "
            "Mend evaluate.train of the recipes, or name a supervised recipe"
        ) from None


def _views(recipe: Recipe) -> dict[str, Any]:
    """The fields that the recipe's task shares with the supervised one: how pictures are cut and changed."""
    task = recipe.pretext_task()
    theirs = {field.name: field.type for field in fields(cast(Any, TASKS[SUPERVISED])) if field.init}
    shared = {f.name: getattr(task, f.name) for f in fields(cast(Any, task)) if theirs.get(f.name) == f.type}
    return {"size": shared["canvas"]} | shared if "canvas" in shared else shared


def _key(name: str, runs: Sequence[tuple[Recipe, Plan]]) -> str:
    """Of the comparison: of one name, the same runs, evaluated in the same way, are the same comparison."""
    parts = [name, *([planned.key, recipe.plain()["evaluate"]] for recipe, planned in runs)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _record(request: ComparisonRequest, folder: Path, key: str) -> Iterator[Tracker]:
    """The comparison's MLflow run, above those of its recipes; one process at a time works on it.

    Raises:
        StepError: another one does.
    """
    from components.tracking.tracker import Tracker

    tracking = request.recipes[0].tracking
    how: dict[str, Any] = {"experiment": tracking.experiment, "uri": tracking.uri, "system_metrics": 0.0}
    with locked(folder.name, folder), Tracker(key, folder, name=folder.name, tags=started_by(), **how) as tracker:
        names = {str(number): recipe.name for number, recipe in enumerate(request.recipes, 1)}
        tracker.params({"budget_seconds": request.budget, "recipes": names})
        yield tracker


def _contend(recipe: Recipe, planned: Plan, above: Tracker) -> Contender:
    """Train and evaluate one; what fails of it is told in the table, and the others go on."""
    who = Contender(recipe.name, recipe.task_name, _in_words(recipe.encoder.build()), planned.name, None)
    try:
        with local.at_work(recipe, planned, above.run_id) as (tracker, lease):
            local.pretrain_step(recipe, planned, tracker, lease)
            evaluation = local.reused_evaluation(recipe, planned, tracker)
            return replace(who, evaluation=evaluation, **_cost(tracker.points(), recipe.train.build().batch_size))
    except PretextError as error:
        complain(f"{recipe.name}: {error}")
        return replace(who, failure=str(error))


def _cost(points: Sequence[Logged], batch: int) -> dict[str, Any]:
    """Steps, computing time, rate and memory from the points of a run's curves."""
    timed = [(point.step, point.metrics["compute_seconds"]) for point in points if "compute_seconds" in point.metrics]
    if not timed:
        return {}
    (first, began), (last, ended) = min(timed), max(timed)
    memory = max(point.metrics.get("peak_memory_mib", 0.0) for point in points)
    rate = (last - first) * batch / (ended - began) if ended > began else 0.0
    return {"steps": last, "seconds": ended, "rate": rate, "memory": int(memory * 2**20)}


def _comparison(request: ComparisonRequest, planned: Plan, contenders: Sequence[Contender]) -> Comparison:
    unit = "GPU-seconds" if request.recipes[0].cluster.gpus else "CPU-seconds"
    return Comparison(request.name, planned.corpus, planned.version, request.budget, unit, tuple(contenders))


def _in_words(spec: Any) -> str:
    """An encoder by its name and what is not as in its paper."""
    values = {
        f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "name" and getattr(spec, f.name) != f.default
    }
    return ", ".join([spec.name, *(f"{name} {value}" for name, value in values.items())])


def _publish(comparison: Comparison, answers: Mapping[str, bytes], folder: Path, tracker: Tracker) -> None:
    """Into the comparison's folder and its MLflow run; answers: run -> PNG."""
    from components.reports.comparison_figures import draw
    from components.reports.comparison_report import write_comparison

    figures, table = draw(comparison), markdown(comparison)
    for name, png in figures.items():
        tracker.figure(name, png)
        local.replace_bytes(folder / f"{name}.png", png)
    tracker.records("comparison", comparison.records())
    before, metrics = tracker.points(), comparison.metrics()
    if not before or before[-1].metrics != metrics:  # a step that is there keeps its values
        tracker.point(len(before), time.time_ns() // 1_000_000, metrics)
    tracker.tag({"mlflow.note.content": table})
    page = write_comparison(comparison, figures, answers)
    tracker.html("comparison", page)
    for name, text in (("html", page), ("md", table), ("json", comparison.to_json())):
        local.replace_text(folder / f"comparison.{name}", text)


def _answers(planned: Plan) -> bytes:
    """What the task saw and answered: the figure that evaluating the run has left in its folder."""
    from components.tracking.tracker import logged_copy

    path = logged_copy(planned.folder, "figures/answers.png")
    return path.read_bytes() if path.is_file() else b""
