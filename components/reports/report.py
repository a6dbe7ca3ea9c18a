"""The run as one HTML file: no request leaves it, and all that comes from outside is escaped.

Evaluation + figures (PNG) + About (what was run) -> templates/report.html -> the page
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from components.evaluation.result import ENCODER, PIXELS, RANDOM, Evaluation, Row
from ssl_core.probes.intervals import Interval

TEMPLATES = Path(__file__).parent / "templates"
PROBES = {"linear": "Linear probe", "knn": "kNN", "1-shot": "1 label", "5-shot": "5 labels"}
MEASURES = {"rank_me": "RankMe", "alignment": "Alignment", "uniformity": "Uniformity"}
FIGURES = {
    "layers": (
        "Every layer against its rivals",
        (
            "Accuracy on the test part, with 95 % intervals: over test samples for the linear probe and kNN, over "
            "label draws for the few-label probes. The best layer, chosen on the training part, carries its figure."
        ),
    ),
    "factors": (
        "What the encoder knows",
        (
            "How well each factor is told on the test part, with 95 % intervals, by the layer that tells it best on a "
            "held-out half of the training part."
        ),
    ),
    "answers": ("What the task saw and answered", "Test samples as the pretext task showed them to the network."),
    "neighbours": (
        "Nearest neighbours",
        "Test pictures and the training pictures whose features are most alike, nearest first.",
    ),
    "map": (
        "Embedding map",
        "Features of test samples, laid out so that like is near like; distances far apart say little.",
    ),
    "curves": ("Training", "Curves of the pretext task. They say that training worked, not that the encoder is good."),
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
        samples: that were trained on.
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
    """The page, about as large as its pictures. `figures`: name -> PNG, as `figures.draw` returns them."""
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
        figures=[(name, *FIGURES[name], data_uri(figures[name])) for name in known],
    )


def template(name: str) -> Template:
    """One of ours, which escapes whatever is put into it."""
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


def percent(score: Interval) -> tuple[str, str]:
    """A score and its interval, as texts."""
    return f"{100 * score.mean:z.1f}", f"{100 * score.low:z.1f} – {100 * score.high:z.1f}"


def _table(evaluation: Evaluation, rows: Sequence[Row]) -> dict[str, Any]:
    """Column titles and rows of cells; a cell is (text, interval, is it the column's best)."""
    scores = list(evaluation.rows[0].scores)
    measures = [name for name in MEASURES if any(name in row.measures for row in rows)]
    top = {name: max(row.scores[name].mean for row in rows) for name in scores}
    body = []
    for row in rows:
        cells = [(*percent(row.scores[name]), row.scores[name].mean == top[name]) for name in scores]
        cells += [(f"{row.measures[name]:.2f}" if name in row.measures else "–", "", False) for name in measures]
        chosen = row.source == ENCODER and row.layer == evaluation.best
        body.append({"source": row.source, "layer": row.layer, "dim": row.dim, "cells": cells, "chosen": chosen})
    columns = [PROBES.get(name, name) for name in scores] + [MEASURES[name] for name in measures]
    return {"columns": columns, "body": body}


def _factors(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each factor: (text, interval, layer, is it the row's best) by source, and the chance level."""
    rows = []
    for name, factor in evaluation.factors.items():
        best = max(known.score.mean for known in factor.known.values())
        cells = {
            source: (*percent(known.score), known.layer, known.score.mean == best)
            for source, known in factor.known.items()
        }
        rows.append({"name": name, "kind": factor.kind, "cells": cells, "chance": f"{100 * factor.chance:.1f}"})
    return rows


def _cards(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Per probe the encoder's accuracy large, and a small track with it, its rivals and their intervals."""
    rows = {row.source: row for row in evaluation.headline()}
    cards = []
    for probe in rows[ENCODER].scores:
        value, interval = percent(rows[ENCODER].scores[probe])
        tracks = [_track(source, rows[source].scores[probe]) for source in (ENCODER, RANDOM, PIXELS) if source in rows]
        cards.append({"title": PROBES.get(probe, probe), "value": value, "interval": interval, "tracks": tracks})
    return cards


def _track(source: str, score: Interval) -> dict[str, Any]:
    """Places in per cent of the track's width, which is accuracy from 0 to 100."""
    low, high = 100 * score.low, 100 * score.high
    return {
        "source": source,
        "kind": source.replace(" ", "-"),
        "mean": round(100 * score.mean, 2),
        "low": round(low, 2),
        "width": round(high - low, 2),
        "value": percent(score)[0],
    }


def _verdict(evaluation: Evaluation) -> tuple[str, str]:
    """One sentence on top, and its tone: good, mixed, bad or plain."""
    if evaluation.collapse:
        return "The representation has collapsed. " + evaluation.collapse, "bad"
    ours, *rivals = evaluation.headline()
    if not ours.scores:
        return (
            "Evaluated without labels: the representation has not collapsed; nothing is known of its accuracy.",
            "plain",
        )
    better = [
        probe for probe, score in ours.scores.items() if all(score.mean > peer.scores[probe].mean for peer in rivals)
    ]
    if len(better) == len(ours.scores):
        return "On every probe the encoder is above its untrained self and raw pixels.", "good"
    share = f"{len(better)} of {len(ours.scores)} probes"
    names = ", ".join(PROBES.get(probe, probe).lower().replace("knn", "kNN") for probe in better)
    if not better:
        return "On no probe is the encoder above both its untrained self and raw pixels.", "bad"
    return (
        f"The encoder is above its untrained self and raw pixels on {share}: {names}.",
        "mixed",
    )


def _pretext(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """Metric, value, interval and chance, the accuracies in per cent."""
    lines = []
    for name, value in evaluation.pretext.items():
        scale, unit, digits = (100, " %", 1) if name == "accuracy" else (1, "", 3)
        texts = [f"{scale * number:.{digits}f}" for number in (value.mean, value.low, value.high)]
        chance = "–" if value.chance is None else f"{scale * value.chance:.{digits}f}{unit}"
        lines.append((name, texts[0] + unit, f"{texts[1]} – {texts[2]}", chance))
    return lines
