"""The figures of a run, as PNG bytes, in one style with colours for colour-blind readers (Okabe & Ito 2008).

Evidence -> what the task saw and answered, nearest neighbours, embedding map;  Evaluation -> layers;  points -> curves
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluation.evaluate import Evidence
from components.evaluation.metrics import ACCURACY, FACTOR_SCORES, LOSS, R2, Metric
from components.evaluation.references import ENCODER, Role, role_of
from components.evaluation.result import Evaluation, Row
from components.tracking.tracker import Logged
from ssl_core.probes.intervals import Interval
from ssl_core.types import Panel

INK, FAINT, GRID = "#1b1f24", "#6b7280", "#e5e7eb"
RIGHT, WRONG = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Look:
    """How a source is drawn."""

    colour: str
    marker: str


LOOKS: Mapping[Role, Look] = {
    "encoder": Look("#0072b2", "o"),
    "untrained": Look("#e69f00", "s"),
    "raw input": Look("#6b7280", "D"),
    "supervised": Look("#009e73", "D"),
}
CLASSES = (
    *("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677"),
    *("#aa4499", "#44aa99", "#999933", "#882255", "#d55e00"),
)
"""Tol's muted palette; the map also writes each class's name at its place, as ten colours are hard to tell apart."""
_STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.dpi": 144,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}
_MOST_ROWS = 8

Scaled: TypeAlias = tuple[float, float, float]
"""Mean, low and high of a score, as `Metric.scaled` gives them."""


def draw(evaluation: Evaluation, evidence: Evidence, points: Sequence[Logged] = ()) -> dict[str, bytes]:
    """All figures of a run: name -> PNG, in the order of a report. A figure without data is left out."""
    figures = {
        "layers": layers(evaluation) if evaluation.classes else None,
        "factors": factors(evaluation) if evaluation.factors else None,
        "answers": answers(evidence.panel),
        "neighbours": nearest(evidence),
        "map": embedding_map(evidence),
        "curves": curves(points),
    }
    return {name: png for name, png in figures.items() if png}


def layers(evaluation: Evaluation) -> bytes:
    """Accuracy of every probe at every layer, with 95 % intervals, beside the untrained network and the raw input."""
    probes = evaluation.probes
    with house_figure(3.1 * len(probes), 3.2) as (figure, png):
        for index, probe in enumerate(probes):
            axes = figure.add_subplot(1, len(probes), index + 1)
            _layer_axes(axes, evaluation, probe)
            if index == 0:
                axes.set_ylabel(ACCURACY.axis)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return png.getvalue()


def _layer_axes(axes: Axes, evaluation: Evaluation, probe: Metric) -> None:
    rows: dict[str, list[Row]] = {}
    for row in evaluation.rows:
        rows.setdefault(row.source, []).append(row)
    names = [row.layer for row in rows[ENCODER]]
    networks = [source for source in rows if role_of(source) != "raw input"]
    for source in (source for source in rows if source not in networks):
        band(axes, probe.scaled(rows[source][0].scores[probe.key]), source, upright=False)
    for place, source in enumerate(reversed(networks)):
        shift = 0.18 * (len(networks) - 1 - place) - 0.09
        _dots(axes, [probe.scaled(row.scores[probe.key]) for row in rows[source]], source, shift)
    best = evaluation.row(ENCODER, evaluation.best)
    if best:
        _mark(axes, names.index(evaluation.best) - 0.09, probe, best.scores[probe.key])
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 6 else 60)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
    axes.set_title(probe.title)


def band(axes: Axes, scaled: Scaled, label: str, upright: bool) -> None:
    """A score without layers, such as a raw input's: a dashed line in the band of its interval."""
    mean, low, high = scaled
    colour = LOOKS["raw input"].colour
    span, line = (axes.axvspan, axes.axvline) if upright else (axes.axhspan, axes.axhline)
    span(low, high, color=colour, alpha=0.12, lw=0)
    line(mean, color=colour, ls=(0, (4, 3)), lw=1.2, label=label)


def _dots(axes: Axes, scores: Sequence[Scaled], source: str, shift: float) -> None:
    x = np.arange(len(scores)) + shift
    mean, spread = _bars(scores)
    look = LOOKS[role_of(source)]
    axes.plot(x, mean, color=look.colour, alpha=0.35, lw=1.2)
    axes.errorbar(
        x, mean, spread, fmt=look.marker, color=look.colour, ms=5, elinewidth=1.4, label=source, mec="white", mew=0.6
    )


def _bars(scores: Sequence[Scaled]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Means [n], and how far the intervals reach down and up [2, n]."""
    mean, low, high = (np.array(values) for values in zip(*scores))
    return mean, np.abs(np.stack([mean - low, high - mean]))


def _mark(axes: Axes, x: float, probe: Metric, score: Interval) -> None:
    axes.annotate(
        probe.number(score.mean),
        (x, probe.scaled(score)[2]),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
        weight="bold",
        color=LOOKS["encoder"].colour,
    )


def factors(evaluation: Evaluation) -> bytes:
    """How well each factor can be read from the encoder and its references, with 95 % intervals."""
    factors = evaluation.factors
    sources = list(dict.fromkeys(source for factor in factors.values() for source in factor.known))
    with house_figure(8.6, 1.0 + 0.4 * len(factors)) as (figure, png):
        axes = figure.add_subplot()
        for place, source in enumerate(sources):
            known = [(y, factor.metric, factor.known.get(source)) for y, factor in enumerate(factors.values())]
            shift = 0.22 * (place - (len(sources) - 1) / 2)
            scores = [(y + shift, metric.scaled(each.score)) for y, metric, each in known if each]
            look = LOOKS[role_of(source)]
            style = {"fmt": look.marker, "color": look.colour, "ms": 5.5, "elinewidth": 1.4, "mew": 0.6}
            dots_across(axes, scores, source, style)
        for y, factor in enumerate(factors.values()):
            label, chance = "chance level" if y == 0 else "", factor.metric.scale * factor.chance
            axes.vlines(chance, y - 0.4, y + 0.4, color=INK, lw=1.2, ls=(0, (2, 2)), label=label)
        axes.set_yticks(range(len(factors)), list(factors), color=INK)
        axes.set_ylim(len(factors) - 0.4, -0.6)
        axes.set_xlim(right=103)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(FACTOR_SCORES)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return png.getvalue()


def dots_across(axes: Axes, scores: Sequence[tuple[float, Scaled]], label: str, style: Mapping[str, Any]) -> None:
    """Draws scores at their heights, with their intervals. `style`: arguments of `Axes.errorbar`."""
    if scores:
        mean, spread = _bars([score for _, score in scores])
        axes.errorbar(mean, [y for y, _ in scores], xerr=spread, label=label, mec="white", **style)


def answers(panel: Panel) -> bytes:
    """What the task showed the model, and what the model answered: one block of pictures per example."""
    columns = list(panel.columns.items())
    n = min(_MOST_ROWS, len(panel.captions))
    side, gap, words, top = 1.0, 0.08, 0.34, 0.25 if len(columns) > 1 else 0.05
    block = len(columns) * (side + gap) + 0.35
    wide = max(1, min(n, int(10 // block)))
    rows = -(-n // wide)
    with house_figure(wide * block - 0.2, rows * (side + words) + top, layout=None) as (figure, png):
        for i in range(n):
            x, y = i % wide * block + 0.05, top + i // wide * (side + words)
            for j, (title, images) in enumerate(columns):
                axes = _place(figure, x + j * (side + gap), y, side)
                _picture(axes, images[i].detach().cpu().permute(1, 2, 0).numpy())
                if i < wide and len(columns) > 1:
                    axes.set_title(title, fontsize=7.5, weight="normal", color=FAINT, loc="center", pad=4)
            middle = x + (len(columns) * (side + gap) - gap) / 2
            _write(figure, middle, y + side + 0.14, cut(panel.captions[i], int(14 * block)))
    return png.getvalue()


def nearest(evidence: Evidence) -> bytes:
    """Test pictures, each with the training pictures that the encoder finds most alike."""
    n, found = evidence.neighbours.shape[:2]
    side, gap, words, top, apart = 0.78, 0.08, 0.26, 0.32, 0.2
    wide = 2 if n > 4 else 1
    rows = -(-n // wide)
    block = (found + 1) * (side + gap) + apart + 0.35
    with house_figure(wide * block - 0.2, rows * (side + words) + top + 0.05, layout=None) as (figure, png):
        for column in range(wide):
            x = column * block + 0.05
            _write(figure, x, 0.16, "query", ha="left", weight="bold")
            _write(figure, x + side + gap + apart, 0.16, "nearest in the training set", ha="left", weight="bold")
        for i in range(n):
            x, y = i // rows * block + 0.05, top + i % rows * (side + words)
            _picture(_place(figure, x, y, side), evidence.queries[i], evidence.captions[i][0], INK)
            for j in range(found):
                axes = _place(figure, x + (j + 1) * (side + gap) + apart, y, side)
                _picture(axes, evidence.neighbours[i, j], *_verdict(evidence, i, j))
    return png.getvalue()


def _verdict(evidence: Evidence, query: int, rank: int) -> tuple[str, str]:
    """Caption and colour of a neighbour: right or wrong, or without labels only how near it is."""
    own, *others = evidence.captions[query]
    if not evidence.labels:
        return others[rank], FAINT
    same = own == others[rank]
    return others[rank] + ("" if same else " ✗"), RIGHT if same else WRONG


def _place(figure: Figure, x: float, y: float, side: float) -> Axes:
    """Square axes whose upper left corner is x, y inches from the figure's."""
    width, height = figure.get_size_inches()
    axes: Axes = figure.add_axes((x / width, 1 - (y + side) / height, side / width, side / height))
    return axes


def _write(figure: Figure, x: float, y: float, text: str, ha: str = "center", **style: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, ha=ha, va="center", fontsize=7.5, **style)


def cut(text: str, most: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _picture(axes: Axes, image: npt.NDArray[Any], caption: str = "", colour: str | None = None) -> None:
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 64 else "antialiased", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour or GRID, linewidth=2.0 if colour in (RIGHT, WRONG) else 0.8)
    if caption:
        axes.set_xlabel(cut(caption, 14), fontsize=7.5, labelpad=2, color=colour or FAINT)


def embedding_map(evidence: Evidence) -> bytes | None:
    """Test samples laid out by similarity (t-SNE of the best layer), coloured by label; None for fewer than 10."""
    if len(evidence.features) < 10:
        return None
    places = _lay_out(evidence.features)
    with house_figure(6.4, 5.4) as (figure, png):
        axes = figure.add_subplot()
        if evidence.labels:
            _scatter_classes(axes, places, np.array(evidence.labels))
        else:
            axes.scatter(places[:, 0], places[:, 1], s=14, color=LOOKS["encoder"].colour, alpha=0.7, lw=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{len(places):,} samples, t-SNE of {evidence.layer}")
    return png.getvalue()


def _lay_out(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[m, d] -> [m, 2]: cosine t-SNE, started from the principal components."""
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    init = "pca" if min(unit.shape) >= 2 and np.ptp(unit) > 0 else "random"
    places: npt.NDArray[np.float32] = TSNE(2, perplexity=perplexity, init=init, random_state=0).fit_transform(unit)
    return places


def _scatter_classes(axes: Axes, places: npt.NDArray[np.float32], labels: npt.NDArray[np.str_]) -> None:
    names, counts = np.unique(labels, return_counts=True)
    shown = sorted(names[np.argsort(-counts, kind="stable")[: len(CLASSES)]])
    rest = ~np.isin(labels, shown)
    axes.scatter(places[rest, 0], places[rest, 1], s=10, color=GRID, lw=0)
    for name, colour in zip(shown, CLASSES):
        mine = places[labels == name]
        axes.scatter(mine[:, 0], mine[:, 1], s=20, color=colour, alpha=0.85, lw=0.4, edgecolors="white")
    for name, colour in zip(shown, CLASSES):
        x, y = np.median(places[labels == name], axis=0)
        box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": colour, "lw": 1.2, "alpha": 0.9}
        axes.text(x, y, name, ha="center", va="center", weight="bold", fontsize=8.5, color=INK, bbox=box)


def curves(points: Sequence[Logged]) -> bytes | None:
    """Loss, accuracy or R², learning rate and effective rank over the steps; None if all have fewer than two points."""
    wanted = {LOSS.key: LOSS.title, **{metric.key: f"Pretext {metric.axis}" for metric in (ACCURACY, R2)}}
    wanted |= {"lr": "Learning rate", "effective_rank": "Effective rank"}
    scales = {metric.key: metric.scale for metric in (ACCURACY, R2)}
    series = {name: _series(points, name, scales.get(name, 1)) for name in wanted}
    series = {name: values for name, values in series.items() if len(values[0]) > 1}
    if not series:
        return None
    with house_figure(3.1 * len(series), 2.6) as (figure, png):
        for index, (name, (steps, values)) in enumerate(series.items()):
            axes = figure.add_subplot(1, len(series), index + 1)
            axes.plot(steps, values, color=LOOKS["encoder"].colour)
            axes.set_title(wanted[name])
            axes.set_xlabel("step")
            axes.set_xlim(min(steps), max(steps))
            if name == ACCURACY.key:
                axes.set_ylim(0, 1.02 * ACCURACY.scale)
    return png.getvalue()


def _series(points: Sequence[Logged], name: str, scale: int) -> tuple[list[int], list[float]]:
    found = [(point.step, scale * point.metrics[name]) for point in points if name in point.metrics]
    found = [(step, value) for step, value in found if np.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


@contextmanager
def house_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure in our style; after the block its PNG is in the buffer. Without pyplot: no global state, no display."""
    png = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        yield figure, png
        figure.savefig(png, format="png")
