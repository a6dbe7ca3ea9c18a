"""A comparison as small as can be: two tasks, the supervised reference, and one that failed."""

from __future__ import annotations

from dataclasses import replace

from components.evaluation.comparison import Comparison, Contender
from components.evaluation.references import ENCODER, PIXELS, RANDOM
from components.evaluation.result import Evaluation, Factor, Known, Pretext, Row
from ssl_core.probes.intervals import Interval


def around(mean: float, half: float = 0.02) -> Interval:
    return Interval(mean, mean - half, mean + half)


def evaluation(linear: float, untrained: float = 0.5, hue: float = 0.1, untrained_hue: float = 0.3) -> Evaluation:
    """An encoder of two layers of which the second is the better one, on one probe and one factor."""
    shared = {"measures": {"rank_me": 7.0}}
    rows = (
        Row(ENCODER, "stage1", 8, {"linear": around(0.2)}, train_knn=0.1, **shared),
        Row(ENCODER, "stage2", 8, {"linear": around(linear)}, train_knn=0.9, **shared),
        Row(RANDOM, "stage1", 8, {"linear": around(untrained)}, train_knn=0.5, **shared),
        Row(PIXELS, "", 8, {"linear": around(0.6)}, train_knn=0.6, **shared),
    )
    known = {ENCODER: Known("stage1", around(hue)), RANDOM: Known("stage1", around(untrained_hue))}
    return Evaluation(
        rows=rows,
        best="stage2",
        samples={"train": 20, "test": 10},
        classes=("a", "b"),
        evaluation_set="e",
        settings={"shots": (1,), "draws": 3},
        pretext={"loss": Pretext(1.0, 0.9, 1.1, None), "accuracy": Pretext(0.7, 0.6, 0.8, 0.25)},
        collapse="",
        notes=(),
        correct={},
        factors={"hue": Factor("quantity", 0.0, known | {PIXELS: Known("", around(0.8))})},
    )


def contender(recipe: str, task: str, evaluated: Evaluation | None, **more: object) -> Contender:
    return replace(Contender(recipe, task, "resnet18", f"{recipe}-key", evaluated, 100, 9.5, 250.0, 1 << 30), **more)


def comparison(*contenders: Contender) -> Comparison:
    return Comparison("side", "corpus", 3, 100.0, "CPU-seconds", contenders)


BOTH = comparison(
    contender("good", "simclr", evaluation(0.9, hue=0.5)),
    contender("reference", "supervised", evaluation(0.95)),
    contender("bad", "rotation", evaluation(0.4)),
    contender("broken", "jigsaw", None, failure="The loss became <NaN>."),
)
