"""The recipe: one YAML file, checked before anything runs, answered in one sentence when it is wrong.

The sections `task`, `encoder`, `optim`, `train`, `runtime` and `corpus.limits` mirror the frozen dataclasses of
ssl_core field by field, so a new task or option is in the recipe, in `pretext schema` and in `pretext tasks` the moment
it exists.

    YAML over its base + --set  ->  check(...)  ->  Recipe  ->  .run() -> ssl_core.train.run.Run
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import operator
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_serializer,
    model_validator,
)

from components.cluster.connect import Cluster
from components.corpus.corpus import CorpusError, corpus_uri
from components.evaluation.evaluate import Settings
from components.steps.context import CorpusSpec, Registration, RunSpec, Tracking
from components.storage.home import at_home
from components.tracking.errors import shown
from pipelines.source_map import SourceMap, YamlError
from ssl_core.data.decode import Limits, SampleFormat
from ssl_core.errors import InputError, told
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.task import PretextTask
from ssl_core.tasks import TASKS
from ssl_core.train.run import Optim, Run, Runtime, Train

RECIPES = Path(__file__).parent / "recipes"
COMPARISONS = Path(__file__).parent / "comparisons"
"""Lists of recipes for `pretext compare`."""

NAME = r"^[a-z0-9]([a-z0-9-]{0,34}[a-z0-9])?$"
"""Of a recipe or a comparison: what may name a run, a folder and a Kubernetes object."""
BASE = "the recipe that this one starts from: the name of a built-in one, or a file as seen from this one"

WRITTEN = {
    "tuple_type": "write a list, [a, b]",
    "model_type": "write its keys below it, indented",
    "model_attributes_type": "write its keys below it, indented",
    "string_type": "write text; quote what YAML takes for something else",
    "int_parsing": "write a whole number, such as 100",
    "int_from_float": "write a whole number, such as 100",
    "float_parsing": "write a number, such as 0.1",
}
"""How a value of the wrong type should have been written, by pydantic's name for the error."""


WATCHING = ("checkpoint_every", "keep", "log_every", "check_every", "collapse_std", "collapse_rank", "collapse_checks")
MOVED = {f"train.{name}": f"runtime.{name}" for name in (*WATCHING, "reader_threads")}
"""Keys of earlier recipes -> where they are now."""


class RecipeError(InputError):
    """A recipe that cannot run; the message says what, where and how to mend it, one problem a line."""

    exit_status = 2


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, data: Any) -> Any:
        """YAML reads yes, no, on and off as switches; `clip: off` must not come to mean 0.0."""
        for name, value in data.items() if isinstance(data, dict) else ():
            kind = cls.model_fields[name].annotation if name in cls.model_fields else None
            kinds = {kind, *typing.get_args(kind)}
            if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
                nothing = ", or null for none" if type(None) in kinds else ""
                raise InputError(f"{name} is {str(value).lower()}, a switch; write a number{nothing}")
        return data


class Mirror(Section):
    """A section with the fields of a frozen dataclass; `build` gives the dataclass."""

    _mirrors: typing.ClassVar[type]

    @model_validator(mode="after")
    def _dataclass_accepts(self) -> Mirror:
        self.build()
        return self

    def build(self) -> Any:
        """The dataclass; its own `__post_init__` checks the values.

        Raises:
            InputError: the dataclass refuses a value.
        """
        names = {f.name for f in dataclasses.fields(self._mirrors) if f.init}
        return self._mirrors(**{name: getattr(self, name) for name in names})


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> its line in the `Attributes:` section of the class docstring."""
    doc = (cls.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(
        r"^\s+(\w+)(?: \([^)]*\))?: (.+?)(?=^\s+\w+(?: \([^)]*\))?: |\Z)", doc, re.MULTILINE | re.DOTALL
    )
    return {name: " ".join(text.split()) for name, text in entries}


def mirror(cls: type, **extra: Any) -> type[Mirror]:
    """The recipe section whose keys are the fields of the dataclass `cls`."""
    hints, docs = typing.get_type_hints(cls, include_extras=True), field_docs(cls)
    fields: dict[str, Any] = dict(extra)
    for f in dataclasses.fields(cls):
        if f.init:
            default = (
                {"default_factory": f.default_factory} if f.default is dataclasses.MISSING else {"default": f.default}
            )
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            info = Field(description=docs.get(f.name)) if required else Field(description=docs.get(f.name), **default)
            fields[f.name] = (hints[f.name], info)
    model = create_model(cls.__name__, __base__=Mirror, __doc__=(cls.__doc__ or "").split("\n")[0], **fields)
    model._mirrors = cls
    return cast(type[Mirror], model)


TASK_SECTIONS = {name: mirror(cls, name=(Literal[name], ...)) for name, cls in TASKS.items()}
if typing.TYPE_CHECKING:
    TaskSection = Mirror
else:
    TaskSection = Annotated[functools.reduce(operator.or_, TASK_SECTIONS.values()), Field(discriminator="name")]


class LabelledSection(Section):
    """A labelled corpus for evaluating; its images never train the encoder."""

    name: str = Field(description="corpus name, path or URI")
    sources: tuple[str, ...] = Field(
        (), description="what `pretext run` ingests into it first; {home} is the pretext home"
    )
    labels: Literal["parent"] = Field("parent", description="label = name of the folder that holds the file")


class CorpusSection(Section):
    """The unlabelled corpus, how its samples are kept, and what is ingested into it first."""

    name: str = Field(description="corpus name (below the pretext home), path or URI")
    sources: tuple[str, ...] = Field(
        (), description="folders, globs, tars, Parquet files or URIs that `pretext run` ingests first"
    )
    column: str | None = Field(None, description="column of image bytes in Parquet sources")
    version: int | None = Field(None, ge=0, description="train on this version; newest by default")
    size: int = Field(256, ge=1, le=8192, description="short side of the stored images, pixels")
    payload: Literal["raw", "jpeg"] = Field("raw", description="raw: fastest; jpeg: a fifth of the bytes")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality of the `jpeg` payload")
    limits: mirror(Limits) = Field(default_factory=lambda: mirror(Limits)(), description="what a media file may cost")  # type: ignore[valid-type]

    def sample_format(self) -> SampleFormat:
        """How images are stored."""
        return SampleFormat(size=self.size, payload=self.payload, quality=self.quality)


def _well_named(section: Any) -> Any:
    try:
        corpus_uri(section.name)
    except CorpusError as error:
        raise InputError(f"name: {error}") from None
    return section


class EvaluateSection(mirror(Settings)):  # type: ignore[misc]
    """How the encoder is evaluated."""

    train: Annotated[LabelledSection, AfterValidator(_well_named)] | None = Field(
        None, description="labelled images that fit the probes; none: label-free measures only"
    )
    test: Annotated[LabelledSection, AfterValidator(_well_named)] | None = Field(
        None, description="labelled images that score the probes"
    )
    factors: str | None = Field(
        None,
        min_length=1,
        description="Parquet file of what is known of the evaluated images, such as hue: column `file` is the end of "
        "an image's URI, the others are factors; {home} is the pretext home",
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> EvaluateSection:
        if (self.train is None) != (self.test is None):
            raise InputError("train and test come together: give both labelled corpora or neither")
        return self


class RegisterSection(Section):
    """The registered model."""

    model: str = Field(
        pattern=r"^([^/:%'\"{}]|\{name\})+$",
        description="name in the MLflow registry; {name} is the name of the recipe",
    )
    margin: float = Field(
        0.0,
        description="a new champion's gain must exceed this, at the lower confidence bound (percentage points)",
    )


class TrackingSection(Section):
    """Where runs are recorded."""

    uri: str | None = Field(
        None, description="MLflow server; none: MLFLOW_TRACKING_URI, else SQLite in the pretext home"
    )
    experiment: str = Field("pretext", description="MLflow experiment")

    @field_serializer("uri")
    def _without_secrets(self, uri: str | None) -> str | None:
        return uri and shown(uri)


class Recipe(Section):
    """One pretraining, from media to a registered encoder."""

    name: str = Field(
        pattern=NAME,
        description="short name: lower case, digits, dashes; at most 36",
    )
    corpus: Annotated[CorpusSection, AfterValidator(_well_named)]
    task: TaskSection
    encoder: mirror(EncoderSpec)  # type: ignore[valid-type]
    optim: mirror(Optim)  # type: ignore[valid-type]
    train: mirror(Train)  # type: ignore[valid-type]
    runtime: mirror(Runtime) = Field(default_factory=lambda: mirror(Runtime)())  # type: ignore[valid-type]
    cluster: mirror(Cluster) = Field(default_factory=lambda: mirror(Cluster)())  # type: ignore[valid-type]
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    register_: RegisterSection | None = Field(None, alias="register")
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="before")
    @classmethod
    def _model_after_recipe(cls, data: Any) -> Any:
        """Write the recipe's name where the registered model says {name}."""
        match data:
            case {"name": str(name), "register": {"model": str(model)} as register}:
                return data | {"register": register | {"model": model.replace("{name}", name)}}
        return data

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        for name, wanted in self.pretext_task().sample.items():
            if wanted.modality == "image" and max(wanted.shape[1:]) > self.corpus.size:
                raise InputError(
                    f"task.canvas asks for {name} of {wanted.shape[1]}x{wanted.shape[2]} pixels, but corpus.size "
                    f"stores a short side of {self.corpus.size}; raise corpus.size or lower task.canvas"
                )
        pieces = self.cluster.workers * self.train.accumulate
        if self.train.batch_size % pieces:
            raise InputError(
                f"train.batch_size {self.train.batch_size} cannot be cut into {pieces} equal parts (cluster.workers x "
                "train.accumulate); change one of them"
            )
        return self

    def run(self) -> Run:
        """What ssl_core trains."""
        return Run(
            task=self.pretext_task(),
            encoder=self.encoder.build(),
            optim=self.optim.build(),
            train=self.train.build(),
            runtime=self.runtime.build(),
        )

    def spec(self) -> RunSpec:
        """What the steps are told: the recipe as plain values."""
        probes = [
            CorpusSpec(section.name, _placed(section.sources), labels=section.labels) if section else None
            for section in (self.evaluate.train, self.evaluate.test)
        ]
        corpus, registered = self.corpus, self.register_
        return RunSpec(
            name=self.name,
            task_name=self.task_name,
            run=self.run(),
            corpus=CorpusSpec(corpus.name, _placed(corpus.sources), corpus.version, column=corpus.column),
            probe_train=probes[0],
            probe_test=probes[1],
            sample_format=corpus.sample_format(),
            limits=corpus.limits.build(),
            settings=self.evaluate.build(),
            factors=at_home(self.evaluate.factors) if self.evaluate.factors else None,
            cluster=self.cluster.build(),
            registration=Registration(registered.model, registered.margin) if registered else None,
            tracking=Tracking(self.tracking.uri, self.tracking.experiment),
            recipe=self.plain(),
            recipe_text=yaml.safe_dump(self.plain(), sort_keys=False),
        )

    @property
    def task_name(self) -> str:
        """Key of the task in TASKS."""
        return str(self.task.name)  # type: ignore[attr-defined]

    def pretext_task(self) -> PretextTask:
        """The task's dataclass."""
        return cast(PretextTask, self.task.build())

    def plain(self) -> dict[str, Any]:
        """The whole recipe with its defaults, as JSON data."""
        return self.model_dump(mode="json", by_alias=True)


def _placed(sources: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(at_home, sources))


def find_recipe(name: str, folder: Path = Path()) -> Path:
    """A file, as seen from `folder`, or the name of a recipe that comes with the package.

    Raises:
        RecipeError: there is neither; the nearest name is offered.
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
    """Read, override and check a recipe.

    Args:
        name: file or built-in name.
        overrides: `section.key=value` assignments, applied in order.

    Raises:
        RecipeError: every problem, a line each, with file and line.
    """
    path = find_recipe(name)
    try:
        source = read_recipe(path)
        for assignment in overrides:
            source.override(assignment)
        if "base" in source.data:
            raise YamlError(f"{source.where(('base',))}: a base is named by a recipe's file; run that recipe instead")
    except (YamlError, OSError) as error:
        raise RecipeError(told(error) or str(error)) from None
    try:
        return Recipe.model_validate(source.data)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, source))) from None


def read_recipe(path: Path, above: tuple[Path, ...] = ()) -> SourceMap:
    """The keys of a recipe over those of its `base`, and of the base's base.

    Args:
        path: the recipe's file.
        above: the files whose base this one is.

    Raises:
        YamlError, OSError: a file is unreadable, or not what a recipe can be.
        RecipeError: there is no such base, or a recipe would be the base of itself.
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


def explain(error: ValidationError, source: SourceMap) -> Iterator[str]:
    """One sentence for each problem: where, what, and the nearest right key."""
    for problem in error.errors():
        path = tuple(part for i, part in enumerate(problem["loc"]) if not _is_union_tag(problem["loc"], i))
        if problem["type"].startswith("union_tag"):
            path = (*path, "name")
        message = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "value_error":  # a dataclass speaks for its section and names the key in its sentence
            yield f"{source.where(_named_in(message, path, source))}: {message}"
        else:
            yield f"{source.where(path)}: {_sentence(problem, '.'.join(map(str, path)), source.data)}"


def _named_in(message: str, section: tuple[str | int, ...], source: SourceMap) -> tuple[str | int, ...]:
    """Path of the first key that the message names, as `section.key` or, within the section, as `key`."""
    for first, second in re.findall(r"\b([a-z_]+)(?:\.([a-z_]+))?", message):
        for path in ((first, second), (*section, second), (*section, first)):
            if path in source.origins:
                return path
    return section


def _is_union_tag(loc: tuple[str | int, ...], i: int) -> bool:
    # pydantic puts the chosen task's name between `task` and the key
    return i == 1 and loc[0] == "task" and loc[1] in TASKS


def _sentence(problem: Any, dotted: str, data: dict[str, Any]) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden" and dotted in MOVED:
        return f"`{dotted}` is now `{MOVED[dotted]}`"
    if kind == "extra_forbidden":
        return f"`{dotted}` is no key of a recipe; {_nearest_key(dotted, data)}"
    if kind == "missing":
        return f"`{dotted}` is missing; add it"
    if kind in WRITTEN:
        shown = "empty" if given is None else repr(given)
        return f"`{dotted}` is {shown}: {WRITTEN[kind]}"
    if kind == "union_tag_not_found":
        return f"`{dotted}` is missing; one of {', '.join(TASKS)}"
    if kind == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        return f"`{dotted}` is {tag!r}; {_nearest(tag, list(TASKS))}"
    message = str(problem["msg"])
    return f"`{dotted}` is {given!r}: {message[0].lower()}{message[1:]}"


def keys_of(model: Any, prefix: str = "", task: str | None = None) -> Iterator[str]:
    """Every dotted key of the schema; below `task` those of the named task, or of all."""
    for name, info in model.model_fields.items():
        dotted = f"{prefix}{info.alias or name}"
        yield dotted
        for inner in _sections_in(info.annotation):
            if inner not in TASK_SECTIONS.values() or task is None or inner is TASK_SECTIONS.get(task):
                yield from keys_of(inner, f"{dotted}.", task)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections_in(argument)


def _nearest_key(dotted: str, data: dict[str, Any]) -> str:
    """The nearest key of the same section; else the same word in another section; else what the section holds."""
    chosen = data.get("task")
    known = ["base", *keys_of(Recipe, task=chosen.get("name") if isinstance(chosen, dict) else None)]
    section, _, word = dotted.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    near = difflib.get_close_matches(word, siblings, 1, cutoff=0.6)
    if near:
        return f"did you mean `{siblings[near[0]]}`?"
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    near = difflib.get_close_matches(word, elsewhere, 1, cutoff=0.75)
    if near:
        return f"did you mean `{elsewhere[near[0]]}`?"
    return f"`{section}` takes {', '.join(siblings)}" if section else f"the sections are {', '.join(siblings)}"


def _nearest(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(choices)}"


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors; a file that names a base may leave out any key."""
    whole = Recipe.model_json_schema(by_alias=True)
    part = Recipe.model_json_schema(by_alias=True, ref_template="#/$defs/part-of-{model}")
    part = json.loads(json.dumps(part), object_hook=_optional)
    part["properties"] = {"base": {"type": "string", "description": BASE}} | part["properties"]
    sections = whole.pop("$defs") | {f"part-of-{name}": section for name, section in part.pop("$defs").items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pretext recipe", "type": "object"}
    return head | {"if": {"required": ["base"]}, "then": part, "else": whole, "$defs": sections}


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the keys that it demands; what is left of a section may then fit several tasks."""
    schema = {key: value for key, value in schema.items() if key not in ("required", "discriminator")}
    return {("anyOf" if key == "oneOf" else key): value for key, value in schema.items()}
