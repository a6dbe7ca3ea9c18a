"""The figures of a comparison: every score stands at its place, in its colour, marked as significant or not."""

from __future__ import annotations

from dataclasses import replace

from figure_parts import legend, points, reaches, ticks
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from small_comparison import BOTH, comparison, contender, evaluation

from components.evaluation.references import PIXELS
from components.reports.comparison_figures import draw
from components.reports.figures import FAINT, INK, LOOKS


def test_each_encoder_has_a_row_with_its_score_beside_its_untrained_self_and_pixels(drawings: list[Figure]) -> None:
    png = draw(BOTH)["probes"]
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    (axes,) = drawings[0].axes
    assert (axes.get_title("left"), axes.get_xlabel()) == ("Linear probe", "accuracy in %")
    assert ticks(axes, "y") == ["simclr", "rotation", "supervised"], "what failed has no row"
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first named stands on top"
    assert points(axes, "pretext task") == ([(90.0, -0.14), (40.0, 0.86)], LOOKS["encoder"].colour)
    assert points(axes, "supervised") == ([(95.0, 1.86)], LOOKS["supervised"].colour)
    assert points(axes, "its untrained network") == (
        [(50.0, 0.14), (50.0, 1.14), (50.0, 2.14)],
        LOOKS["untrained"].colour,
    )
    assert reaches(axes, "pretext task") == [(88.0, 92.0), (38.0, 42.0)]
    (pixels,) = [line for line in axes.lines if line.get_label() == PIXELS]
    assert {round(float(x), 4) for x in pixels.get_xdata()} == {60.0}
    assert sorted(legend(axes)) == sorted(["pretext task", "supervised", "its untrained network", PIXELS])


def test_each_probe_has_a_panel(drawings: list[Figure]) -> None:
    scores = {"linear": BOTH.contenders[0].evaluation.rows[0].scores["linear"]}  # type: ignore[union-attr]
    one = evaluation(0.9)
    rows = tuple(replace(row, scores=row.scores | {"knn": scores["linear"]}) for row in one.rows)
    draw(comparison(contender("good", "simclr", replace(one, rows=rows))))
    assert [axes.get_title("left") for axes in drawings[0].axes] == ["Linear probe", "kNN"]
    assert points(drawings[0].axes[0], "pretext task")[0] == [(90.0, -0.14)]
    assert points(drawings[0].axes[1], "pretext task")[0] == [(20.0, -0.14)]


def test_the_table_of_factors_says_who_knows_what_and_whether_it_is_significant(drawings: list[Figure]) -> None:
    assert draw(BOTH)["factors"].startswith(b"\x89PNG\r\n\x1a\n")
    (axes,) = drawings[1].axes
    assert ticks(axes, "x") == ["hue"]
    assert ticks(axes, "y") == ["simclr", "rotation", "supervised", "random init", "raw pixels"]
    written = {text.get_position(): text for text in axes.texts}
    assert {place: text.get_text() for place, text in written.items()} == {
        (0, 0): "50 ▲",
        (0, 1): "10 ▽",
        (0, 2): "10 ▽",
        (0, 3): "30",
        (0, 4): "80",
    }
    assert [written[0, i].get_fontweight() for i in range(5)] == ["bold", "normal", "normal", "normal", "normal"]
    colours = [to_hex(written[0, i].get_color()) for i in range(5)]
    assert colours == [INK, FAINT, FAINT, INK, "#ffffff"], "white on dark blue, faint where it is below"
    (picture,) = axes.images
    assert [round(float(value), 3) for value in picture.get_array()[:, 0]] == [0.5, 0.1, 0.1, 0.3, 0.8]
    assert (picture.norm.vmin, picture.norm.vmax) == (0, 1)
    assert to_hex(picture.cmap(0.0)) == "#ffffff" and to_hex(picture.cmap(1.0)) == LOOKS["encoder"].colour


def test_the_blue_of_a_factor_counts_from_chance(drawings: list[Figure]) -> None:
    one = evaluation(0.9, hue=0.625, untrained_hue=0.1)
    draw(
        comparison(contender("good", "simclr", replace(one, factors={"hue": replace(one.factors["hue"], chance=0.25)})))
    )
    (picture,) = drawings[1].axes[0].images
    assert [round(float(value), 3) for value in picture.get_array()[:, 0]] == [0.5, 0.0, 0.733]


def test_what_there_is_no_data_for_is_left_out() -> None:
    plain = comparison(contender("good", "simclr", replace(evaluation(0.9), factors={})))
    assert set(draw(plain)) == {"probes"}
    assert draw(comparison(BOTH.contenders[3])) == {}
