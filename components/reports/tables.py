"""Temporary: the tables as Markdown, until the evaluation's words are merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from components.evaluation.comparison import MARKED, MARKS, Comparison, Line
from components.evaluation.result import Evaluation, Known, Row
from ssl_core.probes.intervals import Interval

PROBES = ("linear", "knn", "1-shot", "5-shot")
SHORT = {"accuracy": "acc.", "r2": "R²"}


def _factor_cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row for each factor."""
    sources = list(next(iter(evaluation.factors.values())).known)
    rows = [
        [name, *(_known(factor.known[source]) for source in sources), f"{100 * factor.chance:.1f}"]
        for name, factor in evaluation.factors.items()
    ]
    return ["factor", *sources, "chance"], rows


def _known(known: Known) -> str:
    return " ".join(filter(None, (_interval(known.score), known.layer)))


def markdown(evaluation: Evaluation) -> str:
    """The evaluation's tables as Markdown, for the run's description in MLflow."""
    rows = evaluation.headline()
    probes = [name for name in PROBES if any(name in row.scores for row in rows)]
    cells = [[row.name, *(_score(row, name) for name in probes), _measure(row, "rank_me")] for row in rows]
    tables = [markdown_table(["representation", *probes, "RankMe"], cells)]
    if evaluation.factors:
        tables.append(markdown_table(*_factor_cells(evaluation)))
    return "\n".join(tables) + "\nThe figures are in report.html.\n"


def markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of texts; all columns but the first are numbers."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _pretext_value(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.3f}"


def _score(row: Row, probe: str) -> str:
    score = row.scores.get(probe)
    return "" if score is None else _interval(score)


def _interval(score: Interval) -> str:
    return f"{100 * score.mean:z.1f} [{100 * score.low:z.1f}, {100 * score.high:z.1f}]"


def _measure(row: Row, name: str) -> str:
    return f"{row.measures[name]:.1f}" if name in row.measures else ""


@dataclass(frozen=True)
class Cell:
    """A text, and how it stands to the untrained network, as `Line.standing` says."""

    text: str
    standing: str = ""

    def plain(self) -> str:
        """With its mark."""
        return self.text + MARKS[self.standing]


@dataclass(frozen=True)
class Grid:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        return f"{self.title}\n\n" + markdown_table(self.columns, [[cell.plain() for cell in row] for row in self.rows])


def grids(comparison: Comparison) -> Iterator[Grid]:
    """The table of encoders, and where factors are known, theirs."""
    lines = comparison.lines()
    yield Grid(_title(comparison), _columns(comparison), [list(_line_row(line, comparison)) for line in lines])
    if comparison.factors:
        columns = ["trained by", *comparison.factors]
        rows = [
            [Cell(line.title), *(_line_score(line, name, whole=True) for name in comparison.factors)] for line in lines
        ]
        guesses = [Cell(f"{100 * comparison.chance[name]:.0f}") for name in comparison.factors]
        title = f"What they know: accuracy of names, R² of quantities, in %; {MARKED}"
        yield Grid(title, columns, [*rows, [Cell("chance"), *guesses]])


def comparison_markdown(comparison: Comparison) -> str:
    """All tables, and what failed."""
    failed = [f"{one.recipe} failed: {one.failure}\n" for one in comparison.contenders if one.failure]
    return "\n".join([*(grid.markdown() for grid in grids(comparison)), *failed])


def _title(comparison: Comparison) -> str:
    length = f"{comparison.budget:g} {comparison.unit} of training each" if comparison.budget else "own lengths"
    evaluated = comparison.evaluations
    samples = f"; evaluated on {evaluated[0].samples['test']:,} samples" if evaluated else ""
    corpus = f"{comparison.corpus} version {comparison.version}"
    return f"{corpus}, {length}{samples}\nAccuracy in % ± half of the 95 % interval; {MARKED}"


def _columns(comparison: Comparison) -> list[str]:
    return ["trained by", "best layer", *comparison.probes, "RankMe", "pretext (chance)", "samples/s", "memory"]


def _line_row(line: Line, comparison: Comparison) -> Iterator[Cell]:
    contender = line.contender
    yield Cell(line.title)
    if line.row is None:
        yield Cell("failed")
        yield from (Cell("") for _ in _columns(comparison)[2:])
        return
    yield Cell(line.row.layer)
    yield from (_line_score(line, name) for name in comparison.probes)
    yield Cell(f"{line.row.measures['rank_me']:.1f}" if "rank_me" in line.row.measures else "")
    yield Cell(_line_pretext(line))
    yield Cell(f"{contender.rate:,.0f}" if contender else "")
    yield Cell(f"{contender.memory / 2**30:.1f} GiB" if contender else "")


def _line_score(line: Line, name: str, whole: bool = False) -> Cell:
    """A score in per cent; with its interval, unless `whole` numbers are enough."""
    score = line.score(name)
    if score is None:
        return Cell("")
    mean, half = 100 * score.mean, 50 * (score.high - score.low)
    return Cell(f"{mean:.0f}" if whole else f"{mean:.1f} ±{half:.1f}", line.standing(name))


def _line_pretext(line: Line) -> str:
    if line.pretext is None:
        return ""
    name, value, chance = line.pretext
    if name == "loss":
        return f"loss {value:.2f}"
    expected = f" ({100 * chance:.1f})" if chance is not None else ""
    return f"{SHORT[name]} {100 * value:.1f}{expected}"
