"""An evaluation as a real one is shaped, with hostile texts in it, and what its figures are drawn from."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import torch

from components.evaluation.evaluate import Evidence
from components.evaluation.references import ENCODER, PIXELS, RANDOM
from components.evaluation.result import Evaluation, Factor, Known, Pretext, Row
from ssl_core.probes.intervals import Interval
from ssl_core.types import Panel

EVIL = "<script>alert('1')</script>\"&"


def score(mean):
    return Interval(mean, mean - 0.02, mean + 0.02)


def make_evaluation(better=0.1, labels=True, collapse=""):
    names = ("linear", "knn", "1-shot", "5-shot") if labels else ()
    measures = {"rank_me": 12.5, "alignment": 0.1, "uniformity": -2.0}
    rows = [
        Row(source, layer, 32, {name: score(base) for name in names}, measures, base)
        for source, base in ((ENCODER, 0.7 + better), (RANDOM, 0.5), (PIXELS, 0.7))
        for layer in (("stage1", "stage2") if source != PIXELS else ("",))
    ]
    return Evaluation(
        rows=tuple(rows),
        best="stage2",
        samples={"train": 1347, "test": 450},
        classes=tuple("0123456789") if labels else (),
        evaluation_set="0123456789abcdef",
        settings={"draws": 20},
        pretext={"accuracy": Pretext(0.9, 0.88, 0.92, 0.25)},
        collapse=collapse,
        notes=(EVIL,),
        correct={},
    )


def with_factors(evaluation):
    """The evaluation, of an encoder that knows hue, and of one factor whose name is hostile."""

    def factor(kind, chance, *means):
        layers = ("stage1", "stage2", "")
        known = zip((ENCODER, RANDOM, PIXELS), layers, means)
        return Factor(kind, chance, {source: Known(layer, score(mean)) for source, layer, mean in known})

    factors = {"hue": factor("circle", 0.0, 0.63, 0.41, -0.0004), EVIL: factor("name", 0.125, 0.31, 0.22, 0.17)}
    return dataclasses.replace(evaluation, factors=factors)


def make_evidence(labels=True):
    rng = np.random.default_rng(0)
    labels_of = tuple(str(i % 3) for i in range(60)) if labels else ()
    return Evidence(
        layer="stage2",
        features=rng.normal(size=(60, 8)).astype(np.float32),
        labels=labels_of,
        queries=rng.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8),
        neighbours=rng.integers(0, 255, (6, 5, 16, 16, 3), dtype=np.uint8),
        captions=tuple(("0", "0", "1", "0", "2", "0") for _ in range(6)),
        panel=Panel({"input": torch.rand(9, 3, 16, 16), "answer": torch.rand(9, 3, 24, 24)}, [EVIL] * 9),
    )


def points(n=20):
    return [SimpleNamespace(step=i, metrics={"loss": 5 / (i + 1), "lr": 0.1, "accuracy": i / n}) for i in range(n)]
