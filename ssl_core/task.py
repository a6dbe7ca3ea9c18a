"""The pretext task: a protocol, implemented by a frozen dataclass, and the network that it builds.

A task holds no parameters, so it can be hashed, pickled, compared and logged; all state lives in its `TaskModel`.

    Raw (uint8, on the device) -> make_batch -> inputs, targets
    TaskModel(**inputs) -> outputs;  loss(outputs, targets) -> losses and metrics, one per example

The mean over examples, gradient accumulation and the reduction over ranks exist once, in `ssl_core.train.loop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Generator, Tensor, nn

from ssl_core.nn.encoders import Encoder
from ssl_core.types import Choice, Field, LogUniform, Matching, Panel, Raw, Shortcut, Uniform


class EncoderFactory(Protocol):
    """Builds the run's encoder for an input of that shape; a task calls it once for each network."""

    def __call__(self, field: Field, width: float = 1.0) -> Encoder:
        """`width` multiplies the channels in the run's encoder spec: 0.5 for each half of a divided network."""
        ...


class TaskModel(nn.Module):
    """Encoder(s) plus whatever the pretext task needs around them; owns all state.

    `forward(**inputs)` takes the inputs that `make_batch` returns and returns the task's outputs.
    """

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """Layer name -> [n, d] float32, from shallow to deep, for the probes and the users of the encoder.

        Deterministic in eval mode; accepts the fields of `PretextTask.sample` as the reader returns them.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Runs after each optimizer step under no_grad; MoCo's EMA and queue live here."""


@runtime_checkable
class PretextTask(Protocol):
    """Implemented by a frozen dataclass: its fields ARE its configuration; `__post_init__` rejects bad values.

    Some tasks have more: constants that are fitted before training, in a ClassVar `artefacts` (see
    `ssl_core.artefact`); a ClassVar `matching` instead of targets (`matching_of`); several pictures in the inputs, and
    a method `cue_pairs` that returns those on which each answer depends (`ShowsPairs`).
    """

    paper: ClassVar[str]
    shortcuts: ClassVar[tuple[Shortcut, ...]]
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]]

    @property
    def sample(self) -> Mapping[str, Field]:
        """The fields that the reader reads for each sample, by name."""
        ...

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Any]:
        """Inputs of the model and targets, both from the data alone, on raw's device, without waiting for it.

        In inputs only pictures have four dimensions. Targets are classes [q] int64, quantities or pixels [q, ...]
        float, the same as `Weighted`, rows as `Positives`, or None where the task has a `matching`.
        """
        ...

    def build(self, encoder: EncoderFactory) -> TaskModel:
        """A freshly initialised model for this task."""
        ...

    def loss(self, outputs: Any, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """[n], one loss per example, and metric name -> [n], one value per example and without gradient.

        The metric is "accuracy" where answers are right or wrong. For quantities or pixels it is "r2", the share of the
        target's variance that the output explains: at most 1, 0 for the mean, negative for worse.
        """
        ...

    def chance(self, batch: int) -> dict[str, float]:
        """Chance level: the best that a model that has learnt nothing reaches, for `batch` samples over all ranks.

        Has "accuracy" or "r2" at least; metrics without a chance level are left out.
        """
        ...

    def show(self, inputs: dict[str, Tensor], outputs: Any, targets: Any) -> Panel:
        """What the model saw and answered, for the run's figures."""
        ...


@runtime_checkable
class ShowsPairs(Protocol):
    """A task whose inputs hold several pictures, and which says on which of them each answer depends."""

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The pictures of each answer and their partners, both [q, c, h, w].

        Both [q, k, c, h, w] where an answer depends on k pairs. Where a `matching` is the answer, the first view of
        every image, then the second, and so on.
        """
        ...


def cue_pairs(task: PretextTask, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the shortcut audit may see of a batch; see `ShowsPairs`.

    By default the only pictures in the inputs, each its own partner: right for a task about single pictures.

    Raises:
        TypeError: the inputs hold several kinds of pictures, and the task has no `cue_pairs`.
    """
    if isinstance(task, ShowsPairs):
        return task.cue_pairs(inputs)
    pictures = [value for value in inputs.values() if value.ndim == 4]
    if len(pictures) != 1:
        raise TypeError(
            f"{type(task).__name__}.make_batch returns {len(pictures)} kinds of pictures; add a method `cue_pairs` "
            "that returns those on which an answer depends."
        )
    return pictures[0], pictures[0]


def matching_of(task: PretextTask) -> Matching | None:
    """The answer of a task without targets; None for a task with targets."""
    matching: Matching | None = getattr(task, "matching", None)
    return matching
