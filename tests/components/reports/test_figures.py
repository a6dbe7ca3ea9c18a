"""The figures of a run: what is drawn, where, in which colour."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
from figure_parts import error_bars, legend, reaches, ticks
from figure_parts import points as places
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from small_evaluation import EVIL, make_evaluation, make_evidence, points, with_factors

from components.evaluation.references import ENCODER, PIXELS, RANDOM, role_of
from components.reports import figures


def look_of(source: str) -> str:
    """The colour of a source."""
    return figures.LOOKS[role_of(source)].colour


def test_every_figure_is_a_png_with_something_on_it():
    drawn = figures.draw(make_evaluation(), make_evidence(), points())
    assert list(drawn) == ["layers", "answers", "neighbours", "map", "curves"]
    for png in drawn.values():
        picture = Image.open(io.BytesIO(png))
        assert picture.format == "PNG" and 600 < picture.width < 2400
        assert np.asarray(picture.convert("L")).std() > 5


def test_figures_without_data_are_left_out():
    evidence = make_evidence(labels=False)
    drawn = figures.draw(make_evaluation(labels=False), evidence, points(1))
    assert list(drawn) == ["answers", "neighbours", "map"]


def test_known_factors_have_a_figure():
    drawn = figures.draw(with_factors(make_evaluation(labels=False)), make_evidence(labels=False), [])
    assert list(drawn) == ["factors", "answers", "neighbours", "map"]
    picture = np.asarray(Image.open(io.BytesIO(drawn["factors"])).convert("RGB")).astype(int)
    for source in (ENCODER, RANDOM, PIXELS):
        colour = look_of(source)
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - wanted).max(2) < 8).sum() > 20, "a source's dots are missing"


def test_a_figure_is_the_same_each_time():
    assert figures.layers(make_evaluation()) == figures.layers(make_evaluation())
    assert figures.embedding_map(make_evidence()) == figures.embedding_map(make_evidence())


def test_each_probe_has_a_panel_with_every_layers_score_and_interval(drawings: list[Figure]):
    figures.layers(make_evaluation())
    panels = drawings[0].axes
    assert [axes.get_title("left") for axes in panels] == [
        "Linear probe",
        "kNN",
        "1-shot probe",
        "5-shot probe",
    ]
    for axes in panels:
        assert ticks(axes, "x") == ["stage1", "stage2"]
        assert places(axes, ENCODER) == ([(-0.09, 80.0), (0.91, 80.0)], look_of(ENCODER))
        assert places(axes, RANDOM) == ([(0.09, 50.0), (1.09, 50.0)], look_of(RANDOM))
        assert reaches(axes, ENCODER) == [(78.0, 82.0), (78.0, 82.0)]
        (pixels,) = [line for line in axes.lines if line.get_label() == PIXELS]
        assert {round(float(y), 4) for y in pixels.get_ydata()} == {70.0}
        ((marked, at),) = [(text.get_text(), text.xy) for text in axes.texts]
        assert marked == "80.0" and at == pytest.approx((0.91, 82.0)), "the best layer carries its figure"
    assert panels[0].get_ylabel() == "accuracy in %" and sorted(legend(panels[0])) == sorted([ENCODER, RANDOM, PIXELS])


def test_each_factor_has_a_line_with_three_sources_and_chance(drawings: list[Figure]):
    figures.factors(with_factors(make_evaluation()))
    (axes,) = drawings[0].axes
    assert ticks(axes, "y") == ["hue", EVIL]
    assert places(axes, ENCODER) == ([(63.0, -0.22), (31.0, 0.78)], look_of(ENCODER))
    assert places(axes, RANDOM) == ([(41.0, 0.0), (22.0, 1.0)], look_of(RANDOM))
    assert places(axes, PIXELS) == ([(-0.04, 0.22), (17.0, 1.22)], look_of(PIXELS))
    assert reaches(axes, RANDOM) == [(39.0, 43.0), (20.0, 24.0)]
    chance = [line for line in axes.collections if line not in [bars.lines[2][0] for bars in error_bars(axes)]]
    assert [float(line.get_segments()[0][0, 0]) for line in chance] == [0.0, 12.5]
    assert sorted(legend(axes)) == sorted([ENCODER, RANDOM, PIXELS, "chance level"])


def test_the_answers_are_the_panels_pictures_with_their_captions(drawings: list[Figure]):
    panel = make_evidence().panel
    panel = dataclasses.replace(panel, captions=[f"turned {i}" for i in range(9)])
    figures.answers(panel)
    shown = [axes.images[0].get_array() for axes in drawings[0].axes]
    assert len(shown) == 8 * 2, "eight examples, what was asked and what was answered"
    for i in range(8):
        for j, name in enumerate(("input", "answer")):
            assert np.allclose(shown[2 * i + j], panel.columns[name][i].permute(1, 2, 0).numpy())
    assert [text.get_text() for text in drawings[0].texts] == [f"turned {i}" for i in range(8)]
    assert [axes.get_title() for axes in drawings[0].axes][:2] == ["input", "answer"]


def test_neighbours_are_right_or_wrong_by_colour_and_sign(drawings: list[Figure]):
    evidence = make_evidence()
    figures.nearest(evidence)
    query, *found = drawings[0].axes[:6]
    assert np.array_equal(query.images[0].get_array(), evidence.queries[0])
    for rank, axes in enumerate(found):
        assert np.array_equal(axes.images[0].get_array(), evidence.neighbours[0, rank])
    assert [axes.get_xlabel() for axes in (query, *found)] == ["0", "0", "1 ✗", "0", "2 ✗", "0"]
    edges = [to_hex(axes.spines["left"].get_edgecolor()) for axes in found]
    right, wrong = figures.RIGHT, figures.WRONG
    assert edges == [right, wrong, right, wrong, right]
    figures.nearest(dataclasses.replace(evidence, labels=()))
    plain = drawings[1].axes[1:6]
    assert {to_hex(axes.spines["left"].get_edgecolor()) for axes in plain} == {figures.FAINT}
    assert [axes.get_xlabel() for axes in plain] == ["0", "1", "0", "2", "0"]


def test_the_map_shows_every_sample_in_the_colour_of_its_class_and_names_the_classes(drawings: list[Figure]):
    figures.embedding_map(make_evidence())
    (axes,) = drawings[0].axes
    rest, *classes = axes.collections
    assert len(rest.get_offsets()) == 0 and [len(one.get_offsets()) for one in classes] == [20, 20, 20]
    assert [to_hex(one.get_facecolor()[0]) for one in classes] == list(figures.CLASSES[:3])
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    for text, one in zip(axes.texts, classes):
        assert text.get_position() == pytest.approx(tuple(np.median(np.asarray(one.get_offsets()), axis=0)))
    assert axes.get_title("left") == "60 samples, t-SNE of stage2"


def test_what_lies_together_in_the_features_lies_together_on_the_map(drawings: list[Figure]):
    centres = np.eye(8, dtype=np.float32)[np.arange(60) % 3]
    features = centres + 0.02 * np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    figures.embedding_map(dataclasses.replace(make_evidence(), features=features))
    _, *classes = drawings[0].axes[0].collections
    middles = np.stack([one.get_offsets().mean(0) for one in classes])
    spread = max(np.linalg.norm(one.get_offsets() - middle, axis=1).max() for one, middle in zip(classes, middles))
    apart = min(np.linalg.norm(middles[i] - middles[j]) for i in range(3) for j in range(i))
    assert apart > 2 * spread


def test_curves_are_the_points_that_are_finite(drawings: list[Figure]):
    logged = [*points(5), SimpleNamespace(step=5, metrics={"loss": float("nan"), "lr": 0.2})]
    figures.curves(logged)
    curves = {axes.get_title("left"): axes.lines[0] for axes in drawings[0].axes}
    assert list(curves) == ["Loss", "Pretext accuracy in %", "Learning rate"]
    assert list(curves["Loss"].get_xdata()) == [0, 1, 2, 3, 4]
    assert list(curves["Loss"].get_ydata()) == [5 / (i + 1) for i in range(5)]
    assert list(curves["Learning rate"].get_ydata()) == [0.1] * 5 + [0.2]
    accuracy = next(axes for axes in drawings[0].axes if axes.get_title("left") == "Pretext accuracy in %")
    assert accuracy.get_ylim() == (0, 102)
