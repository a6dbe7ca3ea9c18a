"""The shortcut audit: how well can a pretext task be answered from a low-level cue alone?

A cue is a handful of numbers computed from what the network sees (the inputs of `make_batch`) and nothing else: a
histogram, the sharpness, how borders match. A linear classifier on them must do well where a task's
countermeasure is off and the data carries the shortcut, and be near chance where it is on.

    raw -> make_batch -> inputs -> cue_pairs -> CUES[cue] -> features -> linear probe -> accuracy, beside task.chance

The task says on which pictures answers depend (`ssl_core.task.cue_pairs`, `matching_of`); no task is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.contrast import Positives
from ssl_core.nn.heads import Weighted, r_squared
from ssl_core.probes import logistic
from ssl_core.probes.ridge import Ridge
from ssl_core.task import PretextTask, cue_pairs, matching_of
from ssl_core.types import Raw, Shortcut

Cue = Callable[[Tensor, Tensor], Tensor]
"""Pictures [q, 3, h, w] and their partners (of `cue_pairs`) -> features [q, d].

Where the answer is pixels: [q, d, h, w], features of each pixel. Where it is another picture: [q, 2, d], features of
each picture as a query and as a key."""

QUEUED_BATCHES = 4
"""Number of batches into which an audit's pictures are cut for a task whose negatives come from other batches."""


def black_bars(x: Tensor, _: Tensor) -> Tensor:
    """Deviation of each of the four outermost strips over that of the whole picture: [q, 4]."""
    strip = max(1, x.shape[-1] // 16)
    sides = (x[..., :strip], x[..., -strip:], x[..., :strip, :], x[..., -strip:, :])
    return torch.stack([side.std((1, 2, 3)) for side in sides], 1) / x.std((1, 2, 3)).clamp_min(1e-6).unsqueeze(1)


def interpolation(x: Tensor, _: Tensor) -> Tensor:
    """Log share of fine detail along both axes and both diagonals, in the middle half of the picture: [q, 4].

    Interpolated pixels are means of their neighbours and lack fine detail.
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
    """Mean and deviation of both pictures, and their differences: [q, 6]."""
    a, b = (torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1) for x in (first, second))
    return torch.cat([a, b, b - a], 1)


def middle_rim(x: Tensor, _: Tensor) -> Tensor:
    """Rows and columns at the rim of the middle half of the picture, averaged coarsely and over channels: [q, 40]."""
    side = x.shape[-1]
    near, far = side // 4, side - side // 4
    grey = x.mean(1, keepdim=True)[..., near - 2 : far + 2, near - 2 : far + 2]
    strips = (grey[..., :2, :], grey[..., -2:, :], grey[..., :2].mT, grey[..., -2:].mT)
    return torch.cat([F.adaptive_avg_pool2d(strip, (1, 10)).flatten(1) for strip in strips], 1)


def local_smoothing(x: Tensor, _: Tensor) -> Tensor:
    """Means of pixels neither black nor white within 1 and 2 px of each pixel; without any, the picture's mean.

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
    """The lower half and the upper half of a picture, averaged coarsely: [q, 2, 8].

    As a query a picture is its lower half, as a key its upper half.
    """
    half = x.shape[2] // 2
    halves = torch.stack([x[:, :, -half:], x[:, :, :half]], 1).mean(2)
    return F.adaptive_avg_pool2d(halves, (2, 4)).flatten(2)


def batch_statistics(_: Tensor, together: Tensor) -> Tensor:
    """Mean of each channel over the pictures that share batch norm's statistics: [q, 3]."""
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
    """What a probe on one cue alone achieves.

    Attributes:
        cue: the low-level signal.
        chance: chance level with the countermeasure on: accuracy, or R² of quantities.
        open_chance: chance level with the countermeasure off, which may change the number of answers.
        closed: score of the cue-only probe with the countermeasure on.
        opened: its score with the countermeasure off.
    """

    cue: str
    chance: float
    open_chance: float
    closed: float
    opened: float


def audit(task: Any, shortcut: Shortcut, fit: Raw, test: Raw, seed: int = 0) -> Audit:
    """Audits a shortcut with its countermeasure on and off. `fit` trains the cue-only probe, `test` scores it."""
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

    Depends on the targets:
        classes: softmax regression on the cue's features, fitted on `fit`.
        quantities or pixels: ridge regression, fitted on `fit`.
        `Positives`, another picture each: the share of queries whose own key is the nearest picture in features.
        None, a `Matching`: the share of pictures whose nearest other picture in features shows the same image; with
            a queue, candidates are pictures of other batches and of the same image.
    """
    if cue not in CUES:
        raise InputError(f"audit: there is no cue {cue!r}; known are {', '.join(CUES)}.")
    device = next(iter(test.values())).device
    rng = torch.Generator(device).manual_seed(seed)
    (fit_x, fit_y), (x, y) = (_features(task, cue, raw, rng) for raw in (fit, test))
    fit_x, x = fit_x.double(), x.double()
    mean, scale = fit_x.mean(0), fit_x.std(0).clamp_min(1e-6)
    fit_x, x = (fit_x - mean) / scale, (x - mean) / scale
    if isinstance(y, Positives):
        queries, keys = x.unbind(1) if x.ndim == 3 else (x, x)
        distance = torch.cdist(queries[y.query], keys).scatter(1, y.query.unsqueeze(1), float("inf"))
        return float((distance.argmin(1) == y.key).double().mean())
    if y is None:
        return _retrieval(x, len(next(iter(test.values()))), _batches(task))
    if isinstance(y, Weighted) or y.is_floating_point():
        return _regression(fit_x, fit_y, x, y)
    classifier = logistic.fit(fit_x[None], fit_y[None], classes=int(fit_y.max()) + 1, penalty=1.0)
    return float((classifier.predict(x)[0] == y).double().mean())


def _batches(task: PretextTask) -> int:
    matching = matching_of(task)
    return QUEUED_BATCHES if matching and matching.queued else 1


def _regression(fit_x: Tensor, fit_y: Tensor | Weighted, x: Tensor, y: Tensor | Weighted) -> float:
    """R² on x, y of a ridge regression that is fitted on fit_x, fit_y.

    Rows of features are examples or pixels; for pixels one filter is fitted for all places, on those that count.
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
    """Features of all batches, one row per answer (or pixel), and the targets of the last batch."""
    n, parts = len(next(iter(raw.values()))) // _batches(task), []
    for start in range(0, n * _batches(task), n):
        inputs, targets = task.make_batch({name: value[start : start + n] for name, value in raw.items()}, rng)
        pictures, partners = cue_pairs(task, inputs)
        features = CUES[cue](pictures.flatten(0, -4), partners.flatten(0, -4))
        features = _by_pixel(features) if features.ndim == 4 else features
        parts.append(features.reshape(len(pictures), -1) if pictures.ndim == 5 else features)
    return torch.cat(parts), targets


def _retrieval(x: Tensor, n: int, batches: int) -> float:
    """Accuracy of finding a view of the same image. x: features of `batches` batches of n images in all, in each batch
    the first view of every image, then the second, and so on.

    With several batches, other images of a view's own batch are no candidates, as with a queue.
    """
    place = torch.arange(len(x), device=x.device)
    batch = place // (len(x) // batches)
    image = batch * (n // batches) + place % (len(x) // batches) % (n // batches)
    distance = torch.cdist(x, x).fill_diagonal_(float("inf"))
    if batches > 1:
        distance[(batch.unsqueeze(1) == batch) & (image.unsqueeze(1) != image)] = float("inf")
    return float((image[distance.argmin(1)] == image).double().mean())
