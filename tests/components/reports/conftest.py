"""A look at figures before they become PNGs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from matplotlib.figure import Figure

from components.reports import comparison_figures, figures


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the test draws, as matplotlib holds them, in order."""
    kept: list[Figure] = []
    house_figure = figures.house_figure

    @contextmanager
    def keeping(*arguments: Any, **options: Any) -> Iterator[tuple[Figure, io.BytesIO]]:
        with house_figure(*arguments, **options) as (figure, png):
            kept.append(figure)
            yield figure, png

    for module in (figures, comparison_figures):
        monkeypatch.setattr(module, "house_figure", keeping)
    return kept
