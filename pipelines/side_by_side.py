"""How a comparison is shown: tables and failures for people, the same as JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from components.reports.tables import comparison_tables
from components.steps.progress import duration
from pipelines import console
from pipelines.console import program
from pipelines.summary import show_table

if TYPE_CHECKING:
    from pipelines.compare import Compared


def show_compared(compared: Compared, as_json: bool) -> None:
    """The tables, where to find the page and the figures, and what failed."""
    comparison = compared.comparison
    if as_json:
        failed = {one.recipe: one.failure for one in comparison.contenders if one.failure}
        tables = {"table": comparison.records(), "notes": comparison.notes}
        console.emit(tables | {"failed": failed, "folder": compared.folder.uri})
        return
    for table in comparison_tables(comparison):
        show_table(table, piped_width=160)
    for note in comparison.notes:
        console.OUT.print(Text(f"note: {note}", style="yellow"))
    failed = {f"{one.recipe} failed": one.failure for one in comparison.contenders if one.failure}
    page = console.short_path(compared.folder.uri_of("comparison.html"))
    lines = {"page": page, "MLflow UI": f"{program()} ui"} | failed
    console.pairs(f"{compared.folder.name}: done in {duration(compared.seconds)}", lines)
