"""Several encoders side by side, with the same samples, probes and budget.

Contender (a recipe's run, evaluated) ... -> Comparison -> lines: tasks, then references
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from components.evaluation.metrics import RANK_ME, Metric, headline, probes
from components.evaluation.references import ENCODER, RANDOM, SUPERVISED, Role, role_of
from components.evaluation.result import Evaluation, Factor, Known, Row, best_row, difference
from ssl_core.probes.intervals import Interval

__all__ = ["ALIKE", "MARKED", "MARKS", "SUPERVISED", "Comparison", "Contender", "Line"]

MARKS = {"above": "▲", "below": "▽", "": ""}
MARKED = "▲ significantly above, ▽ below its own untrained network"
"""What the marks of `Line.standing` mean."""
ALIKE = 0.005
"""Scores less than this apart can be those of one network: another number of threads moves them by a sample or two."""
TASK = "task"
"""Kind of a line for a pretext task, not a reference."""


@dataclass(frozen=True)
class Contender:
    """One recipe's run.

    Attributes:
        recipe: its name.
        task: key of TASKS.
        encoder: in a few words, such as "resnet18, width 0.25".
        run: name of the run.
        evaluation: of its encoder; None if there is none, and `failure` says why.
        steps: optimizer steps done.
        seconds: computing time of the training, CPU-seconds or GPU-seconds.
        rate: samples per second of computing time, once the training was under way.
        memory: most bytes that a worker used.
        failure: one sentence.
    """

    recipe: str
    task: str
    encoder: str
    run: str
    evaluation: Evaluation | None
    steps: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    memory: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        title: the task, or what it is compared with.
        kind: "task", or the name of a reference.
        row: the best layer and its scores; None for a run that failed.
        pretext: metric of the task, its value and its chance level, if it has one.
        contender: the run; None for untrained networks and a raw input.
        below: probes and factors on which it is worse than its own untrained network.
        above: those on which it is significantly better: the intervals do not overlap.
        factors: factor -> how well it can be read, and from which layer.
    """

    title: str
    kind: str
    row: Row | None
    pretext: tuple[str, float, float | None] | None = None
    contender: Contender | None = None
    below: frozenset[str] = frozenset()
    above: frozenset[str] = frozenset()
    factors: Mapping[str, Known] = field(default_factory=dict)

    @property
    def role(self) -> Role:
        """The role that decides how it is drawn."""
        return "encoder" if self.kind == TASK else role_of(self.kind)

    @property
    def scores(self) -> Mapping[str, Interval]:
        """The scores on all probes, then on all factors."""
        probes = dict(self.row.scores) if self.row else {}
        return probes | {name: known.score for name, known in self.factors.items()}

    def score(self, name: str) -> Interval | None:
        """The score on a probe or a factor."""
        return self.scores.get(name)

    def standing(self, name: str) -> str:
        """On a probe or factor, against its untrained network: "above" (significantly), "below", or "" for neither."""
        return "below" if name in self.below else "above" if name in self.above else ""


@dataclass(frozen=True)
class Comparison:
    """All contenders, in the order in which they were named; supervised ones are references.

    Attributes:
        name: of the comparison.
        corpus: name of the corpus that all but the supervised ones were trained on.
        version: of it.
        budget: computing time of each training in seconds; None if each recipe has its own length.
        unit: "CPU-seconds" or "GPU-seconds".
        contenders: the runs.
    """

    name: str
    corpus: str
    version: int
    budget: float | None
    unit: str
    contenders: tuple[Contender, ...]

    @property
    def evaluated(self) -> tuple[Contender, ...]:
        """The contenders that did not fail."""
        return tuple(contender for contender in self.contenders if contender.evaluation)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations of those that did not fail."""
        return tuple(contender.evaluation for contender in self.contenders if contender.evaluation)

    @property
    def probes(self) -> tuple[Metric, ...]:
        """The probes of any of the evaluations, in the order of all tables."""
        return probes(probe.key for evaluation in self.evaluations for probe in evaluation.probes)

    @property
    def factors(self) -> Mapping[str, Factor]:
        """Name -> the factor, whose kind and chance level are the same for all; empty if no factors are known."""
        return {name: factor for evaluation in self.evaluations for name, factor in evaluation.factors.items()}

    @property
    def length(self) -> str:
        """How long each trained, in words."""
        return f"{self.budget:g} {self.unit} of training each" if self.budget else "each for its recipe's own length"

    @property
    def notes(self) -> tuple[str, ...]:
        """What makes scores incomparable: a sentence for each contender with another evaluation set."""
        pairs = list(zip(self.evaluated, self.evaluations))
        return tuple(
            f"{one.recipe} was evaluated on another evaluation set than {first.recipe}, so their scores cannot be "
            f"compared: {difference(known, evaluation)}."
            for first, known in pairs[:1]
            for one, evaluation in pairs
            if evaluation.evaluation_set != known.evaluation_set
        )

    def lines(self) -> list[Line]:
        """Tasks first, then supervised ones, untrained networks and raw inputs."""
        own = [_line(contender) for contender in self.contenders]
        tasks = [line for line in own if line.kind == TASK]
        supervised = [line for line in own if line.kind == SUPERVISED]
        sources = dict.fromkeys(source for evaluation in self.evaluations for source in evaluation.references)
        references = [line for source in sources for line in _reference_lines(self.contenders, source)]
        return [*tasks, *supervised, *references]

    def records(self) -> list[dict[str, Any]]:
        """One flat record per line, for tables and programs: accuracies in per cent with their bounds."""
        metrics = {probe.key: probe for probe in self.probes}
        metrics |= {name: factor.metric for name, factor in self.factors.items()}
        return [dict(_record(line, metrics)) for line in self.lines()]

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracker: "simclr/linear", "simclr/factors/hue" -> value; by recipe."""
        flat: dict[str, float] = {}
        for line in self.lines():
            title = line.contender.recipe if line.contender else line.title
            if line.row:
                flat |= {f"{title}/{name}": score.mean for name, score in line.row.scores.items()}
                flat |= {f"{title}/{name}": value for name, value in line.row.measures.items()}
            flat |= {f"{title}/factors/{name}": known.score.mean for name, known in line.factors.items()}
        return {_metric_name(name): value for name, value in flat.items()}

    def to_json(self) -> str:
        """For a file: the table, and each contender without its evaluation, which lies in its own run's folder."""
        plain = asdict(replace(self, contenders=tuple(replace(one, evaluation=None) for one in self.contenders)))
        return json.dumps(plain | {"table": self.records()}, indent=1)


def training_cost(curve: Sequence[tuple[int, Mapping[str, float]]], batch: int) -> dict[str, Any]:
    """Steps, computing seconds, rate and memory, as `Contender` takes them, from (step, metrics) of a run's curves."""
    timed = [(step, metrics["compute_seconds"]) for step, metrics in curve if "compute_seconds" in metrics]
    if not timed:
        return {}
    (first, began), (last, ended) = min(timed), max(timed)
    memory = max(metrics.get("peak_memory_mib", 0.0) for _, metrics in curve)
    rate = (last - first) * batch / (ended - began) if ended > began else 0.0
    return {"steps": last, "seconds": ended, "rate": rate, "memory": int(memory * 2**20)}


def _line(contender: Contender) -> Line:
    kind = SUPERVISED if contender.task == SUPERVISED else TASK
    evaluation = contender.evaluation
    if evaluation is None:
        return Line(contender.task, kind, None, contender=contender)
    row, untrained = evaluation.row(ENCODER, evaluation.best), best_row(evaluation.rows, RANDOM)
    pairs = {
        name: (factor.known[ENCODER].score, factor.known[RANDOM].score) for name, factor in evaluation.factors.items()
    }
    if row and untrained:
        pairs |= {name: (score, untrained.scores[name]) for name, score in row.scores.items()}
    metric = headline(evaluation.pretext)
    value = evaluation.pretext[metric.key] if metric else None
    return Line(
        contender.task,
        kind,
        row,
        (metric.key, value.mean, value.chance) if metric and value else None,
        contender,
        frozenset(name for name, (ours, theirs) in pairs.items() if ours.mean < theirs.mean),
        frozenset(name for name, (ours, theirs) in pairs.items() if ours.low > theirs.high),
        {name: factor.known[ENCODER] for name, factor in evaluation.factors.items()},
    )


def _reference_lines(contenders: Sequence[Contender], source: str) -> Iterator[Line]:
    """What the encoders must beat: an untrained network, a raw input; one line for all contenders that share it."""
    found: list[tuple[Line, list[str]]] = []
    for contender in contenders:
        evaluation = contender.evaluation
        row = best_row(evaluation.rows, source) if evaluation else None
        if evaluation is None or row is None:
            continue
        factors = {name: factor.known[source] for name, factor in evaluation.factors.items()}
        line = Line(source, source, row, factors=factors)
        same = next((tasks for other, tasks in found if _alike(line, other)), None)
        if same is None:
            found.append((line, same := []))
        same.append(contender.task)
    for number, (line, tasks) in enumerate(sorted(found, key=lambda pair: -len(pair[1]))):
        yield line if number == 0 else replace(line, title=f"{source} of {', '.join(dict.fromkeys(tasks))}")


def _alike(one: Line, other: Line) -> bool:
    """Whether all scores of both can be those of the same network."""
    ours, theirs = one.scores, other.scores
    return ours.keys() == theirs.keys() and all(abs(ours[name].mean - theirs[name].mean) < ALIKE for name in ours)


def _record(line: Line, metrics: Mapping[str, Metric]) -> Iterator[tuple[str, Any]]:
    contender = line.contender
    yield "what", line.title
    yield "kind", line.kind
    yield "recipe", contender.recipe if contender else None
    yield "encoder", contender.encoder if contender else None
    yield "layer", line.row.layer if line.row else None
    for name, score in line.scores.items():
        yield from metrics[name].record(name, score).items()
    yield RANK_ME.key, line.row.measures.get(RANK_ME.key) if line.row else None
    yield "pretext metric", line.pretext[0] if line.pretext else None
    yield "pretext value", line.pretext[1] if line.pretext else None
    yield "pretext chance", line.pretext[2] if line.pretext else None
    yield "samples per second", contender.rate if contender else None
    yield "peak memory MiB", contender.memory / 2**20 if contender else None
    yield "steps", contender.steps if contender else None
    yield "computing seconds", contender.seconds if contender else None
    yield "failure", contender.failure if contender else None


def _metric_name(text: str) -> str:
    """The text with every character replaced that MLflow does not accept in a metric's name."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in text)
