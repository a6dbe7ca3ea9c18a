"""The pretext task: what one is (a protocol, held by a frozen dataclass) and the network it builds.

A task holds no parameters, so that it hashes, pickles, diffs and logs; all state lives in its `TaskModel`.

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
    """Builds the run's encoder for an input of that shape; a task calls it once per network that it needs."""

    def __call__(self, field: Field, width: float = 1.0) -> Encoder:
        """`width` multiplies the channels that the run asks for: 0.5 for each half of a divided network."""
        ...


class TaskModel(nn.Module):
    """Encoder(s) plus whatever the pretext task needs around them; owns all state.

    `forward(**inputs)` takes what `make_batch` made and returns the task's outputs.
    """

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """Layer name -> [n, d] float32, from shallow to deep; what the probes and the users of the encoder get.

        Deterministic in eval mode; accepts the fields of `PretextTask.sample` as the reader delivers them.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Runs after each optimizer step under no_grad; MoCo's EMA and queue live here."""


@runtime_checkable
class PretextTask(Protocol):
    """Implemented by a frozen dataclass: its fields ARE its configuration; `__post_init__` rejects bad values.

    What only some tasks have: constants that are made before it trains, in a ClassVar `artefacts` (see
    `ssl_core.artefact`); no targets, but a ClassVar `matching` that says what the answer is (`matching_of`); inputs of
    several pictures, of which `cue_pairs` says how answers hang on them (`ShowsPairs`).
    """

    paper: ClassVar[str]
    shortcuts: ClassVar[tuple[Shortcut, ...]]
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]]

    @property
    def sample(self) -> Mapping[str, Field]:
        """What the reader must deliver for one sample, by name."""
        ...

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Any]:
        """Inputs of the model and targets, both from the data alone, on raw's device, without synchronising.

        Only pictures have four dimensions in inputs. Targets are classes [q] int64, quantities or pixels [q, ...]
        float, the same as `Weighted`, rows as `Positives`, or None where the task has a `matching`.
        """
        ...

    def build(self, encoder: EncoderFactory) -> TaskModel:
        """A freshly initialised model for this task."""
        ...

    def loss(self, outputs: Any, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """[n], one loss per example, and metric name -> [n], one value per example and without gradient.

        "accuracy" where the task has an answer; "r2", the share of the target's variance that the output
        explains (at most 1, 0 for the mean, negative for worse), where it has quantities or pixels instead.
        """
        ...

    def chance(self, batch: int) -> dict[str, float]:
        """What a model that has learnt nothing reaches at best, for `batch` samples over all ranks.

        A key for "accuracy" or "r2" at least; metrics without such a level are left out.
        """
        ...

    def show(self, inputs: dict[str, Tensor], outputs: Any, targets: Any) -> Panel:
        """What the model saw and answered, for the run's figures."""
        ...


@runtime_checkable
class ShowsPairs(Protocol):
    """A task whose inputs hold several pictures, of which it says how its answers hang on them."""

    def cue_pairs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The pictures of each answer and what they are seen beside, twice [q, c, h, w].

        Twice [q, k, c, h, w] where an answer hangs on k pairs. Where a `matching` is the answer, the first view of
        every image, then the second, and so on.
        """
        ...


def cue_pairs(task: PretextTask, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the shortcut audit may see of a batch; see `ShowsPairs`.

    The default is for a task that asks about single pictures: the only ones in its inputs, each beside itself.

    Raises:
        TypeError: the inputs hold several kinds of pictures, and the task does not say which to take.
    """
    if isinstance(task, ShowsPairs):
        return task.cue_pairs(inputs)
    pictures = [value for value in inputs.values() if value.ndim == 4]
    if len(pictures) != 1:
        raise TypeError(
            f"{type(task).__name__}.make_batch gives {len(pictures)} kinds of pictures; add the method `cue_pairs`, "
            "which says which of them an answer hangs on."
        )
    return pictures[0], pictures[0]


def matching_of(task: PretextTask) -> Matching | None:
    """What the answer of a task without targets is; None for one with targets."""
    matching: Matching | None = getattr(task, "matching", None)
    return matching
