"""A comparison as text: the table of encoders and the table of factors, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from components.evaluation.comparison import MARKED, MARKS
from components.steps.progress import duration
from pipelines import console
from pipelines.console import program
from pipelines.summary import markdown_table

if TYPE_CHECKING:
    from components.evaluation.comparison import Comparison, Line
    from pipelines.compare import Compared

SHORT = {"accuracy": "acc.", "r2": "expl."}


@dataclass(frozen=True)
class Cell:
    """A text, and how it stands to the untrained network, as `Line.standing` says."""

    text: str
    standing: str = ""

    def plain(self) -> str:
        """With its mark."""
        return self.text + MARKS[self.standing]

    def rich(self) -> Text:
        """With its mark, in colours."""
        style = {"below": "red", "above": "green"}.get(self.standing, "")
        return Text(self.plain(), style=style)


@dataclass(frozen=True)
class Grid:
    """A table: a title, columns, and rows of cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def show(self) -> None:
        """On stdout."""
        cells = [[cell.rich() for cell in row] for row in self.rows]
        console.table(self.title, self.columns, cells, right=self.columns[1:], piped_width=160)

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        return f"{self.title}\n\n" + markdown_table(self.columns, [[cell.plain() for cell in row] for row in self.rows])


def grids(comparison: Comparison) -> Iterator[Grid]:
    """The table of encoders, and where factors are known, theirs."""
    lines = comparison.lines()
    yield Grid(_title(comparison), _columns(comparison), [list(_row(line, comparison)) for line in lines])
    if comparison.factors:
        columns = ["trained by", *comparison.factors]
        rows = [[Cell(line.title), *(_score(line, name, whole=True) for name in comparison.factors)] for line in lines]
        guesses = [Cell(f"{100 * comparison.chance[name]:.0f}") for name in comparison.factors]
        title = f"What they know: accuracy of names, R² of quantities, in %; {MARKED}"
        yield Grid(title, columns, [*rows, [Cell("chance"), *guesses]])


def show_compared(compared: Compared, as_json: bool) -> None:
    """The tables, where the page and the figures lie, and what failed."""
    comparison = compared.comparison
    if as_json:
        failed = {one.recipe: one.failure for one in comparison.contenders if one.failure}
        console.emit({"table": comparison.records(), "failed": failed, "folder": compared.folder.uri})
        return
    for grid in grids(comparison):
        grid.show()
    failed = {f"{one.recipe} failed": one.failure for one in comparison.contenders if one.failure}
    lines = {"page": console.near(compared.folder.uri_of("comparison.html")), "MLflow UI": f"{program()} ui"} | failed
    console.pairs(f"{compared.folder.name}: done in {duration(compared.seconds)}", lines)


def _title(comparison: Comparison) -> str:
    length = f"{comparison.budget:g} {comparison.unit} of training each" if comparison.budget else "own lengths"
    evaluated = comparison.evaluations
    samples = f"; evaluated on {evaluated[0].samples['test']:,} samples" if evaluated else ""
    corpus = f"{comparison.corpus} version {comparison.version}"
    return f"{corpus}, {length}{samples}\nAccuracy in % ± half of the 95 % interval; {MARKED}"


def _columns(comparison: Comparison) -> list[str]:
    return ["trained by", "best layer", *comparison.probes, "RankMe", "pretext (chance)", "samples/s", "memory"]


def _row(line: Line, comparison: Comparison) -> Iterator[Cell]:
    contender = line.contender
    yield Cell(line.title)
    if line.row is None:
        yield Cell("failed")
        yield from (Cell("") for _ in _columns(comparison)[2:])
        return
    yield Cell(line.row.layer)
    yield from (_score(line, name) for name in comparison.probes)
    yield Cell(f"{line.row.measures['rank_me']:.1f}" if "rank_me" in line.row.measures else "")
    yield Cell(_pretext(line))
    yield Cell(f"{contender.rate:,.0f}" if contender else "")
    yield Cell(f"{contender.memory / 2**30:.1f} GiB" if contender else "")


def _score(line: Line, name: str, whole: bool = False) -> Cell:
    """A score in per cent; with its interval, unless `whole` numbers are enough."""
    score = line.score(name)
    if score is None:
        return Cell("")
    mean, half = 100 * score.mean, 50 * (score.high - score.low)
    return Cell(f"{mean:.0f}" if whole else f"{mean:.1f} ±{half:.1f}", line.standing(name))


def _pretext(line: Line) -> str:
    if line.pretext is None:
        return ""
    name, value, chance = line.pretext
    if name == "loss":
        return f"loss {value:.2f}"
    expected = f" ({100 * chance:.1f})" if chance is not None else ""
    return f"{SHORT[name]} {100 * value:.1f}{expected}"
