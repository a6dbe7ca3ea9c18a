"""Pictures whose factors are known: a figure on a patterned ground, to measure what encoders know and what they miss.

    draw(seed, chunk) -> the factors, and what else varies;  render(drawn, side) -> RGB bytes
    write_shapes(root) -> unlabelled/*.png, train/<shape>/*.png, test/<shape>/*.png, factors.parquet

The factors are independent of each other: shape, place, angle, scale and hue of the figure, texture of the ground. What
else varies is not recorded: whether figure or ground is brighter, how pure their colours are, and the pattern's place,
direction and width. As in photographs, colours depend on things: each texture has roughly its own tint, and a figure's
hue has some influence on how light it is.

A figure is a signed distance in pixels, made of discs, boxes and half-planes, so that its edges are smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import hypot, pi
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.samples.png import write_png
from ssl_core.atomic import replacing

CHUNK = 256
"""Pictures that are drawn together; each depends on the seed and its number alone."""

FACTORS = ("shape", "x", "y", "angle", "scale", "hue", "texture")
"""What `factors.parquet` records of each picture."""

_TEXTS = ("file", "part", "shape", "texture")
_PERIODS = {"angle": {"period": "360"}, "hue": {"period": "1"}}
_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string() if name in _TEXTS else pa.float32(), metadata=_PERIODS.get(name))
        for name in ("file", "part", *FACTORS)
    ]
)
"""Of `factors.parquet`: a periodic factor carries its period, as `components.evaluation.factors` reads it."""

COUNTS: Mapping[str, int] = {"unlabelled": 6000, "train": 2000, "test": 1000}

KNOTS = 14
"""Random values on each side of the texture "noise"."""

Drawn = Mapping[str, NDArray[Any]]
Shape = Callable[[Tensor, Tensor], Tensor]
"""(u to the right, v down) in the figure's own frame, whose unit is its scale -> signed distance in that unit."""
Texture = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""(what varies, x, y as shares of the side) -> the pattern, about -1 to 1."""


def _disc(u: Tensor, v: Tensor, x: float, y: float, radius: float) -> Tensor:
    return torch.hypot(u - x, v - y) - radius


def _box(u: Tensor, v: Tensor, x: float, y: float, half_width: float, half_height: float) -> Tensor:
    return torch.maximum((u - x).abs() - half_width, (v - y).abs() - half_height)


def _roof(u: Tensor, v: Tensor, half_width: float, height: float) -> Tensor:
    """Between two lines that fall from the tip, (0, -1), to `half_width` on both sides of it over `height`."""
    return (u.abs() * height - (v + 1) * half_width) / hypot(half_width, height)


def _arrow(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(_roof(u, v, 0.6, 0.9), v + 0.1), _box(u, v, 0, 0.4, 0.22, 0.55))


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_disc(u, v, 0, 0, 0.9), -_disc(u, v, 0.4, 0, 0.7))


def _drop(u: Tensor, v: Tensor) -> Tensor:
    """A disc, and the cone from the tip that touches it."""
    return torch.minimum(_disc(u, v, 0, 0.3, 0.6), torch.maximum(_roof(u, v, 0.532, 1.023), v - 0.023))


def _ell(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, -0.36, 0, 0.2, 0.78), _box(u, v, 0.02, 0.58, 0.58, 0.2))


def _half(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_disc(u, v, 0, 0.35, 0.93), v - 0.35)


def _tee(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0, -0.55, 0.66, 0.2), _box(u, v, 0, 0.2, 0.2, 0.78))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_roof(u, v, 0.6, 1.75), v - 0.75)


def _wedge(u: Tensor, v: Tensor) -> Tensor:
    """A disc that lacks a sector of 80 degrees."""
    return torch.maximum(_disc(u, v, 0, 0, 0.9), 0.643 * u - 0.766 * v.abs())


SHAPES: Mapping[str, Shape] = {
    "arrow": _arrow,
    "crescent": _crescent,
    "drop": _drop,
    "ell": _ell,
    "half": _half,
    "tee": _tee,
    "triangle": _triangle,
    "wedge": _wedge,
}
"""None of them looks the same after a turn."""


def _wave(each: Mapping[str, Tensor], place: Tensor) -> Tensor:
    return torch.sin(2 * pi * each["cycles"] * place + each["phase"])


def _along(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return each["direction"].cos() * x + each["direction"].sin() * y


def _across(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return each["direction"].cos() * y - each["direction"].sin() * x


def _checks(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(4 * _wave(each, _along(each, x, y)) * _wave(each, _across(each, x, y)))


def _dots(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(4 * (_wave(each, _along(each, x, y)) + _wave(each, _across(each, x, y)) - 0.8))


def _noise(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Random knots, straight lines between them."""
    near = [(1 - (axis.view(-1, 1) * (KNOTS - 1) - torch.arange(KNOTS)).abs()).clamp_min(0) for axis in (y, x)]
    return near[0] @ each["knots"] @ near[1].T


def _rings(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    right, down = 0.5 + 0.2 * each["direction"].cos(), 0.5 + 0.2 * each["direction"].sin()
    return _wave(each, torch.hypot(x - right, y - down))


def _stripes(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return _wave(each, _along(each, x, y))


def _waves(each: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return _wave(each, _along(each, x, y) + 0.06 * torch.sin(4 * pi * _across(each, x, y)))


TEXTURES: Mapping[str, Texture] = {
    "checks": _checks,
    "dots": _dots,
    "noise": _noise,
    "rings": _rings,
    "stripes": _stripes,
    "waves": _waves,
}
"""Their tints go around the circle of hues in this order."""


def draw(seed: int, chunk: int) -> dict[str, NDArray[Any]]:
    """The factors of pictures CHUNK * chunk, CHUNK * chunk + 1 and so on, and what else varies: each [CHUNK].

    shape, texture: names. x, y: the figure's middle, from the upper left, as shares of the side, 0.35 to 0.65. angle:
    degrees clockwise. scale: radius of the circle around the figure, as a share of the side, 0.22 to 0.36. hue: turns
    from red, 0 to 1.
    """
    rng = np.random.default_rng([seed, chunk])

    def uniform(low: float, high: float) -> NDArray[Any]:
        return rng.uniform(low, high, CHUNK).astype(np.float32)

    factors = {
        "shape": rng.choice(list(SHAPES), CHUNK),
        "x": uniform(0.35, 0.65),
        "y": uniform(0.35, 0.65),
        "angle": uniform(0, 360),
        "scale": uniform(0.22, 0.36),
        "hue": uniform(0, 1),
        "texture": rng.choice(list(TEXTURES), CHUNK),
    }
    bright = rng.random(CHUNK) < 0.5
    return factors | {
        "value": np.where(bright, uniform(0.8, 1.0), uniform(0.3, 0.45)),
        "saturation": uniform(0.6, 1.0),
        "ground_value": np.where(bright, uniform(0.2, 0.35), uniform(0.65, 0.8)),
        "ground_saturation": uniform(0.3, 0.7),
        "tint": rng.normal(0, 0.05, CHUNK).astype(np.float32),
        "direction": uniform(0, 2 * pi),
        "cycles": uniform(3, 6),
        "phase": uniform(0, 2 * pi),
        "knots": rng.normal(0, 0.7, (CHUNK, KNOTS, KNOTS)).astype(np.float32),
    }


def render(drawn: Drawn, side: int) -> NDArray[np.uint8]:
    """RGB bytes [n, side, side, 3] of what `draw` drew, or of the same with factors changed."""
    each = {
        name: torch.from_numpy(values).view(-1, *(values.shape[1:] or (1, 1)))
        for name, values in drawn.items()
        if name not in ("shape", "texture")
    }
    cover, pattern = torch.empty(2, len(drawn["shape"]), side, side)
    for name, shape in SHAPES.items():
        chosen = torch.from_numpy(drawn["shape"] == name)
        cover[chosen] = _cover(shape, {key: values[chosen] for key, values in each.items()}, side)
    for name, texture in TEXTURES.items():
        chosen = torch.from_numpy(drawn["texture"] == name)
        pattern[chosen] = texture({key: values[chosen] for key, values in each.items()}, *_axes(side))
    tint = np.searchsorted(list(TEXTURES), drawn["texture"]) / len(TEXTURES)
    ground_hue = torch.from_numpy(tint).float().view(-1, 1, 1) + each["tint"]
    ground = _colour(ground_hue, each["ground_saturation"], each["ground_value"]) * (1 + 0.25 * pattern.unsqueeze(3))
    figure = _colour(each["hue"], each["saturation"], each["value"])
    x = torch.lerp(ground, figure, cover.unsqueeze(3))
    pixels: NDArray[np.uint8] = x.clamp_(0, 1).mul_(255).round_().to(torch.uint8).numpy()
    return pixels


def _axes(side: int) -> tuple[Tensor, Tensor]:
    """Middles of the pixels as shares of the side: x [1, side], y [side, 1]."""
    axis = (torch.arange(side) + 0.5) / side
    return axis.view(1, -1), axis.view(-1, 1)


def _cover(shape: Shape, each: Mapping[str, Tensor], side: int) -> Tensor:
    """How much of each pixel the figure covers, 0 to 1: [m, side, side]."""
    x, y = _axes(side)
    angle = each["angle"].deg2rad()
    right, down = (x - each["x"]) / each["scale"], (y - each["y"]) / each["scale"]
    u, v = angle.cos() * right + angle.sin() * down, angle.cos() * down - angle.sin() * right
    return (0.5 - shape(u, v) * each["scale"] * side).clamp_(0, 1)


def _colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV [n, 1, 1] to RGB [n, 1, 1, 3]."""
    pure = (((6 * hue.unsqueeze(3) + torch.tensor([0, 4, 2])) % 6 - 3).abs() - 1).clamp(0, 1)
    return (1 - saturation.unsqueeze(3) * (1 - pure)) * value.unsqueeze(3)


def write_shapes(root: Path, counts: Mapping[str, int] = COUNTS, side: int = 64, seed: int = 0) -> dict[str, int]:
    """Write PNG files: `unlabelled/` to pretrain on; `train/<shape>/`, `test/<shape>/` to test with; and the factors.

    No picture is in two parts. `factors.parquet` has a row for each: `file` (from the root on), `part`, and its factors
    as `draw` gives them. Files that are already there are kept, so that ingesting again finds nothing new.

    Args:
        root: folder to write into; made if missing.
        counts: part -> number of pictures; "unlabelled", "train", "test".
        side: of a picture in px.
        seed: decides the pictures.

    Returns:
        Part -> number of pictures.
    """
    parts = np.repeat(list(counts), list(counts.values()))
    tables = []
    for chunk, start in enumerate(range(0, len(parts), CHUNK)):
        drawn = draw(seed, chunk)
        part = parts[start : start + CHUNK]
        files = [_file(*named, start + i) for i, named in enumerate(zip(part, drawn["shape"]))]
        if not all((root / file).exists() for file in files):
            for file, picture in zip(files, render(drawn, side)):
                write_png(root / file, picture)
        columns = {name: drawn[name][: len(part)] for name in FACTORS}
        tables.append(pa.table({"file": files, "part": part, **columns}, schema=_SCHEMA))
    with replacing(root / "factors.parquet", durable=False) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary)
    return dict(counts)


def _file(part: str, shape: str, number: int) -> str:
    return f"unlabelled/{number:06d}.png" if part == "unlabelled" else f"{part}/{shape}/{number:06d}.png"
