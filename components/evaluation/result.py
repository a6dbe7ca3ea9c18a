"""The result of an evaluation: plain data, to JSON and back, and the paired comparison of two results.

Row (layer of the encoder | a reference) x (probes, measures) -> Evaluation
Factor (shape, hue, ...) x (the encoder | a reference) -> how well each knows it, where factors are known
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from components.evaluation.metrics import ACCURACY, LINEAR, MEASURES, R2, Metric, probes
from components.evaluation.references import ENCODER
from ssl_core.errors import InputError
from ssl_core.probes.intervals import Interval, paired_bootstrap
from ssl_core.types import CorpusVersion

Kind = Literal["name", "quantity", "circle"]
"""Kind of a factor."""


@dataclass(frozen=True)
class Row:
    """One representation, evaluated.

    Attributes:
        source: the encoder or a reference, by its name in `references`.
        layer: name of the layer; empty for a raw input.
        dim: numbers per sample.
        scores: key of a probe in `metrics` -> accuracy in [0, 1] with its 95 % interval; empty without labels.
        measures: key of a measure -> value; a measure that cannot be taken is left out.
        train_knn: leave-one-out kNN accuracy on the training part, by which the best layer is chosen.
        factors: factor -> how well it can be read from this layer on the test part; empty where no factors are known.
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
    """A metric of the pretext task on the test part, with its chance level."""

    mean: float
    low: float
    high: float
    chance: float | None


@dataclass(frozen=True)
class Known:
    """How well a factor can be read from a source.

    Attributes:
        layer: the best one for it on a held-out half of the training part; empty for a raw input.
        score: of that layer on the test part.
    """

    layer: str
    score: Interval


@dataclass(frozen=True)
class Factor:
    """A factor, and how well each source knows it.

    Attributes:
        kind: a name is scored by accuracy; a quantity, or a point on a circle (such as an angle), by R², at best 1.
        chance: the chance level: 1 / classes of a name, 0 of a quantity.
        known: source, as in `Row` -> how well the factor can be read from it.
    """

    kind: Kind
    chance: float
    known: Mapping[str, Known]

    @property
    def metric(self) -> Metric:
        """The metric by which it is scored."""
        return ACCURACY if self.kind == "name" else R2


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
        rows: every layer of the encoder from shallow to deep, then of the untrained network, then the raw input.
        best: name of the encoder's best layer, chosen on the training part; the deepest where there are no labels.
        samples: "train" and "test" -> samples used.
        classes: names of the classes; empty without labels.
        evaluation_set: hash of both corpora's contents, the seed and the probes; equal hashes may be compared.
        settings: of the probes.
        pretext: metric of the pretext task -> its value on the test part; without labels, on training samples.
        collapse: why the representation counts as collapsed, in one sentence; empty if it does not.
        notes: what a reader should know, a sentence each.
        correct: probe -> per-sample correctness of the best layer, for the paired comparison of two encoders.
        factors: name of a factor -> what each source knows of it; empty where the recipe names no factors.
        corpora: "train" and "test" -> the corpus version that the samples of that part were taken from; only "train"
            without a labelled set, and empty in a file of an older version.
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
    corpora: Mapping[str, CorpusVersion] = field(default_factory=dict)

    @property
    def probes(self) -> tuple[Metric, ...]:
        """The probes that were run, in the order of all tables; none without labels."""
        return probes(key for row in self.rows for key in row.scores)

    @property
    def measures(self) -> tuple[Metric, ...]:
        """The label-free measures that were taken."""
        return tuple(metric for metric in MEASURES if any(metric.key in row.measures for row in self.rows))

    @property
    def references(self) -> tuple[str, ...]:
        """What the encoder is compared with, by name."""
        return tuple(dict.fromkeys(row.source for row in self.rows if row.source != ENCODER))

    @property
    def pretext_samples(self) -> str:
        """The samples that the pretext task was tried on, in words."""
        return pretext_samples(bool(self.classes))

    def row(self, source: str, layer: str = "") -> Row | None:
        """The row of that source and layer."""
        return next((row for row in self.rows if (row.source, row.layer) == (source, layer)), None)

    def headline(self) -> tuple[Row, ...]:
        """The encoder's best layer, and what it must beat: the untrained network's own best layer, the raw input."""
        return tuple(row for row in (best_row(self.rows, each) for each in (ENCODER, *self.references)) if row)

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
            for probe in probes(row.scores):
                record |= probe.record(probe.key, row.scores[probe.key])
            record |= row.measures
            for name, score in row.factors.items():
                record |= self.factors[name].metric.record(f"factor {name}", score)
            records.append(record)
        return records

    def factor_table(self) -> list[dict[str, Any]]:
        """One flat record per factor: for each source the layer, the score in per cent and its interval's bounds."""
        records = []
        for name, factor in self.factors.items():
            metric = factor.metric
            record: dict[str, Any] = {"factor": name, "kind": factor.kind, "chance": metric.scale * factor.chance}
            for source, known in factor.known.items():
                record |= {f"{source} layer": known.layer} | metric.record(source, known.score)
            records.append(record)
        return records

    def to_json(self) -> str:
        """For a file or the registry."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Inverse of `to_json`; also reads what older versions wrote, with the keys of that time.

        Raises:
            InputError: the text is no evaluation, or one of an unknown version of pretext.
        """
        try:
            data = json.loads(text)
            rows = tuple(_row(row) for row in data.pop("rows"))
            if not rows:
                raise ValueError("it has no rows")
            factors = {name: _factor(value) for name, value in data.pop("factors", {}).items()}
            pretext = {_current_key(name): Pretext(**value) for name, value in data.pop("pretext").items()}
            correct = {_current_key(name): Correct(**value) for name, value in data.pop("correct").items()}
            corpora = {part: CorpusVersion(**value) for part, value in data.pop("corpora", {}).items()}
            tuples: dict[str, Any] = {name: tuple(data.pop(name)) for name in ("classes", "notes")}
            data["settings"]["shots"] = tuple(data["settings"]["shots"])
            parts: dict[str, Any] = {"pretext": pretext, "correct": correct, "factors": factors, "corpora": corpora}
            return cls(rows=rows, **parts, **tuples, **data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"This is no evaluation that this version of pretext can read ({error}); "
                "`pretext evaluate` writes it anew."
            ) from error


def best_row(rows: Sequence[Row], source: str) -> Row | None:
    """The row of a source with the best leave-one-out kNN on the training part; of equal ones, the deepest."""
    mine = [row for row in rows if row.source == source]
    return max(reversed(mine), key=lambda row: row.train_knn or 0.0, default=None)


def paired_gain(candidate: Evaluation, champion: Evaluation, probe: str = LINEAR.key) -> Interval:
    """Candidate's accuracy minus champion's in percentage points, each at its best layer, on the same test samples.

    The 95 % interval is a paired bootstrap over test samples: samples that both get right or wrong cancel out.

    Raises:
        InputError: they were evaluated on different evaluation sets, or one has no such probe.
    """
    if candidate.evaluation_set != champion.evaluation_set:
        raise InputError(
            f"The two were evaluated on different evaluation sets ({candidate.evaluation_set} and "
            f"{champion.evaluation_set}): {difference(candidate, champion)}. Their scores cannot be compared; "
            "evaluate both in the same job."
        )
    for evaluated in (candidate, champion):
        if probe not in evaluated.correct:
            known = ", ".join(evaluated.correct) or "none: there was no labelled set"
            raise InputError(f"There is no per-sample record of the probe {probe!r}; there is {known}.")
    shares = [evaluated.correct[probe].shares() for evaluated in (candidate, champion)]
    return paired_bootstrap(ACCURACY.scale * (shares[0] - shares[1]))


def difference(one: Evaluation, other: Evaluation) -> str:
    """How two evaluation sets differ, as a clause: in their corpus versions, else in their probes or factors."""
    parts = [part for part in ("train", "test") if part in one.corpora or part in other.corpora]
    pairs = [(part, one.corpora.get(part), other.corpora.get(part)) for part in parts]
    unlike = [
        f"the {part} samples are from {_in_words(mine)} and from {_in_words(theirs)}"
        for part, mine, theirs in pairs
        if mine is None or theirs is None or mine.digest != theirs.digest
    ]
    if unlike:
        return ", ".join(unlike)
    if not pairs:
        return "neither names the corpora that it was computed on"
    return "the corpora are the same, but the settings of the probes or the factors are not"


def pretext_samples(has_labels: bool) -> str:
    """The samples that the pretext task is tried on; without a labelled set, those of the encoder's own corpus."""
    return "held-out samples" if has_labels else "samples of its own corpus"


def _in_words(corpus: CorpusVersion | None) -> str:
    if corpus is None:
        return "a corpus that was not recorded"
    return f"{corpus.uri} version {corpus.version} ({corpus.samples:,} samples, digest {corpus.digest[:12]})"


def _flat(prefix: str, row: Row) -> dict[str, float]:
    return {f"{prefix}/{name}": score.mean for name, score in row.scores.items()} | {
        f"{prefix}/{name}": value for name, value in row.measures.items()
    }


def _current_key(key: str) -> str:
    """The key of a probe or pretext metric in this version, given one of an older version: "5-label", "explained"."""
    return {"explained": R2.key}.get(key, re.sub(r"^(\d+)-label$", r"\1-shot", key))


def _intervals(scores: Mapping[str, list[float]]) -> dict[str, Interval]:
    return {name: Interval(*bounds) for name, bounds in scores.items()}


def _row(data: dict[str, Any]) -> Row:
    scores = {_current_key(name): score for name, score in _intervals(data["scores"]).items()}
    return Row(**data | {"scores": scores, "factors": _intervals(data.get("factors", {}))})


def _factor(data: dict[str, Any]) -> Factor:
    known = {source: Known(each["layer"], Interval(*each["score"])) for source, each in data["known"].items()}
    return Factor(data["kind"], data["chance"] if "chance" in data else data["guessing"], known)
