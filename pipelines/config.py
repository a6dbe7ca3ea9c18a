"""The recipe as typed sections: what a YAML file may say, checked before anything runs.

The sections `task`, `encoder`, `optim`, `train`, `runtime` and `corpus.limits` mirror the frozen dataclasses of
ssl_core field by field, so a new task or option is in the recipe, in `pretext schema` and in `pretext tasks` the moment
it exists.

    YAML over its base + --set (loading.py) -> Recipe, or what is wrong (explain.py) -> .run() -> ssl_core.train.run.Run
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    field_serializer,
    model_validator,
)

from components.cluster.connect import Cluster
from components.corpus.corpus import CorpusError, corpus_uri
from components.evaluation.evaluate import Settings
from components.steps.context import CorpusSpec, Registration, RunSpec, Tracking
from components.storage.home import at_home
from components.tracking.errors import without_secrets
from ssl_core.data.decode import Limits, SampleFormat
from ssl_core.errors import InputError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.task import PretextTask
from ssl_core.tasks import TASKS
from ssl_core.train.run import Optim, Run, Runtime, Train

NAME = r"^[a-z0-9]([a-z0-9-]{0,34}[a-z0-9])?$"
"""Pattern for the name of a recipe or comparison: fit to name a run, a folder and a Kubernetes object."""
BASE = "the recipe that this one starts from: the name of a built-in one, or a file relative to this one"


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, data: Any) -> Any:
        """YAML reads yes, no, on and off as booleans; `clip: off` must not come to mean 0.0."""
        for name, value in data.items() if isinstance(data, dict) else ():
            kind = cls.model_fields[name].annotation if name in cls.model_fields else None
            kinds = {kind, *typing.get_args(kind)}
            if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
                nothing = ", or null for none" if type(None) in kinds else ""
                raise InputError(f"{name} is {str(value).lower()}, a boolean; write a number{nothing}")
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
    """A labelled corpus for the evaluation; its images never train the encoder."""

    name: str = Field(description="corpus name, path or URI")
    sources: tuple[str, ...] = Field(
        (), description="what `pretext run` ingests into it first; {home} is the pretext home"
    )
    labels: Literal["parent"] = Field("parent", description="label = name of the folder that holds the file")


class CorpusSection(Section):
    """The unlabelled corpus, how its samples are stored, and what is ingested into it first."""

    name: str = Field(description="corpus name (below the pretext home), path or URI")
    sources: tuple[str, ...] = Field(
        (), description="folders, globs, tars, Parquet files or URIs that `pretext run` ingests first"
    )
    column: str | None = Field(None, description="column of image bytes in Parquet sources")
    version: int | None = Field(None, ge=0, description="train on this version; newest by default")
    size: int = Field(256, ge=1, le=8192, description="short side of the stored images, pixels")
    payload: Literal["raw", "jpeg"] = Field("raw", description="raw: fastest; jpeg: a fifth of the bytes")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality of the `jpeg` payload")
    limits: mirror(Limits) = Field(default_factory=lambda: mirror(Limits)(), description="limits on one media file")  # type: ignore[valid-type]

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
        None, description="labelled images to fit the probes; without them only label-free measures are taken"
    )
    test: Annotated[LabelledSection, AfterValidator(_well_named)] | None = Field(
        None, description="labelled images to score the probes"
    )
    factors: str | None = Field(
        None,
        min_length=1,
        description="Parquet file with known factors of the evaluated images, such as hue: column `file` is the end of "
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
        description="what the lower confidence bound of a new champion's gain must exceed, in percentage points",
    )


class TrackingSection(Section):
    """Where runs are recorded."""

    uri: str | None = Field(
        None, description="MLflow server; by default MLFLOW_TRACKING_URI, else SQLite in the pretext home"
    )
    experiment: str = Field("pretext", description="MLflow experiment")

    @field_serializer("uri")
    def _without_secrets(self, uri: str | None) -> str | None:
        return uri and without_secrets(uri)


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
        """Replaces {name} in the name of the registered model by the recipe's name."""
        match data:
            case {"name": str(name), "register": {"model": str(model)} as register}:
                return data | {"register": register | {"model": model.replace("{name}", name)}}
        return data

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        for name, field in self.pretext_task().sample.items():
            if field.modality == "image" and max(field.shape[1:]) > self.corpus.size:
                raise InputError(
                    f"task.canvas asks for {name} of {field.shape[1]}x{field.shape[2]} pixels, but corpus.size "
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
        """The input of the steps: the recipe as plain values."""
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


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors; a file with a `base` may leave out any key."""
    whole = Recipe.model_json_schema(by_alias=True)
    part = Recipe.model_json_schema(by_alias=True, ref_template="#/$defs/part-of-{model}")
    part = json.loads(json.dumps(part), object_hook=_optional)
    part["properties"] = {"base": {"type": "string", "description": BASE}} | part["properties"]
    sections = whole.pop("$defs") | {f"part-of-{name}": section for name, section in part.pop("$defs").items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pretext recipe", "type": "object"}
    return head | {"if": {"required": ["base"]}, "then": part, "else": whole, "$defs": sections}


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with no key required; a section may then fit several tasks, so `oneOf` becomes `anyOf`."""
    schema = {key: value for key, value in schema.items() if key not in ("required", "discriminator")}
    return {("anyOf" if key == "oneOf" else key): value for key, value in schema.items()}
