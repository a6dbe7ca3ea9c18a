"""What an evaluation holds is shown everywhere: a probe of a recipe's own number of shots in every table and figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from components.evaluation.comparison import Comparison, Contender
from components.evaluation.references import ENCODER, PIXELS, RANDOM
from components.evaluation.result import Evaluation, Pretext, Row
from components.reports import comparison_figures, figures
from components.reports.comparison_report import write_comparison
from components.reports.report import About, write_report
from components.reports.tables import comparison_note, evaluation_note
from components.training.run_folder import RunFolder
from pipelines.compare import Compared
from pipelines.side_by_side import show_compared
from pipelines.summary import evaluation_table
from ssl_core.probes.intervals import Interval


def evaluation(shots: tuple[int, ...]) -> Evaluation:
    """Of an encoder above its references on every probe."""

    def row(source: str, layer: str, share: float) -> Row:
        names = ("linear", "knn", *(f"{k}-shot" for k in shots))
        scores = {name: Interval(share, share - 0.02, share + 0.02) for name in names}
        return Row(source, layer, 8, scores, {"rank_me": 7.0}, train_knn=share)

    return Evaluation(
        rows=(row(ENCODER, "stage1", 0.9), row(RANDOM, "stage1", 0.5), row(PIXELS, "", 0.6)),
        best="stage1",
        samples={"train": 20, "test": 10},
        classes=("a", "b"),
        evaluation_set="e",
        settings={"shots": shots, "draws": 3},
        pretext={"r2": Pretext(0.5, 0.4, 0.6, 0.0)},
        collapse="",
        notes=(),
        correct={},
    )


def compared(evaluated: Evaluation) -> Comparison:
    contender = Contender("turned", "rotation", "resnet18", "turned-0123", evaluated, 100, 9.5, 250.0, 1 << 30)
    return Comparison("all", "tiny", 1, 4.0, "CPU-seconds", (contender,))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, kept to be read."""
    kept: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            kept.append(self)

    monkeypatch.setattr(figures, "Figure", Kept)
    return kept


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_a_probe_of_any_number_of_shots_is_shown_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: list[Figure]
) -> None:
    ten = evaluation((10,))
    evaluation_table(ten)
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].split() == ["representation", "linear", "kNN", "10-shot", "RankMe"]
    assert "pretext R² on held-out samples: 50.0 %, chance level 0.0 %" in shown
    note = evaluation_note(ten)
    assert "| representation | linear | kNN | 10-shot | RankMe |\n" in note
    assert note.count("90.0 [88.0, 92.0]") == 3
    page = write_report(ten, {}, About("turned", "key", "tiny", 1, "digest", 24, "name: turned"))
    assert page.count('<th scope="col">10-shot probe</th>') == 2 and "<b>10-shot probe</b>" in page
    figures.layers(ten)
    assert titles(drawn[0]) == ["Linear probe", "kNN", "10-shot probe"]

    both = compared(ten)
    show_compared(Compared(both, RunFolder(str(tmp_path), "both"), 2.0), as_json=False)
    assert "10-shot" in capsys.readouterr().out
    assert "| kNN | 10-shot | RankMe |" in comparison_note(both)
    assert '<th scope="col">10-shot probe</th>' in write_comparison(both, {}, {})
    comparison_figures.probes(both)
    assert titles(drawn[1]) == ["Linear probe", "kNN", "10-shot probe"]
    assert both.records()[0]["10-shot"] == 90 and both.metrics()["turned/10-shot"] == 0.9


def test_probes_stand_in_one_order_where_encoders_were_evaluated_by_different_ones() -> None:
    both = compared(evaluation((10, 2)))
    other = replace(both.contenders[0], recipe="other", evaluation=evaluation((5,)))
    mixed = replace(both, contenders=(*both.contenders, other))
    assert [probe.key for probe in mixed.probes] == ["linear", "knn", "2-shot", "5-shot", "10-shot"]
    assert "| kNN | 2-shot | 5-shot | 10-shot |" in comparison_note(mixed)


def test_no_figure_is_without_the_references_it_names(drawn: list[Figure]) -> None:
    figures.layers(evaluation((1,)))
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert sorted(labels) == ["encoder", "random init", "raw pixels"]
