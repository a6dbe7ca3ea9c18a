"""The comparison as one HTML file, like the report of a run: no request leaves it, and all from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from components.evaluation.comparison import Comparison, Line
from components.reports.report import PROBES, data_uri, percent, template

COLUMNS = ("RankMe", "Pretext", "Chance", "Samples/s", "Peak memory")
HEADINGS = {
    "probes": (
        "Every encoder on every probe",
        "At the layer that is best on the training part, with 95 % intervals, beside the same network untrained.",
    ),
    "factors": (
        "What each encoder knows, and is blind to",
        (
            "Each factor is read out linearly from the layer that tells it best on a held-out half of the training "
            "part: accuracy of names, R², in per cent."
        ),
    ),
}


def write_comparison(comparison: Comparison, figures: Mapping[str, bytes], answers: Mapping[str, bytes]) -> str:
    """The page. `figures`: name -> PNG, as `comparison_figures.draw` returns them; `answers`: run -> PNG."""
    lines = comparison.lines()
    return template("comparison.html").render(
        title=comparison.name,
        comparison=comparison,
        samples=next((evaluation.samples for evaluation in comparison.evaluations), None),
        columns=["Best layer", *(PROBES.get(name, name) for name in comparison.probes), *COLUMNS],
        rows=[{"line": line, "cells": list(_cells(line, comparison))} for line in lines],
        figures=[(name, *HEADINGS[name], data_uri(png)) for name, png in figures.items()],
        answers=[(one, data_uri(answers[one.run])) for one in comparison.evaluated if answers.get(one.run)],
        failed=[one for one in comparison.contenders if one.failure],
    )


def _cells(line: Line, comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """(text, small text, standing) of each column."""
    yield line.row.layer if line.row else "failed", "", ""
    for name in comparison.probes:
        score = line.score(name)
        yield (*percent(score), line.standing(name)) if score else ("–", "", "")
    yield _number(line.row.measures.get("rank_me") if line.row else None, "{:.1f}"), "", ""
    yield from _pretext(line)
    one = line.contender if line.row else None
    yield _number(one.rate if one else None, "{:,.0f}"), f"{one.steps:,} steps" if one else "", ""
    yield _number(one.memory / 2**30 if one else None, "{:.1f} GiB"), "", ""


def _pretext(line: Line) -> Iterator[tuple[str, str, str]]:
    if line.pretext is None:
        yield from (("–", "", ""), ("–", "", ""))
        return
    name, value, chance = line.pretext
    share = name != "loss"
    yield f"{100 * value:.1f}" if share else f"{value:.2f}", name, ""
    yield _number(100 * chance if chance is not None and share else chance, "{:.1f}"), "", ""


def _number(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)
