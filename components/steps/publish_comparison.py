"""A comparison's tables, figures and page, into its folder and its MLflow run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from components.evaluation.comparison import Comparison
from components.training.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from components.tracking.tracker import Tracker


def publish_comparison(
    comparison: Comparison, answers: Mapping[str, bytes], folder: RunFolder, tracker: Tracker
) -> None:
    """Publish a comparison. answers: run -> PNG of what its task saw and answered.

    Raises:
        StorageError: the folder cannot be written.
    """
    from components.reports.comparison_figures import draw
    from components.reports.comparison_report import write_comparison
    from components.reports.tables import comparison_note

    figures, table = draw(comparison), comparison_note(comparison)
    for name, png in figures.items():
        tracker.figure(name, png)
        folder.write(f"{name}.png", png)
    tracker.records("comparison", comparison.records())
    before, metrics = tracker.points(), comparison.metrics()
    if not before or before[-1].metrics != metrics:  # a step that was logged keeps its values
        tracker.point(len(before), time.time_ns() // 1_000_000, metrics)
    tracker.tag({"mlflow.note.content": table})
    page = write_comparison(comparison, figures, answers)
    tracker.html("comparison", page)
    for name, text in (("html", page), ("md", table), ("json", comparison.to_json())):
        folder.write(f"comparison.{name}", text)
