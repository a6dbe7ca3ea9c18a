"""Conversion, resampling, blur and right-angle turns of image batches.

Every resampling here is separable and linear: along each axis an output pixel is a weighted sum of a few input pixels,
its taps, which differ from image to image. `resample` computes the sums with embedding_bag, a kernel for CPUs and GPUs:
exact antialiasing, a box or a sigma per image, no loop over samples. On a CPU that takes a third of the time of dense
batched matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ssl_core.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(x: Tensor) -> Tensor:
    """uint8 [n, c, h, w] in any memory format -> float32 in [0, 1], planar (contiguous) in memory."""
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def channel_values(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[c, 1, 1] of constants, filled on the device: copying a Python list to a GPU would synchronise."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])


def normalise(x: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """(x - mean) / std per channel; x [n, c, h, w] in [0, 1]."""
    return (x - channel_values(mean, x.device)).div_(channel_values(std, x.device))


def denormalise(x: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """The inverse of `normalise`, clamped to [0, 1] for display."""
    x = x.float() * channel_values(std, x.device) + channel_values(mean, x.device)
    return x.clamp_(0, 1)


def uniform(shape: tuple[int, ...], low: float, high: float, rng: Generator) -> Tensor:
    """float32 drawn uniformly from [low, high) on the generator's device."""
    return torch.empty(shape, device=rng.device).uniform_(low, high, generator=rng)


def change_some(x: Tensor, chance: float, rng: Generator, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies `change` to each sample of x [n, ...] with probability `chance`; computes little more than those.

    Of n samples, ceil(chance n) are drawn, and each of these is changed with probability chance n / ceil(chance n).
    """
    drawn = min(len(x), ceil(chance * len(x)))
    if drawn == 0:
        return x
    chosen = uniform((len(x),), 0, 1, rng).argsort()[:drawn]
    part = x.index_select(0, chosen)
    applied = uniform((drawn, *[1] * (x.ndim - 1)), 0, 1, rng) < chance * len(x) / drawn
    return x.index_copy(0, chosen, torch.where(applied, change(part), part))


class Taps(NamedTuple):
    """The weighted sums of t input pixels that make the output pixels along one axis, for k images."""

    reads: Tensor
    """[k, out, t] int64: which input pixels."""
    weights: Tensor
    """[k, out, t] float32."""


def resample(x: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Resample both axes; x [n, c, h, w] -> float32 [k, c, H, W], contiguous.

    k is n, or a multiple of it: output i is made from image i modulo n. uint8 images keep their range, 0 to 255.
    """
    return _mix_rows(_mix_rows(x.transpose(2, 3), columns).transpose(2, 3), rows)


def _mix_rows(x: Tensor, taps: Taps) -> Tensor:
    """Each output row is a weighted sum of input rows; x [n, c, h, w] -> [k, c, H, w]."""
    n, c, h, w = x.shape
    k, out, t = taps.reads.shape
    table = x.to(torch.float32, memory_format=torch.contiguous_format).contiguous().view(n * c * h, w)
    plane = (torch.arange(k, device=x.device) % n).unsqueeze(1) * c + torch.arange(c, device=x.device)
    reads = plane.view(k, c, 1, 1) * h + taps.reads.unsqueeze(1)
    weights = taps.weights.unsqueeze(1).expand(k, c, out, t)
    mixed = F.embedding_bag(reads.view(-1, t), table, mode="sum", per_sample_weights=weights.reshape(-1, t))
    return mixed.view(k, c, out, w)


def triangle_taps(start: Tensor, length: Tensor, size: int, out: int) -> Taps:
    """Antialiased linear resize of the interval [start, start + length) of an axis of `size` pixels to `out` pixels.

    start, length: [k] in input pixels, fractions allowed, inside the axis. The triangle is as wide as the step when
    shrinking and two pixels wide when enlarging: Pillow's `resize(box=..., resample=BILINEAR)`.
    """
    step = (length / out).view(-1, 1, 1)
    reach = step.clamp_min(1)
    centre = start.view(-1, 1, 1) + (torch.arange(out, device=start.device).view(1, -1, 1) + 0.5) * step
    taps = ceil(2 * max(1.0, size / out))
    reads = (centre - reach + 0.5).floor() + torch.arange(taps, device=start.device)
    weights = (1 - (reads + 0.5 - centre).abs() / reach).clamp_min_(0) * ((reads >= 0) & (reads < size))
    return Taps(reads.clamp_(0, size - 1).long(), weights / weights.sum(-1, keepdim=True))


def crop_boxes(n: int, rng: Generator, min_area: float, max_ratio: float, max_area: float = 1.0) -> Tensor:
    """Boxes of a random resized crop: [n, 4] top, left, height, width as fractions of the image.

    Area uniform in [min_area, max_area], width/height log-uniform in [1/max_ratio, max_ratio]; the first of
    ten candidates that fits the image is used, as in Inception's crop; if none does, the last one's longer side is cut.
    """
    tries = 10
    area = uniform((n, tries), min_area, max_area, rng)
    ratio = uniform((n, tries), -log(max_ratio), log(max_ratio), rng).exp_()
    height, width = (area / ratio).sqrt_(), (area * ratio).sqrt_()
    fits = ((height <= 1) & (width <= 1)).to(torch.uint8)
    fits[:, -1] = 1
    first = fits.argmax(1, keepdim=True)
    height, width = height.gather(1, first).clamp_max_(1), width.gather(1, first).clamp_max_(1)
    corner = uniform((n, 2), 0, 1, rng) * (1 - torch.cat([height, width], 1))
    return torch.cat([corner, height, width], 1)


def crop_resize(x: Tensor, boxes: Tensor, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Cut boxes and resize them, antialiased, to size x size; mirror left-right where `mirrored` [k] is set.

    x [n, c, h, w] uint8 or float in [0, 1]; boxes [k, 4] as `crop_boxes` returns, k a multiple of n: box i is cut from
    image i modulo n. -> float [k, c, size, size] in [0, 1].
    """
    h, w = x.shape[-2:]
    top, left, height, width = boxes.unbind(1)
    rows = triangle_taps(top * h, height * h, h, size)
    reads, weights = triangle_taps(left * w, width * w, w, size)
    if mirrored is not None:
        mirrored = mirrored.view(-1, 1, 1)
        reads = torch.where(mirrored, reads.flip(1), reads)
        weights = torch.where(mirrored, weights.flip(1), weights)
    if not x.is_floating_point():
        weights = weights / 255
    return resample(x, rows, Taps(reads, weights))


def random_resized_crop(
    x: Tensor,
    size: int,
    rng: Generator,
    *,
    min_area: float = 0.08,
    max_ratio: float = 4 / 3,
    flip: float = 0.5,
) -> Tensor:
    """A random resized crop of each image and, with probability `flip`, a left-right mirror.

    x [n, c, h, w] uint8 or float in [0, 1] -> float [n, c, size, size].
    """
    boxes = crop_boxes(len(x), rng, min_area, max_ratio)
    return crop_resize(x, boxes, size, uniform((len(boxes),), 0, 1, rng) < flip)


def resize(x: Tensor, size: int) -> Tensor:
    """Resizes each image, antialiased, to float [n, c, size, size] in [0, 1]; x uint8 or float in [0, 1]."""
    if x.shape[-2:] == (size, size):
        return x if x.is_floating_point() else to_float(x)
    whole = torch.zeros(len(x), 4, device=x.device)
    whole[:, 2:] = 1
    return crop_resize(x, whole, size)


def random_flip(x: Tensor, rng: Generator, chance: float = 0.5) -> Tensor:
    """Mirror left-right with probability `chance`; any dtype, x [n, c, h, w]."""
    mirrored = uniform((len(x), 1, 1, 1), 0, 1, rng) < chance
    return torch.where(mirrored, x.flip(3), x)


def four_rotations(x: Tensor) -> Tensor:
    """[n, c, s, s] -> [n, 4, c, s, s]: turned anticlockwise by 0, 90, 180 and 270 degrees; pixels only move."""
    return torch.stack([x.rot90(k, (2, 3)) for k in range(4)], 1)


def gaussian_taps(sigma: Tensor, size: int, radius: int) -> Taps:
    """Blur of an axis of `size` pixels with each image's sigma [k] in pixels, the picture reflected at its borders.

    A sigma of 0 is the identity.
    """
    if radius >= size:
        raise InputError(f"a blur radius of {radius} px does not fit an image of {size} px; use a smaller radius")
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * offset.square() / sigma.view(-1, 1).square().clamp_min(1e-6))
    kernel = (kernel / kernel.sum(1, keepdim=True)).unsqueeze(1)
    reads = torch.arange(size, device=sigma.device).unsqueeze(1) + offset
    reads = (size - 1) - (reads.abs() - (size - 1)).abs()
    return Taps(reads.expand(len(sigma), -1, -1), kernel.expand(-1, size, -1))


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with sigma [n] in pixels, one per image, the kernel cut at `radius` pixels."""
    h, w = x.shape[-2:]
    return resample(x, gaussian_taps(sigma, h, radius), gaussian_taps(sigma, w, radius))


def random_blur(x: Tensor, rng: Generator, chance: float, low: float = 0.1, high: float = 2.0) -> Tensor:
    """SimCLR's blur: with probability `chance` sigma uniform in [low, high] px, kernel a tenth of the side long."""
    radius = max(1, x.shape[-1] // 20)
    return change_some(x, chance, rng, lambda part: blur(part, uniform((len(part),), low, high, rng), radius))


def pixelate(x: Tensor, side: Tensor) -> Tensor:
    """Shrink each image, antialiased, to side x side pixels and enlarge it again; side [n], whole numbers.

    x [n, c, s, s]. A side of s leaves the image as it is.
    """
    size = x.shape[-1]
    grain = (size / side).view(-1, 1, 1)
    index = torch.arange(size, device=x.device)
    centre = (index.view(1, -1, 1) + 0.5) * grain
    down = (1 - (index + 0.5 - centre).abs() / grain).clamp_min_(0)
    down = down / down.sum(-1, keepdim=True).clamp_min(1e-6)
    coarse = (index.view(1, -1, 1) + 0.5) / grain
    up = (1 - (index + 0.5 - coarse).abs()).clamp_min_(0) * (index < side.view(-1, 1, 1))
    up = up / up.sum(-1, keepdim=True)
    with torch.autocast(x.device.type, enabled=False):
        both = torch.bmm(up, down)
        return both.unsqueeze(1) @ x @ both.unsqueeze(1).mT


def random_pixelate(x: Tensor, rng: Generator, chance: float, min_pixels: int = 100) -> Tensor:
    """With probability `chance` reduce an image to between `min_pixels` and all of its pixels, and enlarge it again."""
    low, high = min(min_pixels, x.shape[-1] ** 2), x.shape[-1] ** 2
    return change_some(
        x, chance, rng, lambda part: pixelate(part, uniform((len(part),), low, high, rng).sqrt_().round_())
    )


def standardise(x: Tensor, each_channel: bool = False) -> Tensor:
    """Each channel of each image to mean 0, then each image to root mean square 1; x [n, c, h, w] float.

    each_channel: each channel to root mean square 1, for tasks that show one channel alone; otherwise it would reveal
    its contrast relative to the others.
    """
    x = x - x.mean((2, 3), keepdim=True)
    over = (2, 3) if each_channel else (1, 2, 3)
    return x.div_(x.square().mean(over, keepdim=True).sqrt_().clamp_min_(1e-3))


def shown_standardised(x: Tensor) -> Tensor:
    """Standardised images for display: mean 0.5, deviation 0.2, clamped to [0, 1]."""
    return x.float().mul(0.2).add_(0.5).clamp_(0, 1)
