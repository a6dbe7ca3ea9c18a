"""What a step reports while it works: messages, and how far it is. The caller of a step decides where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Advance:
    """How far a step is.

    Attributes:
        step: what is being done, such as "pretrain" or "ingest digits".
        done: of `total`, in the step's own unit.
        total: None if it is not known.
        figures: name -> newest value: "loss", "accuracy", "samples_per_s", "seconds_left", "added", "quarantined".
    """

    step: str
    done: float
    total: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class Progress(Protocol):
    """A sink for what a step reports: a terminal, a file, or nothing (`Silent`)."""

    def say(self, sentence: str) -> None:
        """A sentence for a person, without a full stop."""
        ...

    def advance(self, now: Advance) -> None:
        """Called now and then, from any thread; must return soon."""
        ...


class Silent:
    """A sink that drops everything."""

    def say(self, sentence: str) -> None:
        pass

    def advance(self, now: Advance) -> None:
        pass


def duration(seconds: float) -> str:
    """Seconds in the usual units: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
