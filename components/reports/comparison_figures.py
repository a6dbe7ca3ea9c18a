"""The pictures of a comparison: every encoder on every probe beside its untrained self, and who knows which factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from components.evaluation.comparison import MARKED, MARKS, Comparison, Contender, Line
from components.evaluation.result import ENCODER, PIXELS, RANDOM, best_row
from components.reports.figures import COLOURS, FAINT, INK, MARKERS, TITLES, dots_across, house_figure
from ssl_core.probes.intervals import Interval

SUPERVISED_COLOUR = "#009e73"


def draw(comparison: Comparison) -> dict[str, bytes]:
    """All figures: name -> PNG. What there is no data for is left out."""
    figures: dict[str, bytes] = {}
    if comparison.evaluated and comparison.probes:
        figures["probes"] = probes(comparison)
    if comparison.evaluated and comparison.factors:
        figures["factors"] = factors(comparison)
    return figures


def probes(comparison: Comparison) -> bytes:
    """A panel for each probe, a row for each encoder: its accuracy, its untrained self's, and raw pixels as a line."""
    everything = comparison.lines()
    lines = [line for line in everything if line.row and line.contender]
    pixels = next((line for line in everything if line.kind == PIXELS), None)
    names = [line.title for line in lines]
    with house_figure(2.4 + 2.3 * len(comparison.probes), 1.1 + 0.27 * len(lines)) as (figure, png):
        panels = figure.subplots(1, len(comparison.probes), sharey=True, squeeze=False)[0]
        for axes, probe in zip(panels, comparison.probes):
            _panel(axes, lines, pixels, probe)
        panels[0].set_yticks(range(len(lines)), names, color=INK)
        panels[0].set_ylim(len(lines) - 0.4, -0.6)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return png.getvalue()


def _panel(axes: Axes, lines: Sequence[Line], pixels: Line | None, probe: str) -> None:
    score = pixels.score(probe) if pixels else None
    if score:
        axes.axvspan(100 * score.low, 100 * score.high, color=COLOURS[PIXELS], alpha=0.12, lw=0)
        axes.axvline(100 * score.mean, color=COLOURS[PIXELS], ls=(0, (4, 3)), lw=1.2, label=PIXELS)
    untrained = [_untrained(line.contender, probe) for line in lines]
    _dots(axes, untrained, COLOURS[RANDOM], MARKERS[RANDOM], "its untrained network", 0.14)
    tasks = [line.score(probe) if line.kind == "task" else None for line in lines]
    _dots(axes, tasks, COLOURS[ENCODER], MARKERS[ENCODER], "pretext task", -0.14)
    supervised = [line.score(probe) if line.kind != "task" else None for line in lines]
    _dots(axes, supervised, SUPERVISED_COLOUR, "D", "supervised", -0.14)
    axes.grid(axis="y", visible=False)
    axes.set_title(TITLES.get(probe, probe))
    axes.set_xlabel("accuracy, %")


def _untrained(contender: Contender | None, probe: str) -> Interval | None:
    row = best_row(contender.evaluation.rows, RANDOM) if contender and contender.evaluation else None
    return row.scores.get(probe) if row else None


def _dots(axes: Axes, scores: Sequence[Interval | None], colour: str, marker: str, label: str, shift: float) -> None:
    style = {"fmt": marker, "color": colour, "ms": 4.5, "elinewidth": 1.3, "mew": 0.5}
    dots_across(axes, [(i + shift, score) for i, score in enumerate(scores) if score], label, style)


def factors(comparison: Comparison) -> bytes:
    """Rows encoders, columns factors: how well each is told, from chance (white) to perfectly (blue)."""
    lines = [line for line in comparison.lines() if line.factors]
    names = comparison.factors
    with house_figure(2.6 + 0.85 * len(names), 0.9 + 0.28 * len(lines)) as (figure, png):
        axes = figure.add_subplot()
        values = np.array([[_share(line, name, comparison.chance) for name in names] for line in lines])
        axes.imshow(values, cmap=_blues(), vmin=0, vmax=1, aspect="auto")
        for i, line in enumerate(lines):
            for j, name in enumerate(names):
                _write_score(axes, j, i, line, name, dark=values[i, j] > 0.55)
        axes.set_yticks(range(len(lines)), [_short(line.title) for line in lines], color=INK)
        axes.set_xticks(range(len(names)), names, color=INK)
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"{MARKED}; white: no better than chance", fontsize=8)
    return png.getvalue()


def _share(line: Line, name: str, chance: Mapping[str, float]) -> float:
    """Of the way from chance to perfection."""
    score = line.score(name)
    return max(0.0, (score.mean - chance[name]) / (1 - chance[name])) if score else 0.0


def _write_score(axes: Axes, x: int, y: int, line: Line, name: str, dark: bool) -> None:
    score = line.score(name)
    if score is None:
        return
    standing = line.standing(name)
    style: dict[str, Any] = {"weight": "bold" if standing == "above" else "normal", "fontsize": 8}
    style["color"] = "white" if dark else FAINT if standing == "below" else INK
    axes.text(x, y, f"{100 * score.mean:.0f} {MARKS[standing]}".strip(), ha="center", va="center", **style)


def _short(title: str, most: int = 40) -> str:
    return title if len(title) <= most else title[: most - 1] + "…"


def _blues() -> mpl.colors.Colormap:
    return LinearSegmentedColormap.from_list("known", ["#ffffff", COLOURS[ENCODER]])
