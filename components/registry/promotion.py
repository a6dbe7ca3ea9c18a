"""Whether a version may become the champion: plain values in, a typed decision out, nothing read or written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol


class Gain(Protocol):
    """Candidate minus champion on the same samples, with its confidence interval; in the unit of the margin."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Promotion:
    """Whether a version becomes the champion.

    Attributes:
        verdict: "promote"; "keep": the champion stays; "evaluate": a paired evaluation against it must come first.
        reason: one sentence for the user.
    """

    verdict: Literal["promote", "keep", "evaluate"]
    reason: str

    @property
    def promoted(self) -> bool:
        return self.verdict == "promote"


def promotion(
    candidate: int, champion: int | None, gain: Gain | None, margin: float = 0.0, collapse: str = ""
) -> Promotion:
    """The first version becomes champion; a later one only if the lower bound of its gain exceeds the margin.

    `collapse`: why the candidate's representation has collapsed; if it is set, the candidate is never promoted.
    """
    if champion == candidate:
        return Promotion("keep", "is the champion already")
    if collapse:
        return Promotion("keep", f"collapsed: {collapse}")
    if champion is None:
        return Promotion("promote", "the first version of this model")
    if gain is None:
        return Promotion("evaluate", f"not yet evaluated beside version {champion}")
    if not all(math.isfinite(value) for value in (gain.mean, gain.low, gain.high)):
        return Promotion("keep", f"its gain over version {champion} is not a number")
    interval = f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    if gain.low > margin:
        return Promotion(
            "promote", f"gains {interval} on version {champion}, significantly more than the margin {margin:g}"
        )
    return Promotion(
        "keep", f"gains {interval} on version {champion}, not significantly more than the margin {margin:g}"
    )
