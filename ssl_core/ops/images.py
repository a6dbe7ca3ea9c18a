"""Conversion, resampling, blur and right-angle turns of image batches.

Every linear resampling here (crop and resize, blur, pixelation) is separable, so it is written as one pair of
matrices per image and applied by `separable` as two batched matrix products: exact antialiasing, a different box per
image, no loop over samples, and the same code on a CPU and on a GPU.
"""

from __future__ import annotations

from math import log

import torch
from torch import Generator, Tensor

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
    """The inverse of `normalise`, clamped to [0, 1] for showing."""
    x = x.float() * channel_values(std, x.device) + channel_values(mean, x.device)
    return x.clamp_(0, 1)


def uniform(shape: tuple[int, ...], low: float, high: float, rng: Generator) -> Tensor:
    """float32 drawn uniformly from [low, high) on the generator's device."""
    return torch.empty(shape, device=rng.device).uniform_(low, high, generator=rng)


def separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply a linear map to the rows and one to the columns of each image.

    x [n, c, h, w] float, rows [n, H, h], columns [n, W, w] -> [n, c, H, W]: rows @ x @ columns^T.
    Always float32, also when the caller runs under autocast.
    """
    n, c, _, w = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x = torch.matmul(rows.unsqueeze(1), x)
        x = torch.bmm(x.reshape(n, -1, w), columns.transpose(1, 2))
    return x.view(n, c, rows.shape[1], columns.shape[1])


def triangle_weights(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Weights of an antialiased linear resize of the interval [start, start + length) to `out` pixels.

    start, length: [n] in input pixels, fractions allowed. -> [n, out, size], rows sum to 1. The triangle is as wide as
    the step when shrinking and two pixels wide when enlarging: Pillow's `resize(box=..., resample=BILINEAR)`.
    """
    step = (length / out).view(-1, 1, 1)
    centre = start.view(-1, 1, 1) + (torch.arange(out, device=start.device).view(1, -1, 1) + 0.5) * step
    pixel = torch.arange(size, device=start.device) + 0.5
    weights = (pixel - centre).abs_().div_(step.clamp_min(1)).neg_().add_(1).clamp_min_(0)
    return weights.div_(weights.sum(-1, keepdim=True))


def crop_boxes(n: int, rng: Generator, min_area: float, max_ratio: float) -> Tensor:
    """Boxes of a random resized crop: [n, 4] top, left, height, width as fractions of the image.

    Area uniform in [min_area, 1], width/height log-uniform in [1/max_ratio, max_ratio]; of ten candidates the first
    that fits the image is taken, as in Inception's crop; where none does, the last one's longer side is cut.
    """
    tries = 10
    area = uniform((n, tries), min_area, 1, rng)
    ratio = uniform((n, tries), -log(max_ratio), log(max_ratio), rng).exp_()
    height, width = (area / ratio).sqrt_(), (area * ratio).sqrt_()
    fits = ((height <= 1) & (width <= 1)).to(torch.uint8)
    fits[:, -1] = 1
    first = fits.argmax(1, keepdim=True)
    height, width = height.gather(1, first).clamp_max_(1), width.gather(1, first).clamp_max_(1)
    corner = uniform((n, 2), 0, 1, rng) * (1 - torch.cat([height, width], 1))
    return torch.cat([corner, height, width], 1)


def crop_resize(x: Tensor, boxes: Tensor, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Cut each image's box and resize it, antialiased, to size x size; mirror left-right where `mirrored` [n] is set.

    x [n, c, h, w] float, boxes [n, 4] as `crop_boxes` returns -> [n, c, size, size].
    """
    h, w = x.shape[-2:]
    top, left, height, width = boxes.unbind(1)
    rows = triangle_weights(top * h, height * h, h, size)
    columns = triangle_weights(left * w, width * w, w, size)
    if mirrored is not None:
        columns = torch.where(mirrored.view(-1, 1, 1), columns.flip(1), columns)
    return separable(x, rows, columns)


def random_resized_crop(
    x: Tensor, size: int, rng: Generator, *, min_area: float = 0.08, max_ratio: float = 4 / 3, flip: float = 0.5
) -> Tensor:
    """Random resized crop and, with probability `flip`, a left-right mirror; x [n, c, h, w] float."""
    boxes = crop_boxes(len(x), rng, min_area, max_ratio)
    return crop_resize(x, boxes, size, uniform((len(x),), 0, 1, rng) < flip)


def resize(x: Tensor, size: int) -> Tensor:
    """The whole of each image, antialiased, to size x size."""
    h, w = x.shape[-2:]
    if h == w == size:
        return x
    zero = torch.zeros(1, device=x.device)
    rows, columns = triangle_weights(zero, zero + h, h, size), triangle_weights(zero, zero + w, w, size)
    return separable(x, rows.expand(len(x), -1, -1), columns.expand(len(x), -1, -1))


def random_flip(x: Tensor, rng: Generator, chance: float = 0.5) -> Tensor:
    """Mirror left-right with probability `chance`; any dtype, x [n, c, h, w]."""
    mirrored = uniform((len(x), 1, 1, 1), 0, 1, rng) < chance
    return torch.where(mirrored, x.flip(3), x)


def four_rotations(x: Tensor) -> Tensor:
    """[n, c, s, s] -> [n, 4, c, s, s]: turned anticlockwise by 0, 90, 180 and 270 degrees; pixels only move."""
    return torch.stack([x.rot90(k, (2, 3)) for k in range(4)], 1)


def mirror_index(size: int, radius: int, device: torch.device) -> Tensor:
    """[2 radius + 1, size]: the pixel that tap t of a filter centred on pixel i reads, reflected at both borders."""
    reach = torch.arange(-radius, radius + 1, device=device).view(-1, 1) + torch.arange(size, device=device)
    return (size - 1) - (reach.abs() - (size - 1)).abs()


def gaussian_weights(sigma: Tensor, size: int, radius: int) -> Tensor:
    """[n, size, size]: blur of a line of `size` pixels with each image's sigma [n] in pixels, reflected borders.

    A sigma of 0 is the identity, so that 'blur half of the images' needs no branch.
    """
    if radius >= size:
        raise ValueError(f"a blur radius of {radius} px does not fit an image of {size} px; use a smaller one")
    offset = torch.arange(-radius, radius + 1, device=sigma.device).square()
    kernel = torch.exp(-0.5 * offset / sigma.view(-1, 1).square().clamp_min(1e-6))
    kernel = kernel / kernel.sum(1, keepdim=True)
    reads = mirror_index(size, radius, sigma.device).unsqueeze(2) == torch.arange(size, device=sigma.device)
    with torch.autocast(sigma.device.type, enabled=False):
        return torch.matmul(kernel, reads.flatten(1).float()).view(-1, size, size)


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with sigma [n] in pixels, one per image, the kernel cut at `radius` pixels."""
    h, w = x.shape[-2:]
    rows = gaussian_weights(sigma, h, radius)
    return separable(x, rows, rows if h == w else gaussian_weights(sigma, w, radius))


def random_blur(x: Tensor, rng: Generator, chance: float, low: float = 0.1, high: float = 2.0) -> Tensor:
    """SimCLR's blur: with probability `chance` sigma uniform in [low, high] px, kernel a tenth of the side long."""
    sigma = uniform((len(x),), low, high, rng)
    blurred = uniform((len(x),), 0, 1, rng) < chance
    radius = max(1, x.shape[-1] // 20)
    return blur(x, torch.where(blurred, sigma, 0), radius)


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
    return separable(x, both, both)


def random_pixelate(x: Tensor, rng: Generator, chance: float, min_pixels: int = 100) -> Tensor:
    """With probability `chance` reduce an image to between `min_pixels` and all of its pixels, and enlarge it again."""
    size = x.shape[-1]
    side = uniform((len(x),), min(min_pixels, size * size), size * size, rng).sqrt_().round_()
    chosen = uniform((len(x),), 0, 1, rng) < chance
    return pixelate(x, torch.where(chosen, side, size))


def standardise(x: Tensor) -> Tensor:
    """Each channel of each image to mean 0, then each image to root mean square 1; x [n, c, h, w] float."""
    x = x - x.mean((2, 3), keepdim=True)
    return x.div_(x.square().mean((1, 2, 3), keepdim=True).sqrt_().clamp_min_(1e-3))
