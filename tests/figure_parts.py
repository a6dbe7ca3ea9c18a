"""What stands on matplotlib's axes, as plain data for assertions."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

Points = list[tuple[float, float]]


def points(axes: Axes, label: str) -> tuple[Points, str]:
    """Places of the markers with that label, rounded, and their colour."""
    (bars,) = [one for one in error_bars(axes) if one.get_label() == label]
    line = bars.lines[0]
    places = zip(line.get_xdata(), line.get_ydata())
    return [(round(float(x), 4), round(float(y), 4)) for x, y in places], to_hex(line.get_color())


def reaches(axes: Axes, label: str) -> list[tuple[float, float]]:
    """From where to where the bar of each marker with that label reaches, along its own direction."""
    (bars,) = [one for one in error_bars(axes) if one.get_label() == label]
    (collection,) = bars.lines[2]
    ends = []
    for (x0, y0), (x1, y1) in collection.get_segments():
        low, high = sorted((x0, x1)) if y0 == y1 else sorted((y0, y1))
        ends.append((round(float(low), 4), round(float(high), 4)))
    return ends


def error_bars(axes: Axes) -> list[ErrorbarContainer]:
    return [one for one in axes.containers if isinstance(one, ErrorbarContainer)]


def ticks(axes: Axes, which: str) -> list[str]:
    """Texts along the x or y axis."""
    labels = axes.get_xticklabels() if which == "x" else axes.get_yticklabels()
    return [label.get_text() for label in labels]


def legend(axes: Axes) -> list[str]:
    """Texts of the legend of the whole figure."""
    (found,) = axes.get_figure().legends
    return [text.get_text() for text in found.get_texts()]
