"""Several encoders side by side: the same samples, the same probes, the same budget.

Contender (a recipe's run, evaluated) ... -> Comparison -> lines: tasks, supervised, random init, raw pixels
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from components.evaluation.result import ENCODER, PIXELS, RANDOM, Evaluation, Known, Row, best_row, in_percent
from ssl_core.probes.intervals import Interval

SUPERVISED = "supervised"
"""The task that learns from labels: the reference, not a contender."""
MARKS = {"above": "▲", "below": "▽", "": ""}
MARKED = "▲ significantly above, ▽ below its own untrained network"
"""What the marks of `Line.standing` mean."""
ALIKE = 0.005
"""Another number of threads moves a score by a sample or two: scores no further apart are of the same network."""
HEADLINES = ("accuracy", "r2", "loss")
"""What is told of a pretext task, the first of these that it has."""


@dataclass(frozen=True)
class Contender:
    """One recipe's run.

    Attributes:
        recipe: its name.
        task: key of TASKS.
        encoder: in a few words, such as "resnet18, width 0.25".
        run: name of the run.
        evaluation: of its encoder; None where there is none, and `failure` says why.
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
        kind: "task", "supervised", "random init" or "raw pixels".
        row: the best layer and its scores; None for a run that failed.
        pretext: metric of the task, its value and chance, where it has one.
        contender: the run; None for raw pixels and untrained networks.
        below: probes and factors on which it is worse than its own untrained network.
        above: those on which it is significantly better: the intervals do not meet.
        factors: factor -> how well it is told, and by which layer.
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
    def scores(self) -> Mapping[str, Interval]:
        """Of all probes, then of all factors."""
        probes = dict(self.row.scores) if self.row else {}
        return probes | {name: known.score for name, known in self.factors.items()}

    def score(self, name: str) -> Interval | None:
        """Of a probe or a factor."""
        return self.scores.get(name)

    def standing(self, name: str) -> str:
        """On a probe or factor, against its untrained network: "above" (significantly), "below", or "" for neither."""
        return "below" if name in self.below else "above" if name in self.above else ""


@dataclass(frozen=True)
class Comparison:
    """All contenders, in the order in which they were named; supervised ones are references.

    Attributes:
        name: of the comparison.
        corpus: name of the corpus that all but the supervised ones trained on.
        version: of it.
        budget: computing time of each training in seconds; None where each recipe's own length counts.
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
        """Those that did not fail."""
        return tuple(contender for contender in self.contenders if contender.evaluation)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Those that there are."""
        return tuple(contender.evaluation for contender in self.contenders if contender.evaluation)

    @property
    def probes(self) -> tuple[str, ...]:
        """Names of the probes, in order."""
        return tuple(dict.fromkeys(name for evaluation in self.evaluations for name in evaluation.rows[0].scores))

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors, in order; none where none are known."""
        return tuple(dict.fromkeys(name for evaluation in self.evaluations for name in evaluation.factors))

    @property
    def chance(self) -> Mapping[str, float]:
        """Factor -> what chance reaches."""
        return {name: factor.chance for first in self.evaluations[:1] for name, factor in first.factors.items()}

    def lines(self) -> list[Line]:
        """Tasks first, then supervised, untrained networks and raw pixels."""
        own = [_line(contender) for contender in self.contenders]
        tasks = [line for line in own if line.kind == "task"]
        supervised = [line for line in own if line.kind == SUPERVISED]
        return [*tasks, *supervised, *_rivals(self.contenders, RANDOM), *_rivals(self.contenders, PIXELS)]

    def records(self) -> list[dict[str, Any]]:
        """One flat record per line, for tables and programs: accuracies in per cent with their bounds."""
        return [dict(_record(line)) for line in self.lines()]

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
    kind = SUPERVISED if contender.task == SUPERVISED else "task"
    evaluation = contender.evaluation
    if evaluation is None:
        return Line(contender.task, kind, None, contender=contender)
    row, untrained = evaluation.row(ENCODER, evaluation.best), best_row(evaluation.rows, RANDOM)
    pairs = {
        name: (factor.known[ENCODER].score, factor.known[RANDOM].score) for name, factor in evaluation.factors.items()
    }
    if row and untrained:
        pairs |= {name: (score, untrained.scores[name]) for name, score in row.scores.items()}
    told = next((name for name in HEADLINES if name in evaluation.pretext), None)
    value = evaluation.pretext[told] if told else None
    return Line(
        contender.task,
        kind,
        row,
        (told, value.mean, value.chance) if told and value else None,
        contender,
        frozenset(name for name, (ours, theirs) in pairs.items() if ours.mean < theirs.mean),
        frozenset(name for name, (ours, theirs) in pairs.items() if ours.low > theirs.high),
        {name: factor.known[ENCODER] for name, factor in evaluation.factors.items()},
    )


def _rivals(contenders: Sequence[Contender], source: str) -> Iterator[Line]:
    """What the encoders must beat, once where several have the same: a network's untrained self, raw pixels."""
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
    """Whether all scores of both are those of the same network."""
    ours, theirs = one.scores, other.scores
    return ours.keys() == theirs.keys() and all(abs(ours[name].mean - theirs[name].mean) < ALIKE for name in ours)


def _record(line: Line) -> Iterator[tuple[str, Any]]:
    contender = line.contender
    yield "what", line.title
    yield "kind", line.kind
    yield "recipe", contender.recipe if contender else None
    yield "encoder", contender.encoder if contender else None
    yield "layer", line.row.layer if line.row else None
    for name, score in line.scores.items():
        yield from in_percent(name, score).items()
    yield "rank_me", line.row.measures.get("rank_me") if line.row else None
    yield "pretext metric", line.pretext[0] if line.pretext else None
    yield "pretext value", line.pretext[1] if line.pretext else None
    yield "pretext chance", line.pretext[2] if line.pretext else None
    yield "samples per second", contender.rate if contender else None
    yield "peak memory MiB", contender.memory / 2**20 if contender else None
    yield "steps", contender.steps if contender else None
    yield "computing seconds", contender.seconds if contender else None
    yield "failure", contender.failure if contender else None


def _metric_name(text: str) -> str:
    """What MLflow takes for a metric's name."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in text)
