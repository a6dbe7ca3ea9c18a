"""The figures of a comparison: encoders on every probe beside their untrained networks, and what each encoder knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from components.evaluation.comparison import MARKED, MARKS, Comparison, Contender, Line
from components.evaluation.metrics import ACCURACY, Metric
from components.evaluation.references import RANDOM, Role
from components.evaluation.result import best_row
from components.reports.figures import FAINT, INK, LOOKS, band, cut, dots_across, house_figure
from ssl_core.probes.intervals import Interval


def draw(comparison: Comparison) -> dict[str, bytes]:
    """All figures: name -> PNG. A figure without data is left out."""
    figures: dict[str, bytes] = {}
    if comparison.evaluated and comparison.probes:
        figures["probes"] = probes(comparison)
    if comparison.evaluated and comparison.factors:
        figures["factors"] = factors(comparison)
    return figures


def probes(comparison: Comparison) -> bytes:
    """A panel for each probe, a row for each encoder and its untrained network; the raw input is a line."""
    everything = comparison.lines()
    lines = [line for line in everything if line.row and line.contender]
    raw = next((line for line in everything if line.role == "raw input"), None)
    names = [line.title for line in lines]
    with house_figure(max(6.4, 2.4 + 2.3 * len(comparison.probes)), 1.1 + 0.27 * len(lines)) as (figure, png):
        panels = figure.subplots(1, len(comparison.probes), sharey=True, squeeze=False)[0]
        for axes, probe in zip(panels, comparison.probes):
            _panel(axes, lines, raw, probe)
        panels[0].set_yticks(range(len(lines)), names, color=INK)
        panels[0].set_ylim(len(lines) - 0.4, -0.6)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return png.getvalue()


def _panel(axes: Axes, lines: Sequence[Line], raw: Line | None, probe: Metric) -> None:
    score = raw.score(probe.key) if raw else None
    if raw and score:
        band(axes, probe.scaled(score), raw.title, upright=True)
    untrained = [_untrained(line.contender, probe.key) for line in lines]
    _dots(axes, probe, untrained, "untrained", "its untrained network", 0.14)
    tasks = [line.score(probe.key) if line.role == "encoder" else None for line in lines]
    _dots(axes, probe, tasks, "encoder", "pretext task", -0.14)
    supervised = [line.score(probe.key) if line.role == "supervised" else None for line in lines]
    _dots(axes, probe, supervised, "supervised", "supervised", -0.14)
    axes.grid(axis="y", visible=False)
    axes.set_title(probe.title)
    axes.set_xlabel(ACCURACY.axis)


def _untrained(contender: Contender | None, probe: str) -> Interval | None:
    row = best_row(contender.evaluation.rows, RANDOM) if contender and contender.evaluation else None
    return row.scores.get(probe) if row else None


def _dots(axes: Axes, probe: Metric, scores: Sequence[Interval | None], role: Role, label: str, shift: float) -> None:
    look = LOOKS[role]
    style = {"fmt": look.marker, "color": look.colour, "ms": 4.5, "elinewidth": 1.3, "mew": 0.5}
    dots_across(axes, [(i + shift, probe.scaled(score)) for i, score in enumerate(scores) if score], label, style)


def factors(comparison: Comparison) -> bytes:
    """How well each factor (column) can be read from each encoder (row): white is the chance level, blue perfect."""
    lines = [line for line in comparison.lines() if line.factors]
    names = list(comparison.factors)
    with house_figure(max(7.0, 2.6 + 0.85 * len(names)), 0.9 + 0.28 * len(lines)) as (figure, png):
        axes = figure.add_subplot()
        values = np.array([[_share(line, name, comparison.factors[name].chance) for name in names] for line in lines])
        axes.imshow(values, cmap=_blues(), vmin=0, vmax=1, aspect="auto")
        for i, line in enumerate(lines):
            for j, name in enumerate(names):
                _write_score(axes, (j, i), line, name, comparison.factors[name].metric, dark=values[i, j] > 0.55)
        axes.set_yticks(range(len(lines)), [cut(line.title, 40) for line in lines], color=INK)
        axes.set_xticks(range(len(names)), names, color=INK)
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.supxlabel(f"{MARKED}; white: at the chance level or below", fontsize=8, color=FAINT)
    return png.getvalue()


def _share(line: Line, name: str, chance: float) -> float:
    """The score as a share of the way from the chance level to a perfect score."""
    score = line.score(name)
    return max(0.0, (score.mean - chance) / (1 - chance)) if score else 0.0


def _write_score(axes: Axes, at: tuple[int, int], line: Line, name: str, metric: Metric, dark: bool) -> None:
    score = line.score(name)
    if score is None:
        return
    standing = line.standing(name)
    style: dict[str, Any] = {"weight": "bold" if standing == "above" else "normal", "fontsize": 8}
    style["color"] = "white" if dark else FAINT if standing == "below" else INK
    axes.text(*at, f"{metric.number(score.mean, 0)} {MARKS[standing]}".strip(), ha="center", va="center", **style)


def _blues() -> mpl.colors.Colormap:
    return LinearSegmentedColormap.from_list("known", ["#ffffff", LOOKS["encoder"].colour])
