"""A comparison as one HTML file, like the report of a run: it sends no request, and escapes all text from outside."""

from __future__ import annotations

from collections.abc import Mapping

from components.evaluation.comparison import Comparison
from components.evaluation.metrics import ACCURACY, FACTOR_SCORES, RANK_ME
from components.reports.report import data_uri, template
from components.reports.tables import comparison_tables

HEADINGS = {
    "probes": (
        "Every encoder on every probe",
        "At the layer that is best on the training part, with 95 % intervals, beside the same network untrained.",
    ),
    "factors": (
        "What each encoder knows, and what it has lost",
        (
            "Each factor is read linearly from the layer that is best for it on a held-out half of the training part "
            f"({FACTOR_SCORES})."
        ),
    ),
}


def write_comparison(comparison: Comparison, figures: Mapping[str, bytes], answers: Mapping[str, bytes]) -> str:
    """The page. `figures`: name -> PNG, as `comparison_figures.draw` returns them; `answers`: run -> PNG."""
    lines, scores = comparison.lines(), next(comparison_tables(comparison))
    titles = {metric.column: metric.title for metric in (*comparison.probes, RANK_ME)}
    return template("comparison.html").render(
        title=comparison.name,
        comparison=comparison,
        samples=next((evaluation.samples for evaluation in comparison.evaluations), None),
        scores=ACCURACY.axis.capitalize(),
        columns=[titles.get(column, column[:1].upper() + column[1:]) for column in scores.columns],
        rows=[{"line": line, "cells": cells[1:]} for line, cells in zip(lines, scores.rows)],
        figures=[(name, *HEADINGS[name], data_uri(png)) for name, png in figures.items()],
        answers=[(one, data_uri(answers[one.run])) for one in comparison.evaluated if answers.get(one.run)],
        failed=[one for one in comparison.contenders if one.failure],
    )
