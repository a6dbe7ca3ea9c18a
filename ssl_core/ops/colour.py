"""Colour: jitter in random order as in torchvision, grey, dropped and projected channels; RGB float [n, 3, h, w].

Brightness, contrast and saturation are one operation, `clamp(f x + (1 - f) other)`: a blend with black, with the mean
of the image's grey, or with its grey. So a batch in which each image has its own order of them takes three blends.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ssl_core.ops.images import change_some, uniform


def grey(x: Tensor) -> Tensor:
    """Luma (ITU-R 601, as Pillow's "L"): [n, 3, h, w] -> [n, 1, h, w]."""
    red, green, blue = x.unbind(1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor x + (1 - factor) other, 0, 1), factor [n]; a factor above 1 moves away from `other`."""
    factor = factor.view(-1, 1, 1, 1)
    return torch.addcmul(other * (1 - factor), x, factor).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return blend(x, torch.zeros((), device=x.device), factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the image's grey."""
    return blend(x, grey(x).mean((2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's grey."""
    return blend(x, grey(x), factor)


def rotate_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by `turns` [n] of the full circle; value and saturation (HSV) stay."""
    hue, chroma, value = _hue_chroma_value(x)
    return _rgb(hue, turns, chroma, value)


def change_hsv(x: Tensor, turns: Tensor, power: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `turns` [n] of the full circle; saturation and value (HSV) become gain s^power + shift in [0, 1].

    power, gain and shift [n, 2]: for saturation, then for value.
    """
    hue, chroma, value = _hue_chroma_value(x)
    saturation = chroma.div_(value.clamp_min(1e-8))
    for part, column in ((saturation, 0), (value, 1)):
        exponent, factor, term = (each[:, column].view(-1, 1, 1) for each in (power, gain, shift))
        part.pow_(exponent).mul_(factor).add_(term).clamp_(0, 1)
    return _rgb(hue, turns, saturation.mul_(value), value)


def _hue_chroma_value(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns from -0.5 to 0.5, chroma and value, each [n, h, w].

    With value V, chroma C, least channel m and hue h in sixths of a turn:
        h = sign(green - blue) (1 + (green + blue - red - m) / C)
    One formula for the usual six cases, which is faster on a CPU than selections.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(red, green)
    value = torch.maximum(value, blue, out=value)
    least = torch.minimum(red, green)
    least = torch.minimum(least, blue, out=least)
    hue = (green + blue).sub_(red).sub_(least)
    chroma = torch.sub(value, least, out=least)
    scratch = chroma.clamp_min(1e-8)
    hue.div_(scratch).add_(1)
    return hue.copysign_(torch.sub(green, blue, out=scratch)).div_(6), chroma, value


def _rgb(hue: Tensor, turns: Tensor, chroma: Tensor, value: Tensor) -> Tensor:
    """[n, 3, h, w] from [n, h, w] each and the turns [n] by which the hue, -0.5 to 0.5, is turned.

    channel c = V - C clamp(2 - |k - 2|, 0, 1),  k = (n_c + h) mod 6,  n = 5, 3, 1
    """
    out, scratch = hue.new_empty(len(hue), 3, *hue.shape[1:]), torch.empty_like(hue)
    turns = turns.view(-1, 1, 1) + 1
    for channel, place in enumerate((5, 3, 1)):
        distance = torch.add(hue, turns + place / 6, out=scratch).frac_().sub_(1 / 3).abs_()
        share = torch.rsub(distance, 2, alpha=6).clamp_(0, 1)
        torch.addcmul(value, share, chroma, value=-1, out=out[:, channel])
    return out


def scale_components(x: Tensor, factors: Tensor, mean: float = 0.45) -> Tensor:
    """Multiply light, red against blue, and green against magenta by factors [n, 3], light around `mean`; to [0, 1].

    (1, 1, 1), (1, 0, -1) and (1, -2, 1) are the principal components of the pixels of natural images: those of ImageNet
    (Krizhevsky et al. 2012) lie within two degrees of them.
    """
    red, green, blue = x.unbind(1)
    light, first, second = factors.view(-1, 3, 1, 1).unbind(1)
    grey = (red + green).add_(blue).mul_(light / 3).add_(mean * (1 - light))
    warm = (red - blue).mul_(first / 2)
    magenta = (red + blue).sub_(green, alpha=2).mul_(second / 6)
    grey_magenta = grey + magenta
    return torch.stack([grey_magenta + warm, grey.sub_(magenta, alpha=2), grey_magenta.sub_(warm)], 1).clamp_(0, 1)


def colour_jitter(
    x: Tensor,
    rng: Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    chance: float = 1.0,
) -> Tensor:
    """Brightness, contrast, saturation and hue in an order drawn per image, to each image with probability `chance`.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], the turn of the hue in [-hue, hue]. x in [0, 1].
    """
    ranges = [(max(0.0, 1 - s), 1 + s) for s in (brightness, contrast, saturation)]

    def change(part: Tensor) -> Tensor:
        n = len(part)
        factors = torch.cat([uniform((n, 1), low, high, rng) for low, high in ranges], 1)
        turns = uniform((n, 1), -hue, hue, rng) if hue > 0 else None
        return _in_drawn_order(part, factors, turns, rng)

    return change_some(x, chance, rng, change)


def _in_drawn_order(x: Tensor, factors: Tensor, turns: Tensor | None, rng: Generator) -> Tensor:
    """Applies factors [n, 3] and turns [n, 1] in one of the 24 orders for each image, all equally likely.

    The place of the hue is stratified: it is first for a random quarter of the batch, second for another, and so on,
    so that the hue is computed once per image instead of four times.
    """
    n = len(x)
    order = uniform((n, 3), 0, 1, rng).argsort(1)
    shuffle = uniform((n,), 0, 1, rng).argsort()
    x, factors = x.index_select(0, shuffle), factors[shuffle]
    for slot in range(4):
        quarter = slice(slot * n // 4, (slot + 1) * n // 4)
        if turns is not None and quarter.start < quarter.stop:
            x[quarter] = rotate_hue(x[quarter], turns[shuffle[quarter]])
        if slot < 3:
            which = order[:, slot, None]
            _one_of_three_(x, which, factors.gather(1, which))
    return x.index_select(0, shuffle.argsort())


def _one_of_three_(x: Tensor, which: Tensor, factor: Tensor) -> Tensor:
    """In place: brightness where `which` [n, 1] is 0, contrast where 1, saturation where 2."""
    which, factor = which.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    luma = grey(x)
    mean = luma.mean((2, 3), keepdim=True)
    rest = 1 - factor
    other = torch.addcmul(mean * (which == 1) * rest, luma, (which == 2) * rest)
    return torch.addcmul(other, x, factor, out=x).clamp_(0, 1)


def random_grey(x: Tensor, rng: Generator, chance: float) -> Tensor:
    """With probability `chance` the grey image in all three channels."""
    return change_some(x, chance, rng, lambda part: grey(part).expand_as(part))


def drop_channels(x: Tensor, rng: Generator, noise: float = 0.01) -> Tensor:
    """Keep one random channel, replace the others by Gaussian noise of `noise` times the kept one's deviation.

    Doersch et al. 2015, section 3.1: with two channels missing, chromatic aberration cannot be seen.
    """
    kept = torch.randint(3, (len(x), 1, 1, 1), generator=rng, device=x.device)
    deviation = x.std((2, 3), keepdim=True).gather(1, kept)
    static = torch.randn(x.shape, generator=rng, device=x.device).mul_(noise * deviation)
    return torch.where(torch.arange(3, device=x.device).view(1, 3, 1, 1) == kept, x, static)


def project_green_magenta(x: Tensor) -> Tensor:
    """x B with B = I - a^T a / (a a^T), a = [-1, 2, -1]: shifts green and magenta towards grey (Doersch 2015)."""
    red, green, blue = x.unbind(1)
    along = (2 * green - red - blue).div_(6)
    return torch.stack([red + along, green - 2 * along, blue + along], 1)
