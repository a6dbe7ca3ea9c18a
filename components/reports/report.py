"""A run as one HTML file: it sends no request, and escapes all text from outside.

Evaluation + figures (PNG) + About (what was run) -> templates/report.html -> the page
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from components.evaluation.metrics import FACTOR_SCORES, Metric, pretext_metric
from components.evaluation.references import ENCODER, reference, role_of
from components.evaluation.result import Evaluation, Row
from ssl_core.probes.intervals import Interval

TEMPLATES = Path(__file__).parent / "templates"
FIGURES = {
    "layers": (
        "Every layer beside its references",
        (
            "Accuracy on the test part, with 95 % intervals: over test samples for the linear probe and kNN, over "
            "draws of labels for the k-shot probes. The accuracy of the best layer, chosen on the training part, is "
            "written beside it."
        ),
    ),
    "factors": (
        "What the encoder knows",
        (
            "How well each factor can be read on the test part, with 95 % intervals, from the layer that is best for "
            "it on a held-out half of the training part."
        ),
    ),
    "answers": (
        "What the task saw and answered",
        "Test samples as the pretext task showed them to the network, and its answers.",
    ),
    "neighbours": (
        "Nearest neighbours",
        "Test pictures, and the training pictures whose features are most similar, nearest first.",
    ),
    "map": (
        "Embedding map",
        "Features of test samples, laid out so that similar ones are close; large distances mean little.",
    ),
    "curves": ("Training", "Curves of the pretext task. They show that training worked, not that the encoder is good."),
}
"""Figure -> heading and caption, in the order of the page."""


@dataclass(frozen=True)
class About:
    """What was run, for the head and the foot of the report.

    Attributes:
        title: name of the run.
        run_key: hash of what decides the weights.
        corpus: name of the corpus.
        version: of the corpus.
        digest: of the version's contents.
        samples: number of samples in it.
        recipe: the whole recipe as YAML.
        model: how to load the encoder: a URI such as models:/digits@champion, or the folder of the model; may be empty.
        facts: anything else for the head, name -> text: task, encoder, code version, date, duration.
    """

    title: str
    run_key: str
    corpus: str
    version: int
    digest: str
    samples: int
    recipe: str
    model: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(evaluation: Evaluation, figures: Mapping[str, bytes], about: About) -> str:
    """The page; its size is about that of its figures. `figures`: name -> PNG, as `figures.draw` returns them."""
    known = [name for name in FIGURES if name in figures]
    return template("report.html").render(
        title=about.title,
        about=about,
        evaluation=evaluation,
        verdict=_verdict(evaluation),
        cards=_cards(evaluation),
        headline=_table(evaluation, evaluation.headline()),
        everything=_table(evaluation, evaluation.rows),
        pretext=_pretext(evaluation),
        factors=_factors(evaluation),
        factor_scores=FACTOR_SCORES,
        roles={source: _css(source) for source in (ENCODER, *evaluation.references)},
        figures=[(name, *FIGURES[name], data_uri(figures[name])) for name in known],
    )


def template(name: str) -> Template:
    """A template from `templates/`, which escapes whatever is put into it."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def data_uri(png: bytes) -> str:
    """A picture as part of the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _table(evaluation: Evaluation, rows: Sequence[Row]) -> dict[str, Any]:
    """Column titles and rows of cells; a cell is (text, interval, whether it is the column's best)."""
    probes = evaluation.probes
    measures = [measure for measure in evaluation.measures if any(measure.key in row.measures for row in rows)]
    top = {probe.key: max(row.scores[probe.key].mean for row in rows) for probe in probes}
    body = []
    for row in rows:
        scores = [(probe, row.scores[probe.key]) for probe in probes]
        cells = [(probe.number(one.mean), probe.bounds(one), one.mean == top[probe.key]) for probe, one in scores]
        values = [(measure, row.measures.get(measure.key)) for measure in measures]
        cells += [("–" if value is None else measure.number(value), "", False) for measure, value in values]
        chosen = row.source == ENCODER and row.layer == evaluation.best
        about = {"source": row.source, "role": _css(row.source), "layer": row.layer, "dim": row.dim}
        body.append(about | {"cells": cells, "chosen": chosen})
    return {"columns": [metric.title for metric in (*probes, *measures)], "body": body}


def _css(source: str) -> str:
    """The source's class in style.css."""
    return role_of(source).replace(" ", "-")


def _factors(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each factor: by source (text, interval, layer, whether it is the row's best), and the chance level."""
    rows = []
    for name, factor in evaluation.factors.items():
        metric, best = factor.metric, max(known.score.mean for known in factor.known.values())
        cells = {
            source: (metric.number(one.score.mean), metric.bounds(one.score), one.layer, one.score.mean == best)
            for source, one in factor.known.items()
        }
        rows.append({"name": name, "kind": factor.kind, "cells": cells, "chance": metric.number(factor.chance)})
    return rows


def _cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A card for each probe: the encoder's accuracy, and small tracks of it and its references with intervals."""
    rows = evaluation.headline()
    cards = []
    for probe in evaluation.probes:
        own = rows[0].scores[probe.key]
        tracks = [_track(row.source, probe, row.scores[probe.key]) for row in rows]
        text, interval = probe.number(own.mean), probe.bounds(own)
        cards.append({"title": probe.title, "value": text, "unit": probe.unit, "interval": interval, "tracks": tracks})
    return cards


def _track(source: str, probe: Metric, score: Interval) -> dict[str, Any]:
    """A track; its width is accuracy from 0 to 100 %, so positions are in per cent."""
    mean, low, high = (round(place, 2) for place in probe.scaled(score))
    places = {"mean": mean, "low": low, "width": round(high - low, 2)}
    return places | {"source": source, "role": _css(source), "value": probe.number(score.mean)}


def _verdict(evaluation: Evaluation) -> tuple[str, str]:
    """The sentence at the top of the page, and its tone: good, mixed, bad or plain."""
    if evaluation.collapse:
        return "The representation has collapsed. " + evaluation.collapse, "bad"
    ours, *others = evaluation.headline()
    probes = evaluation.probes
    if not probes:
        return (
            "Evaluated without labels: the representation has not collapsed; its accuracy is not known.",
            "plain",
        )
    better = [
        probe.column
        for probe in probes
        if all(ours.scores[probe.key].mean > other.scores[probe.key].mean for other in others)
    ]
    names = " and ".join(reference(other.source).phrase for other in others)
    if len(better) == len(probes):
        return f"On every probe the encoder scores above {names}.", "good"
    if not better:
        return f"On no probe does the encoder score above {'both ' if len(others) == 2 else ''}{names}.", "bad"
    count = f"{len(better)} of {len(probes)} probes"
    return f"The encoder scores above {names} on {count}: {', '.join(better)}.", "mixed"


def _pretext(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """Rows of metric, value, interval and chance level."""
    lines = []
    for key, value in evaluation.pretext.items():
        metric, score = pretext_metric(key), Interval(value.mean, value.low, value.high)
        chance = "–" if value.chance is None else metric.text(value.chance)
        lines.append((metric.column, metric.text(value.mean), metric.bounds(score), chance))
    return lines
