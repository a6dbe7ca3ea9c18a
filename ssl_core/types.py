"""Plain data that all layers share: what a reader returns, what a task declares, what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

Modality: TypeAlias = Literal["image", "video", "audio", "sequence", "index", "label"]

Raw: TypeAlias = Mapping[str, Tensor]
"""Field name -> [n, *field.shape] on the device. Images are uint8 RGB in [0, 255], channels_last in memory."""


@dataclass(frozen=True)
class Field:
    """One named input: its modality and the shape of a single sample.

    Attributes:
        modality: what the shape means.
        shape: image (channels, height, width); index (), the sample's number in its corpus version as int64; label (),
            the number of its class as int64; further modalities bring their own order.
        limit: for an index, how many samples the task can distinguish: training on more is refused. For a label, the
            number of classes: training on more or fewer is refused.
    """

    modality: Modality
    shape: tuple[int, ...]
    limit: int | None = None


@dataclass(frozen=True)
class CorpusVersion:
    """A corpus at one version: what a run trains on, or an evaluation uses.

    Attributes:
        uri: where the corpus is.
        version: its number.
        digest: digest of the version's contents; equal contents have equal digests, wherever they are stored.
        samples: number of rows.
    """

    uri: str
    version: int
    digest: str
    samples: int


def media(sample: Mapping[str, Field]) -> dict[str, Field]:
    """The fields that hold media, not an index or a label; all that `TaskModel.represent` needs."""
    return {name: field for name, field in sample.items() if field.modality not in ("index", "label")}


@dataclass(frozen=True)
class Shortcut:
    """A way to solve a pretext task without learning what it is meant to teach, and the switch that closes it.

    Attributes:
        cue: name of the low-level cue; a key of `ssl_core.probes.audit.CUES`.
        countermeasure: one sentence for the reader of `pretext tasks`.
        off: field values of the task that disable the countermeasure; the audit measures with and without them.
    """

    cue: str
    countermeasure: str
    off: Mapping[str, Any]


@dataclass(frozen=True)
class Matching:
    """The answer of a task that has no targets: which pictures of a batch are of the same image.

    Attributes:
        answers: the input that holds the answers. Its rows are the first view of every image, then the second, and so
            on; where each view's rows are permuted, the answers are wrong.
        queued: the negatives are images of earlier batches, from a queue, and none of its own batch.
    """

    answers: str
    queued: bool = False


@dataclass(frozen=True)
class Choice:
    """Search domain: one of these values."""

    values: Sequence[Any]


@dataclass(frozen=True)
class LogUniform:
    """Search domain: a float whose logarithm is uniform between `low` and `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Uniform:
    """Search domain: a float uniform between `low` and `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Pictures of what a task saw and answered, one row per example.

    Attributes:
        columns: column title -> [n, 3, h, w] float in [0, 1]; heights and widths may differ between columns.
        captions: n short texts, e.g. "rotated 90, answered 270".
    """

    columns: Mapping[str, Tensor]
    captions: Sequence[str]
