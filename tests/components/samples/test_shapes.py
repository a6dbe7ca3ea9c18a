"""Rendered figures against their geometry: areas by formula, places and turns by measuring the picture."""

from math import acos, pi, sqrt

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.samples.shapes import CHUNK, FACTORS, SHAPES, TEXTURES, draw, render, write_shapes


def lens(first: float, second: float, apart: float) -> float:
    """Area that two discs share."""
    a = acos((apart**2 + first**2 - second**2) / (2 * apart * first))
    b = acos((apart**2 + second**2 - first**2) / (2 * apart * second))
    return first**2 * (a - np.sin(2 * a) / 2) + second**2 * (b - np.sin(2 * b) / 2)


AREAS = {
    "arrow": 1.2 * 0.9 / 2 + 0.44 * (0.95 - -0.1),
    "crescent": pi * 0.9**2 - lens(0.9, 0.7, 0.4),
    "drop": pi * 0.6**2 + 0.6 * sqrt(1.3**2 - 0.6**2) - acos(0.6 / 1.3) * 0.6**2,
    "ell": 0.4 * 1.56 + 1.16 * 0.4 - 0.4 * 0.4,
    "half": pi * 0.93**2 / 2,
    "tee": 1.32 * 0.4 + 0.4 * (0.98 - -0.35),
    "triangle": 1.2 * 1.75 / 2,
    "wedge": pi * 0.9**2 * 280 / 360,
}
"""In units of the scale squared."""


def plain(n: int, **changed) -> dict[str, np.ndarray]:
    """n white figures on black, in the middle, unless told otherwise."""
    fixed = {"x": 0.5, "y": 0.5, "angle": 0, "scale": 0.25, "hue": 0, "value": 1, "saturation": 0, "ground_value": 0}
    drawn = {name: values[:n] for name, values in draw(0, 0).items()}
    drawn |= {name: np.full(n, value, np.float32) for name, value in {**fixed, **changed}.items() if name != "shape"}
    return drawn | {"shape": np.full(n, changed.get("shape", "arrow"))}


def cover(side: int = 128, **changed) -> np.ndarray:
    """How much of each pixel one figure covers: [side, side] in [0, 1]."""
    return render(plain(1, **changed), side)[0, :, :, 0] / 255


def test_every_figure_has_its_area_whatever_its_place_turn_and_size():
    assert set(AREAS) == set(SHAPES)
    for shape, area in AREAS.items():
        for place in ({}, {"x": 0.41, "angle": 77}, {"y": 0.57, "scale": 0.17, "angle": 200}):
            scale = place.get("scale", 0.25) * 128
            assert cover(shape=shape, **place).sum() / scale**2 == pytest.approx(area, rel=0.015), shape


@pytest.mark.parametrize("shape", SHAPES)
def test_figures_turn_clockwise_about_their_middle_and_stay_within_their_circle(shape):
    upright = cover(shape=shape)
    assert np.abs(np.rot90(upright, -1) - cover(shape=shape, angle=90)).max() < 0.02
    away = np.hypot(*np.mgrid[-63.5:64, -63.5:64])
    for angle in range(0, 360, 30):
        turned = cover(shape=shape, angle=angle)
        assert turned[away > 0.25 * 128 + 1].max() == 0
        if angle:
            assert np.abs(turned - upright).sum() > 0.15 * upright.sum()


def test_figures_move_as_told():
    rows, columns = np.mgrid[0.5:128, 0.5:128] / 128
    here, there = cover(shape="tee"), cover(shape="tee", x=0.62, y=0.45)
    for axis, shift in ((columns, 0.12), (rows, -0.05)):
        moved = (axis * there).sum() / there.sum() - (axis * here).sum() / here.sum()
        assert moved == pytest.approx(shift, abs=1e-3)


def test_edges_are_smooth():
    between = cover(shape="triangle", angle=20)
    share = ((between > 0.05) & (between < 0.95)).sum() / (between > 0.5).sum()
    assert 0.05 < share < 0.3


def test_figure_and_ground_have_the_colours_of_their_factors():
    drawn = plain(6, saturation=0.8, ground_value=0.5, ground_saturation=0.5, tint=0.0, cycles=3)
    drawn |= {"hue": np.array([0, 1, 2, 3, 4, 5], np.float32) / 6, "texture": np.array(list(TEXTURES))}
    drawn |= {"shape": np.full(6, "half"), "knots": np.zeros_like(drawn["knots"])}
    pictures = render(drawn, 64).astype(float) / 255
    pure = [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1)]
    for picture, colour in zip(pictures, np.array(pure)):
        assert picture[32, 32] == pytest.approx(1 - 0.8 * (1 - colour), abs=0.01)  # of the figure
        ground = 0.5 * (1 - 0.5 * (1 - colour))
        ratio = picture[0, 0] / ground
        assert ratio == pytest.approx(np.full(3, ratio[0]), abs=0.02) and 0.7 < ratio[0] < 1.3


def test_textures_differ_and_depend_on_what_varies():
    drawn = {name: values[:6] for name, values in draw(0, 0).items()} | {"texture": np.array(list(TEXTURES))}
    assert render(drawn, 48)[:, :8].std((1, 2, 3)).min() > 3
    other = drawn | {"phase": drawn["phase"] + 2, "knots": drawn["knots"][::-1].copy()}
    assert (render(drawn, 48) != render(other, 48)).mean((1, 2, 3)).min() > 0.3


def test_factors_are_independent_of_each_other():
    drawn = [draw(3, chunk) for chunk in range(40)]
    n = 40 * CHUNK
    whole = {name: np.concatenate([each[name] for each in drawn]) for name in FACTORS}
    columns = [
        np.unique(values, return_inverse=True)[1] if values.dtype.kind == "U" else values for values in whole.values()
    ]
    related = np.corrcoef(columns) - np.eye(len(FACTORS))
    assert np.abs(related).max() < 5 / n**0.5
    for name, kinds in (("shape", SHAPES), ("texture", TEXTURES)):
        counts = [(whole[name] == kind).sum() for kind in kinds]
        assert sum(counts) == n and max(counts) - min(counts) < 6 * (n / len(kinds)) ** 0.5


def test_files_and_factors_belong_together(tmp_path):
    counts = {"unlabelled": 270, "train": 30, "test": 20}
    assert write_shapes(tmp_path, counts, side=16, seed=5) == counts
    table = pq.read_table(tmp_path / "factors.parquet").to_pylist()
    periods = {field.name: field.metadata for field in pq.read_schema(tmp_path / "factors.parquet") if field.metadata}
    assert periods == {"angle": {b"period": b"360"}, "hue": {b"period": b"1"}}
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert sorted(row["file"] for row in table) == written and len(written) == 320
    for number in (0, 255, 256, 290, 319):
        row, drawn = table[number], draw(5, number // CHUNK)
        assert {name: row[name] for name in FACTORS} == {name: drawn[name][number % CHUNK].item() for name in FACTORS}
        assert row["part"] == ("unlabelled" if number < 270 else "train" if number < 300 else "test")
        assert row["file"].split("/")[-2] == (row["shape"] if number >= 270 else "unlabelled")
        with Image.open(tmp_path / row["file"]) as picture:
            assert np.array_equal(picture, render(drawn, 16)[number % CHUNK])


def test_the_same_seed_writes_the_same_pictures_whatever_their_number(tmp_path):
    for name, counts, seed in (
        ("a", {"unlabelled": 6}, 0),
        ("b", {"unlabelled": 3, "test": 2}, 0),
        ("c", {"test": 1}, 1),
    ):
        write_shapes(tmp_path / name, counts, side=16, seed=seed)
    first = sorted((tmp_path / "a").rglob("*.png"))
    again = sorted((tmp_path / "b").rglob("*.png"), key=lambda path: path.name)
    assert [path.read_bytes() for path in first[:5]] == [path.read_bytes() for path in again]
    assert next((tmp_path / "c").rglob("*.png")).read_bytes() != first[0].read_bytes()


def test_what_is_there_is_kept(tmp_path):
    write_shapes(tmp_path, {"unlabelled": 4}, side=16)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    write_shapes(tmp_path, {"unlabelled": 4}, side=16)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
