"""Evaluations and comparisons as tables of text, for the terminal, and as Markdown for the notes in MLflow.

Evaluation -> scores, factors;  Comparison -> scores of all encoders, factors;  Table -> Markdown
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from components.evaluation.comparison import MARKED, MARKS, Comparison, Line
from components.evaluation.metrics import ACCURACY, FACTOR_SCORES, RANK_ME, pretext_metric
from components.evaluation.result import Evaluation, Row


@dataclass(frozen=True)
class Cell:
    """A text, and how its score compares with that of the untrained network.

    Attributes:
        text: on one line.
        large: the upper line on a page, where a cell may have two lines; the text if it is empty.
        small: the lower line on a page.
        standing: as `Line.standing` says.
    """

    text: str
    large: str = ""
    small: str = ""
    standing: str = ""

    def marked(self) -> str:
        """The text with the mark of its standing."""
        return self.text + MARKS[self.standing]


@dataclass(frozen=True)
class Table:
    """A title, columns, and rows of cells; all columns but the first are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        """The table under its title."""
        cells = [[cell.marked() for cell in row] for row in self.rows]
        lines = [self.columns, ["---", *("---:" for _ in self.columns[1:])], *cells]
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def scores(evaluation: Evaluation) -> Table:
    """The best layer beside its references, with 95 % intervals."""
    probes, samples = evaluation.probes, evaluation.samples
    measures = [RANK_ME] if RANK_ME in evaluation.measures else []

    def cells(row: Row) -> Iterator[Cell]:
        yield Cell(row.name)
        for probe in probes:
            yield Cell(probe.bracketed(row.scores[probe.key]) if probe.key in row.scores else "")
        for measure in measures:
            yield Cell(measure.number(row.measures[measure.key]) if measure.key in row.measures else "")

    counts = f"{samples['test']:,} samples by probes fitted on {samples['train']:,}"
    title = f"Evaluated on {counts} ({ACCURACY.axis}, 95 % interval)"
    columns = ["representation", *(metric.column for metric in (*probes, *measures))]
    rows = [list(cells(row)) for row in evaluation.headline()]
    return Table(title if probes else "Evaluated without labels", columns, rows)


def factors(evaluation: Evaluation) -> Table | None:
    """What the encoder knows of each factor beside its references; None where no factors are known."""
    if not evaluation.factors:
        return None
    sources = list(dict.fromkeys(source for factor in evaluation.factors.values() for source in factor.known))
    rows = []
    for name, factor in evaluation.factors.items():
        known = [factor.known.get(source) for source in sources]
        cells = [f"{factor.metric.bracketed(each.score)} {each.layer}".rstrip() if each else "" for each in known]
        rows.append([Cell(text) for text in (name, *cells, factor.metric.number(factor.chance))])
    return Table(f"What the encoder knows ({FACTOR_SCORES}, 95 % interval)", ["factor", *sources, "chance level"], rows)


def evaluation_note(evaluation: Evaluation) -> str:
    """The evaluation's tables as Markdown, for the run's description in MLflow."""
    tables = [table.markdown() for table in (scores(evaluation), factors(evaluation)) if table]
    return "\n".join([*tables, "The figures are in report.html.\n"])


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """The table of the encoders' scores, and one of their factors if any are known."""
    lines = comparison.lines()
    columns = [metric.column for metric in (*comparison.probes, RANK_ME)]
    evaluated = comparison.evaluations
    samples = f"; evaluated on {evaluated[0].samples['test']:,} samples" if evaluated else ""
    yield Table(
        f"{comparison.corpus} version {comparison.version}, {comparison.length}{samples}\n"
        f"{ACCURACY.axis.capitalize()} ± half the width of its 95 % interval; {MARKED}",
        ["trained by", "best layer", *columns, "pretext (chance level)", "samples/s", "memory"],
        [list(_encoder_row(line, comparison)) for line in lines],
    )
    if comparison.factors:
        rows = [[Cell(line.title), *(_factor(line, name, comparison) for name in comparison.factors)] for line in lines]
        chance = [Cell(factor.metric.number(factor.chance, 0)) for factor in comparison.factors.values()]
        yield Table(
            f"What the encoders know: {FACTOR_SCORES}; {MARKED}",
            ["trained by", *comparison.factors],
            [*rows, [Cell("chance level"), *chance]],
        )


def comparison_note(comparison: Comparison) -> str:
    """All tables as Markdown, with notes on scores that cannot be compared and on runs that failed."""
    failed = [f"{one.recipe} failed: {one.failure}\n" for one in comparison.contenders if one.failure]
    notes = [f"{note}\n" for note in comparison.notes]
    return "\n".join([*(table.markdown() for table in comparison_tables(comparison)), *notes, *failed])


def _encoder_row(line: Line, comparison: Comparison) -> Iterator[Cell]:
    yield Cell(line.title)
    yield Cell(line.row.layer if line.row else "failed")
    for probe in comparison.probes:
        score = line.score(probe.key)
        standing = line.standing(probe.key)
        if score is None:
            yield Cell("")
        else:
            yield Cell(probe.plus_minus(score), probe.number(score.mean), probe.bounds(score), standing)
    rank = line.row.measures.get(RANK_ME.key) if line.row else None
    yield Cell("" if rank is None else RANK_ME.number(rank))
    yield _pretext(line)
    run = line.contender if line.row else None
    rate = f"{run.rate:,.0f}" if run else ""
    yield Cell(rate, rate, f"{run.steps:,} steps" if run else "")
    yield Cell(f"{run.memory / 2**30:.1f} GiB" if run else "")


def _pretext(line: Line) -> Cell:
    """The headline metric of the task, and in brackets its chance level."""
    if line.pretext is None:
        return Cell("")
    key, value, level = line.pretext
    metric = pretext_metric(key)
    chance = "" if level is None else metric.number(level)
    text = f"{metric.column} {metric.number(value)}" + (f" ({chance})" if chance else "")
    return Cell(text, metric.number(value), metric.column + (f", chance level {chance}" if chance else ""))


def _factor(line: Line, name: str, comparison: Comparison) -> Cell:
    """A score in whole per cent, since there are many factors."""
    score, metric = line.score(name), comparison.factors[name].metric
    return Cell(metric.number(score.mean, 0), standing=line.standing(name)) if score else Cell("")
