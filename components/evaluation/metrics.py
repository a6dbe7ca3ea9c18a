"""What an evaluation measures: every probe, measure and pretext metric once, with its titles, unit and digits.

Tables, Markdown notes, pages and figures format a number as its metric defines. An evaluation decides which probes
there are: `evaluate.shots: [10]` adds "10-shot" to all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ssl_core.probes.intervals import Interval


@dataclass(frozen=True)
class Metric:
    """A number in an evaluation, and how it is written.

    Attributes:
        key: in results, in files and in a tracker's metric names.
        column: its name in tables and in sentences.
        title: its name on figures and pages.
        unit: "%" for a share that is written in per cent, else empty.
        digits: after the decimal point.
    """

    key: str
    column: str
    title: str
    unit: Literal["%", ""] = ""
    digits: int = 3

    @property
    def scale(self) -> int:
        """Factor from the stored value to the one that is shown."""
        return 100 if self.unit else 1

    @property
    def axis(self) -> str:
        """Name and unit, such as "accuracy in %"."""
        return f"{self.column} in {self.unit}" if self.unit else self.column

    def number(self, value: float, digits: int | None = None) -> str:
        """The value without its unit, such as "90.4"; a value that rounds to zero has no sign."""
        return f"{self.scale * value:z.{self.digits if digits is None else digits}f}"

    def text(self, value: float) -> str:
        """The value with its unit, such as "90.4 %"."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def bounds(self, score: Interval) -> str:
        """The bounds of the 95 % interval, such as "87.4 – 92.8"."""
        return f"{self.number(score.low)} – {self.number(score.high)}"

    def bracketed(self, score: Interval) -> str:
        """The mean with the bounds of the interval, such as "90.4 [87.4, 92.8]"."""
        return f"{self.number(score.mean)} [{self.number(score.low)}, {self.number(score.high)}]"

    def plus_minus(self, score: Interval) -> str:
        """The mean with half the width of the interval, such as "90.4 ±2.7"."""
        return f"{self.number(score.mean)} ±{self.number((score.high - score.low) / 2)}"

    def scaled(self, score: Interval) -> tuple[float, float, float]:
        """Mean, low and high on the scale of the figures."""
        return self.scale * score.mean, self.scale * score.low, self.scale * score.high

    def record(self, name: str, score: Interval) -> dict[str, float]:
        """Mean and bounds as cells of a flat record, such as {"linear": 90.4, "linear low": 87.4, "linear high": …}."""
        return dict(zip((name, f"{name} low", f"{name} high"), self.scaled(score)))


ACCURACY = Metric("accuracy", "accuracy", "Accuracy", "%", 1)
R2 = Metric("r2", "R²", "R²", "%", 1)
LOSS = Metric("loss", "loss", "Loss")
PRETEXT = (ACCURACY, R2, LOSS)
"""Metrics of pretext tasks; a task's headline is the first one of these that it has."""
FACTOR_SCORES = f"{ACCURACY.column} for names, {R2.column} for quantities, in %"
"""What the score of a factor is."""

LINEAR = Metric("linear", "linear", "Linear probe", "%", 1)
KNN = Metric("knn", "kNN", "kNN", "%", 1)


def k_shot(shots: int) -> Metric:
    """The probe that is fitted on `shots` labels per class."""
    return Metric(f"{shots}-shot", f"{shots}-shot", f"{shots}-shot probe", "%", 1)


RANK_ME = Metric("rank_me", "RankMe", "RankMe", digits=1)
ALIGNMENT = Metric("alignment", "alignment", "Alignment", digits=2)
UNIFORMITY = Metric("uniformity", "uniformity", "Uniformity", digits=2)
MEASURES = (RANK_ME, ALIGNMENT, UNIFORMITY)
"""What is measured without labels."""


def probes(keys: Iterable[str]) -> tuple[Metric, ...]:
    """The probes of these keys, each once: linear, kNN, k-shot with k rising, then any others by name."""
    present = set(keys)
    shots = {key: int(match[1]) for key in present if (match := re.fullmatch(r"([1-9]\d*)-shot", key))}
    others = present - {LINEAR.key, KNN.key} - shots.keys()
    return (
        *(metric for metric in (LINEAR, KNN) if metric.key in present),
        *map(k_shot, sorted(shots.values())),
        *(Metric(key, key, key, "%", 1) for key in sorted(others)),
    )


def pretext_metric(key: str) -> Metric:
    """The metric of a pretext task with this key; one that is not in `PRETEXT` is titled by its key."""
    named = key.replace("_", " ")
    return next((metric for metric in PRETEXT if metric.key == key), Metric(key, named, named.capitalize()))


def headline(keys: Iterable[str]) -> Metric | None:
    """The one metric to show of a pretext task that has these; None if none of `PRETEXT` is among them."""
    present = set(keys)
    return next((metric for metric in PRETEXT if metric.key in present), None)
