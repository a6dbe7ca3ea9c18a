"""What an evaluation says of an encoder: plain data that goes to JSON and back, and the paired comparison of two.

Row (encoder layer | random init | raw pixels) x (linear, kNN, few-shot, RankMe, alignment, uniformity) -> Evaluation
Factor (shape, hue, ...) x (encoder | random init | raw pixels) -> how well each knows it, where factors are known
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ssl_core.errors import InputError
from ssl_core.probes.intervals import Interval, paired_bootstrap

ENCODER, RANDOM, PIXELS = "encoder", "random init", "raw pixels"
Kind = Literal["name", "quantity", "circle"]
"""Of a factor."""


@dataclass(frozen=True)
class Row:
    """One representation, evaluated.

    Attributes:
        source: "encoder", "random init" (the same network untrained) or "raw pixels".
        layer: name of the layer; empty for raw pixels.
        dim: numbers per sample.
        scores: "linear", "knn", "1-shot", "5-shot" -> accuracy in [0, 1] with its 95 % interval; no labels, none.
        measures: "rank_me", "alignment", "uniformity" -> value; one that cannot be measured is left out.
        train_knn: leave-one-out kNN accuracy on the training part, by which the best layer is chosen.
        factors: factor -> how well this layer tells it on the test part; empty where no factors are known.
    """

    source: str
    layer: str
    dim: int
    scores: Mapping[str, Interval]
    measures: Mapping[str, float]
    train_knn: float | None = None
    factors: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Source and layer, for people."""
        return f"{self.source} · {self.layer}" if self.layer else self.source


@dataclass(frozen=True)
class Pretext:
    """A metric of the pretext task on the test part, beside what an ignorant model shows."""

    mean: float
    low: float
    high: float
    chance: float | None


@dataclass(frozen=True)
class Known:
    """How well a source tells a factor.

    Attributes:
        layer: that tells it best on a held-out half of the training part; empty for raw pixels.
        score: of that layer on the test part.
    """

    layer: str
    score: Interval


@dataclass(frozen=True)
class Factor:
    """What was asked of a factor, and who knows it.

    Attributes:
        kind: a name is scored by accuracy; a quantity, and a circle (such as an angle, as a point on it), by the
            R², 1 at best.
        chance: what chance reaches: 1 / classes of a name, 0 of a quantity.
        known: source, as in `Row` -> how well it tells the factor.
    """

    kind: Kind
    chance: float
    known: Mapping[str, Known]


@dataclass(frozen=True)
class Correct:
    """In how many draws each test sample was classified rightly; linear and kNN have one draw.

    Attributes:
        draws: of the probe.
        packed: one byte per sample, zlib, base64.
    """

    draws: int
    packed: str

    @classmethod
    def of(cls, right: Tensor) -> Correct:
        """From [draws, m] bool."""
        counts = right.sum(0).to(torch.uint8).cpu().numpy().tobytes()
        return cls(len(right), base64.b64encode(zlib.compress(counts, 9)).decode())

    def shares(self) -> Tensor:
        """[m] float64 in [0, 1]."""
        counts = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(self.packed))), dtype=torch.uint8)
        return counts.double() / self.draws


@dataclass(frozen=True)
class Evaluation:
    """An encoder evaluated on a frozen evaluation set.

    Attributes:
        rows: every layer of the encoder from shallow to deep, then of the random init, then raw pixels.
        best: name of the encoder's best layer, chosen on the training part; the deepest where there are no labels.
        samples: "train" and "test" -> samples used.
        classes: names of the classes; empty without labels.
        evaluation_set: hash of both corpora's contents, the seed and the probes; equal hashes may be compared.
        settings: of the probes.
        pretext: metric of the pretext task -> its value on the test part; without labels on training samples.
        collapse: why the representation is useless, in one sentence; empty when it is not.
        notes: what a reader should know, a sentence each.
        correct: probe -> per-sample correctness of the best layer, for the paired comparison of two encoders.
        factors: name of a factor -> what each source knows of it; empty where the recipe names no factors.
    """

    rows: tuple[Row, ...]
    best: str
    samples: Mapping[str, int]
    classes: tuple[str, ...]
    evaluation_set: str
    settings: Mapping[str, Any]
    pretext: Mapping[str, Pretext]
    collapse: str
    notes: tuple[str, ...]
    correct: Mapping[str, Correct]
    factors: Mapping[str, Factor] = field(default_factory=dict)

    def row(self, source: str, layer: str = "") -> Row | None:
        """The row of that source and layer."""
        return next((row for row in self.rows if (row.source, row.layer) == (source, layer)), None)

    def headline(self) -> tuple[Row, ...]:
        """The encoder's best layer, and what it must beat: the untrained network at its own best layer, raw pixels."""
        return tuple(row for row in (best_row(self.rows, source) for source in (ENCODER, RANDOM, PIXELS)) if row)

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracker: "evaluation/encoder/stage4/linear" -> value; the best layer as
        "evaluation/best/linear", too.

        Factors are "evaluation/factors/hue/encoder" and so on.
        """
        flat: dict[str, float] = {}
        for row in self.rows:
            flat |= _flat("/".join(("evaluation", row.source.replace(" ", "_"), row.layer)).rstrip("/"), row)
        best = self.row(ENCODER, self.best)
        flat |= _flat("evaluation/best", best) if best else {}
        flat |= {f"evaluation/pretext/{name}": value.mean for name, value in self.pretext.items()}
        for name, factor in self.factors.items():
            for source, known in factor.known.items():
                flat[f"evaluation/factors/{name}/{source.replace(' ', '_')}"] = known.score.mean
        return flat | {"evaluation/collapsed": float(bool(self.collapse))}

    def table(self) -> list[dict[str, Any]]:
        """One flat record per row, for a table: accuracies in per cent with the bounds of their intervals."""
        records = []
        for row in self.rows:
            record: dict[str, Any] = {"source": row.source, "layer": row.layer, "dim": row.dim}
            for name, score in row.scores.items():
                record |= in_percent(name, score)
            record |= row.measures
            for name, score in row.factors.items():
                record |= in_percent(f"factor {name}", score)
            records.append(record)
        return records

    def factor_table(self) -> list[dict[str, Any]]:
        """One flat record per factor: for each source the layer, the score in per cent and its interval's bounds."""
        records = []
        for name, factor in self.factors.items():
            record: dict[str, Any] = {"factor": name, "kind": factor.kind, "chance": 100 * factor.chance}
            for source, known in factor.known.items():
                record |= {f"{source} layer": known.layer} | in_percent(source, known.score)
            records.append(record)
        return records

    def to_json(self) -> str:
        """For a file or the registry."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Inverse of `to_json`.

        Raises:
            InputError: the text is no evaluation, or one of another version of pretext.
        """
        try:
            data = json.loads(text)
            rows = tuple(_row(row) for row in data.pop("rows"))
            if not rows:
                raise ValueError("it has no rows")
            factors = {name: _factor(value) for name, value in data.pop("factors", {}).items()}
            pretext = {name: Pretext(**value) for name, value in data.pop("pretext").items()}
            correct = {name: Correct(**value) for name, value in data.pop("correct").items()}
            tuples: dict[str, Any] = {name: tuple(data.pop(name)) for name in ("classes", "notes")}
            data["settings"]["shots"] = tuple(data["settings"]["shots"])
            return cls(rows=rows, pretext=pretext, correct=correct, factors=factors, **tuples, **data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"This is no evaluation that this version of pretext can read ({error}); "
                "`pretext evaluate` writes it anew."
            ) from error


def best_row(rows: Sequence[Row], source: str) -> Row | None:
    """The row of a source with the best leave-one-out kNN on the training part; of equals the deepest."""
    mine = [row for row in rows if row.source == source]
    return max(reversed(mine), key=lambda row: row.train_knn or 0.0, default=None)


def paired_gain(candidate: Evaluation, champion: Evaluation, probe: str = "linear") -> Interval:
    """Candidate's accuracy minus champion's in percentage points, each at its best layer, on the same test samples.

    The 95 % interval is a paired bootstrap over test samples: what both get right or wrong cancels.

    Raises:
        InputError: they were evaluated on different evaluation sets, or one has no such probe.
    """
    if candidate.evaluation_set != champion.evaluation_set:
        raise InputError(
            f"The two were evaluated on different evaluation sets ({candidate.evaluation_set} and "
            f"{champion.evaluation_set}), so their difference means nothing; evaluate both in the same job."
        )
    for evaluated in (candidate, champion):
        if probe not in evaluated.correct:
            known = ", ".join(evaluated.correct) or "none: there was no labelled set"
            raise InputError(f"There is no per-sample record of the probe {probe!r}; there is {known}.")
    shares = [evaluated.correct[probe].shares() for evaluated in (candidate, champion)]
    return paired_bootstrap(100 * (shares[0] - shares[1]))


def _flat(prefix: str, row: Row) -> dict[str, float]:
    return {f"{prefix}/{name}": score.mean for name, score in row.scores.items()} | {
        f"{prefix}/{name}": value for name, value in row.measures.items()
    }


def _intervals(scores: Mapping[str, list[float]]) -> dict[str, Interval]:
    return {name: Interval(*bounds) for name, bounds in scores.items()}


def in_percent(name: str, score: Interval) -> dict[str, float]:
    """A score and the bounds of its interval as cells of a record."""
    return {name: 100 * score.mean, f"{name} low": 100 * score.low, f"{name} high": 100 * score.high}


def _row(data: dict[str, Any]) -> Row:
    return Row(**data | {"scores": _intervals(data["scores"]), "factors": _intervals(data.get("factors", {}))})


def _factor(data: dict[str, Any]) -> Factor:
    known = {source: Known(each["layer"], Interval(*each["score"])) for source, each in data["known"].items()}
    return Factor(data["kind"], data["chance"], known)
