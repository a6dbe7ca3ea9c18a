"""The shortcut audit: how much of a pretext task's answer can be read from a low-level cue alone?

A cue is a handful of numbers computed from what the network sees (the inputs that `make_batch` made) and nothing
else: a histogram, the sharpness, how borders match. A linear classifier on them must do well where a task's
countermeasure is off and the data carries the shortcut, and be near chance where it is on.

    raw -> make_batch -> inputs -> CUES[cue] -> features -> linear probe -> accuracy, beside task.chance
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.heads import Weighted, r_squared
from ssl_core.probes import logistic
from ssl_core.probes.ridge import Ridge
from ssl_core.task import PretextTask
from ssl_core.types import Raw, Shortcut

Cue = Callable[[Tensor, Tensor], Tensor]
"""Pictures [q, 3, h, w] and, for tasks about pairs, their partners (else the same pictures) -> features [q, d].

Where the answer is pixels, [q, d, h, w] are features of each pixel alone.

Where batch norm sees groups of pictures together, the partner is the mean picture of the group."""

QUEUED_BATCHES = 4
"""Batches that the pictures of an audit make for a task whose negatives come from other batches."""


def black_bars(x: Tensor, _: Tensor) -> Tensor:
    """How flat each of the four outermost strips is, against the whole picture: [q, 4]."""
    strip = max(1, x.shape[-1] // 16)
    sides = (x[..., :strip], x[..., -strip:], x[..., :strip, :], x[..., -strip:, :])
    return torch.stack([side.std((1, 2, 3)) for side in sides], 1) / x.std((1, 2, 3)).clamp_min(1e-6).unsqueeze(1)


def interpolation(x: Tensor, _: Tensor) -> Tensor:
    """Log share of fine detail along both axes and both diagonals, in the middle half of the picture: [q, 4].

    Interpolated pixels are means of their neighbours, so that fine detail is gone.
    """
    quarter = x.shape[-1] // 4
    x = x[..., quarter:-quarter, quarter:-quarter]
    steps = (
        x[..., 1:] - x[..., :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    detail = torch.stack([step.square().mean((1, 2, 3)) for step in steps], 1)
    return (detail / x.var((1, 2, 3)).clamp_min(1e-6).unsqueeze(1)).clamp_min(1e-6).log()


def flat_wedges(_: Tensor, second: Tensor) -> Tensor:
    """Share of the second picture's pixels that equal their neighbours, in each of 4 x 4 fields: [q, 16]."""
    rows, columns = (second.diff(dim=axis).abs().amax(1, keepdim=True) for axis in (2, 3))
    flat = torch.maximum(rows[..., 1:], columns[..., 1:, :]) < 1e-4
    return F.adaptive_avg_pool2d(flat.float(), 4).flatten(1)


def luminance(first: Tensor, second: Tensor) -> Tensor:
    """Mean and deviation of both pictures, and the differences: [q, 6]."""
    a, b = (torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1) for x in (first, second))
    return torch.cat([a, b, b - a], 1)


def middle_rim(x: Tensor, _: Tensor) -> Tensor:
    """The two rows and columns around the middle half of the picture, coarsely, the mean of the channels: [q, 40]."""
    side = x.shape[-1]
    near, far = side // 4, side - side // 4
    grey = x.mean(1, keepdim=True)[..., near - 2 : far + 2, near - 2 : far + 2]
    strips = (grey[..., :2, :], grey[..., -2:, :], grey[..., :2].mT, grey[..., -2:].mT)
    return torch.cat([F.adaptive_avg_pool2d(strip, (1, 10)).flatten(1) for strip in strips], 1)


def local_smoothing(x: Tensor, _: Tensor) -> Tensor:
    """Means of what is neither black nor white within 1 and 2 px of each pixel, where there is nothing the picture's.

    [q, 3, h, w] -> [q, 6, h, w].
    """
    span = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    known = ((x > span[0]) & (x < span[1])).any(1, keepdim=True).float()
    x = x * known
    mean = x.mean((2, 3), keepdim=True) / known.mean((2, 3), keepdim=True).clamp_min(1e-6)
    near = []
    for radius in (1, 2):
        values, share = (F.avg_pool2d(each, 2 * radius + 1, 1, radius) for each in (x, known))
        near.append((values + 1e-3 * mean) / (share + 1e-3))
    return torch.cat(near, 1)


def edge_continuity(first: Tensor, second: Tensor) -> Tensor:
    """How well the second picture continues the first across each of its eight sides and corners: [q, 8]."""
    a, b = first.sum(1), second.sum(1)
    sides = (
        (a[:, 0], b[:, -1]),
        (a[:, -1], b[:, 0]),
        (a[:, :, 0], b[:, :, -1]),
        (a[:, :, -1], b[:, :, 0]),
        (a[:, :1, 0], b[:, -1:, -1]),
        (a[:, :1, -1], b[:, -1:, 0]),
        (a[:, -1:, 0], b[:, :1, -1]),
        (a[:, -1:, -1], b[:, :1, 0]),
    )
    gaps = torch.stack([(x - y).square().mean(1) for x, y in sides], 1)
    return -(gaps + 0.01).log()


def chromatic_aberration(first: Tensor, second: Tensor) -> Tensor:
    """How far red and blue are shifted against green, in each picture and from one to the other: [q, 12]."""
    a, b = _shifts(first), _shifts(second)
    return torch.cat([a, b, b - a], 1)


def _shifts(x: Tensor) -> Tensor:
    """Least-squares shift in px of red and blue against green (Lucas & Kanade 1981): [q, 4]."""
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True).clamp_min(1e-6)
    red, green, blue = x.unbind(1)
    down, right = torch.gradient(green, dim=(1, 2))
    slopes = torch.stack([down.flatten(1), right.flatten(1)], 2)
    changes = torch.stack([(red - green).flatten(1), (blue - green).flatten(1)], 2)
    squares = slopes.mT @ slopes + 1e-3 * slopes.shape[1] * torch.eye(2, device=x.device)
    shifts: Tensor = torch.linalg.solve(squares, slopes.mT @ changes)
    return shifts.flatten(1).clamp(-10, 10)


def colour_histogram(x: Tensor, _: Tensor, bins: int = 8) -> Tensor:
    """Soft histogram of each channel: [q, 3 bins]. Bins cover -2.5 to 2.5, the range of normalised pictures."""
    centres = torch.linspace(-2.5, 2.5, bins, device=x.device)
    width = 5 / (bins - 1)
    near = (1 - (x.flatten(2).unsqueeze(2) - centres.view(-1, 1)).abs() / width).clamp_min(0)
    return near.mean(3).flatten(1)


def shared_pixels(x: Tensor, _: Tensor) -> Tensor:
    """What a picture shows in its lower half, and in its upper half, coarsely: [q, 2, 8].

    Where the answer is another picture, the lower half of the one asked about is compared with the other's upper half.
    """
    half = x.shape[2] // 2
    halves = torch.stack([x[:, :, -half:], x[:, :, :half]], 1).mean(2)
    return F.adaptive_avg_pool2d(halves, (2, 4)).flatten(2)


def batch_statistics(_: Tensor, together: Tensor) -> Tensor:
    """Mean of each channel over all that batch norm sees together: [q, 3]."""
    return together.mean((2, 3))


CUES: Mapping[str, Cue] = {
    "batch_statistics": batch_statistics,
    "black_bars": black_bars,
    "chromatic_aberration": chromatic_aberration,
    "colour_histogram": colour_histogram,
    "edge_continuity": edge_continuity,
    "flat_wedges": flat_wedges,
    "interpolation": interpolation,
    "local_smoothing": local_smoothing,
    "luminance": luminance,
    "middle_rim": middle_rim,
    "shared_pixels": shared_pixels,
}


@dataclass(frozen=True)
class Audit:
    """What one cue alone achieves.

    Attributes:
        cue: the low-level signal.
        chance: what chance achieves with the countermeasure on: accuracy, or R² of quantities.
        open_chance: the same with the countermeasure off, where switching it changes the answers' number.
        closed: what the cue-only probe achieves with the countermeasure on.
        opened: and with it off.
    """

    cue: str
    chance: float
    open_chance: float
    closed: float
    opened: float


def audit(task: Any, shortcut: Shortcut, fit: Raw, test: Raw, seed: int = 0) -> Audit:
    """Try a shortcut with its countermeasure on and off. `fit` trains the cue's probe, `test` scores it."""
    off = replace(task, **shortcut.off)
    n = len(next(iter(test.values())))
    (chance, open_chance) = (_chance(each, n) for each in (task, off))
    closed, opened = (cue_probe(each, shortcut.cue, fit, test, seed) for each in (task, off))
    return Audit(shortcut.cue, chance, open_chance, closed, opened)


def _chance(task: PretextTask, n: int) -> float:
    chance = task.chance(n)
    return chance["accuracy"] if "accuracy" in chance else chance["r2"]


def cue_probe(task: PretextTask, cue: str, fit: Raw, test: Raw, seed: int = 0) -> float:
    """Accuracy, or R², on `test` of answering the task from the cue alone.

    Where targets are classes: softmax regression on the cue's features, fitted on `fit`; where they are quantities or
    pixels: ridge regression. Where the answer is which
    views belong together (no targets): the share of views whose nearest other view in features shows the same image;
    for a task with a queue, among the views of other batches and its own image's. Where the answer is another picture
    (targets.asked and targets.answer, rows of the pictures): the share of answers that are nearest of all pictures.
    """
    if cue not in CUES:
        raise InputError(f"audit: there is no cue {cue!r}; known are {', '.join(CUES)}.")
    device = next(iter(test.values())).device
    rng = torch.Generator(device).manual_seed(seed)
    (fit_x, fit_y), (x, y) = (_features(task, cue, raw, rng) for raw in (fit, test))
    fit_x, x = fit_x.double(), x.double()
    mean, scale = fit_x.mean(0), fit_x.std(0).clamp_min(1e-6)
    fit_x, x = (fit_x - mean) / scale, (x - mean) / scale
    if hasattr(y, "asked"):
        asks, answers = x.unbind(1) if x.ndim == 3 else (x, x)
        distance = torch.cdist(asks[y.asked], answers).scatter(1, y.asked.unsqueeze(1), float("inf"))
        return float((distance.argmin(1) == y.answer).double().mean())
    if y is None or fit_y is None:
        return _retrieval(x, len(next(iter(test.values()))), _batches(task))
    if isinstance(y, Weighted) or y.is_floating_point():
        return _regression(fit_x, fit_y, x, y)
    classifier = logistic.fit(fit_x[None], fit_y[None], classes=int(fit_y.max()) + 1, penalty=1.0)
    return float((classifier.predict(x)[0] == y).double().mean())


def _batches(task: PretextTask) -> int:
    return QUEUED_BATCHES if hasattr(task, "queue") else 1


def _regression(fit_x: Tensor, fit_y: Tensor | Weighted, x: Tensor, y: Tensor | Weighted) -> float:
    """Explained variance on x, y of a ridge regression that is fitted on fit_x, fit_y.

    Features stand for examples, or for pixels: then one filter serves all places, fitted where pixels count.
    """
    values, weights = fit_y if isinstance(fit_y, Weighted) else (fit_y, torch.ones_like(fit_y))
    if len(fit_x) == len(values):
        predicted = Ridge.of(fit_x).fit(values.flatten(1), 1.0)(x)
    else:
        counts = _by_pixel(weights.expand_as(values))[:, :1].double()
        predicted = Ridge.of(fit_x, counts).fit(_by_pixel(values), 1.0)(x)
        predicted = predicted.view(-1, *values.shape[2:], values.shape[1]).movedim(-1, 1)
    return float(r_squared(predicted.reshape(-1, *values.shape[1:]).float(), y).mean())


def _by_pixel(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [n h w, c]."""
    return x.movedim(1, -1).flatten(0, -2)


def _features(task: PretextTask, cue: str, raw: Raw, rng: torch.Generator) -> tuple[Tensor, Any]:
    n, found = len(next(iter(raw.values()))) // _batches(task), []
    for start in range(0, n * _batches(task), n):
        inputs, targets = task.make_batch({name: value[start : start + n] for name, value in raw.items()}, rng)
        features = CUES[cue](*_pictures(inputs))
        features = _by_pixel(features) if features.ndim == 4 else features
        found.append(features.reshape(len(inputs["order"]), -1) if "order" in inputs else features)
    return torch.cat(found), targets


def _pictures(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A pair of pictures per answer, or one picture twice."""
    if "first" in inputs:
        return inputs["patches"][inputs["first"]], inputs["patches"][inputs["second"]]
    if "originals" in inputs:  # whose words are asked for: which original is a view of?
        views = torch.cat([inputs["views"], F.adaptive_avg_pool2d(inputs["originals"], inputs["views"].shape[-1])])
        return views, views
    if "order" in inputs:  # of a puzzle, each tile and the one that is shown next to it
        shown = inputs["tiles"][inputs["order"]]
        return shown[:, :-1].flatten(0, 1), shown[:, 1:].flatten(0, 1)
    if "groups" in inputs:
        same = (inputs["groups"].unsqueeze(1) == inputs["groups"]).float()
        return inputs["views"], torch.einsum("qg,gchw->qchw", same / same.sum(1, keepdim=True), inputs["views"])
    pictures = [value for value in inputs.values() if value.ndim == 4]
    return pictures[0], pictures[-1]


def _retrieval(x: Tensor, n: int, batches: int) -> float:
    """x: features of `batches` batches in a row, in each the first views before the second and so on; n images in all.

    With several batches, other images of a view's own batch are no candidates, as with a queue.
    """
    place = torch.arange(len(x), device=x.device)
    batch = place // (len(x) // batches)
    image = batch * (n // batches) + place % (len(x) // batches) % (n // batches)
    distance = torch.cdist(x, x).fill_diagonal_(float("inf"))
    if batches > 1:
        distance[(batch.unsqueeze(1) == batch) & (image.unsqueeze(1) != image)] = float("inf")
    return float((image[distance.argmin(1)] == image).double().mean())
