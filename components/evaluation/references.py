"""What an encoder is compared with: each reference once, with the modalities that it is defined for.

The raw input of a new modality, such as MFCCs of audio, is one entry here with the function that computes its features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from components.evaluation.features import Features, pixels, without_copies
from ssl_core.types import Field, Modality, Raw, media

ENCODER, RANDOM, PIXELS, SUPERVISED = "encoder", "random init", "raw pixels", "supervised"
"""Names of sources, as they are written in results and metric names."""
Role = Literal["encoder", "untrained", "raw input", "supervised"]
"""What a source is: the encoder itself, or a kind of reference; it decides how the source is drawn."""


@dataclass(frozen=True)
class Reference:
    """What an encoder is compared with.

    Attributes:
        name: as it is written in results and metric names.
        role: "untrained" for the encoder's network as it started; "raw input" for what the network is given;
            "supervised" for the same encoder trained on labels.
        phrase: its name in a sentence about the encoder.
        modalities: of the inputs that it is defined for; None for any.
    """

    name: str
    role: Role
    phrase: str
    modalities: frozenset[Modality] | None = None


def _as_they_are(train: Features, test: Features) -> tuple[Features, Features]:
    return train, test


@dataclass(frozen=True, kw_only=True)
class RawInput(Reference):
    """The input of the network, used as features itself.

    Attributes:
        features: what the reader delivers -> {"": [n, d]}.
        condense: drops features that are redundant on the training part, from both parts.
    """

    features: Callable[[Raw], Mapping[str, Tensor]]
    condense: Callable[[Features, Features], tuple[Features, Features]] = _as_they_are


REFERENCES = (
    Reference(RANDOM, "untrained", "its untrained network"),
    RawInput(
        name=PIXELS,
        role="raw input",
        phrase="raw pixels",
        modalities=frozenset({"image"}),
        features=pixels,
        condense=without_copies,
    ),
    Reference(SUPERVISED, "supervised", "supervised training"),
)


def reference(name: str) -> Reference:
    """The reference of that name.

    Raises:
        ValueError: there is none.
    """
    for one in REFERENCES:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in REFERENCES)
    raise ValueError(f"No reference is named {name!r}; there are {known}.")


def role_of(source: str) -> Role:
    """The role of the encoder or a reference, by its name.

    Raises:
        ValueError: it is neither.
    """
    return "encoder" if source == ENCODER else reference(source).role


def raw_input(sample: Mapping[str, Field]) -> RawInput | None:
    """The raw input that a task with this sample is compared with; None if none is defined for its modalities."""
    modalities = {field.modality for field in media(sample).values()}
    fitting = (one for one in REFERENCES if one.modalities is None or modalities <= one.modalities)
    return next((one for one in fitting if isinstance(one, RawInput)), None)
