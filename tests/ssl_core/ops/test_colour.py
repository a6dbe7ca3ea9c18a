import colorsys
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from ssl_core.ops import colour


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 5, side: int = 9) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=generator(), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.brightness, ImageEnhance.Brightness),
        (colour.contrast, ImageEnhance.Contrast),
        (colour.saturation, ImageEnhance.Color),
    ],
)
def test_enhancements_equal_pillows(ours, theirs):
    raw, factors = pixels(), [0.0, 0.3, 1.0, 1.4, 1.8]
    got = ours(raw.float() / 255, torch.tensor(factors))
    for picture, factor, result in zip(raw, factors, got, strict=True):
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        expected = np.asarray(theirs(image).enhance(factor)).transpose(2, 0, 1) / 255
        assert np.abs(result.numpy() - expected).max() < 2.1 / 255  # Pillow rounds the grey and the result


def test_hue_equals_colorsys():
    x, turns = pixels().float() / 255, [-0.5, -0.13, 0.0, 0.2, 0.5]
    x[:, :, 0, 0] = 0.5  # grey pixels have no hue
    got = colour.rotate_hue(x, torch.tensor(turns))
    for picture, turn, result in zip(x, turns, got, strict=True):
        for rgb, out in zip(picture.flatten(1).T.tolist(), result.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            assert out == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=1e-5)


def test_saturation_and_value_change_as_colorsys_has_them():
    x, rng = pixels().float() / 255, generator(2)
    n = len(x)
    before = x.clone()
    turns = torch.rand(n, generator=rng) - 0.5
    power, gain = (4 ** (2 * torch.rand(n, 2, generator=rng) - 1) for _ in range(2))
    shift = 0.2 * torch.rand(n, 2, generator=rng) - 0.1
    got = colour.change_hsv(x, turns, power, gain, shift)
    assert torch.equal(x, before)
    for picture, turn, *settings, result in zip(x, turns.tolist(), power, gain, shift, got, strict=True):
        (ps, pv), (gs, gv), (ds, dv) = (pair.tolist() for pair in settings)
        for rgb, out in zip(picture.flatten(1).T.tolist(), result.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            s, v = (min(max(g * part**p + d, 0), 1) for part, p, g, d in ((s, ps, gs, ds), (v, pv, gv, dv)))
            assert out == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=1e-4)


def test_colour_components_are_scaled_one_by_one_along_the_principal_axes_of_natural_pixels():
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    published = np.array([[0.5675, 0.5808, 0.5836], [0.7192, -0.0045, -0.6948], [0.4009, -0.8140, 0.4203]])
    assert (np.abs((axes * published).sum(1)) > np.cos(np.radians(2.1))).all()
    x, factors = pixels().float() / 255, torch.rand(len(pixels()), 3, generator=generator(1)) * 2
    mean = np.full(3, 0.45)
    for picture, factor, result in zip(x, factors.numpy(), colour.scale_components(x, factors), strict=True):
        centred = picture.flatten(1).numpy().T - mean
        expected = (centred @ axes.T * factor) @ axes + mean
        assert np.abs(result.flatten(1).numpy().T - expected.clip(0, 1)).max() < 1e-5
    assert torch.allclose(colour.scale_components(x, torch.ones(len(x), 3)), x, atol=1e-6)


def test_every_image_gets_one_of_the_24_orders_and_all_orders_occur():
    x = (pixels(1) / 255).expand(200, -1, -1, -1).contiguous()
    strength = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    got = colour.colour_jitter(x, generator(3), **strength)
    n, rng = len(x), generator(3)  # the same draws again

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=rng)

    chosen = draw(0, 1).argsort()
    draw(0, 1)
    factors = [draw(0.2, 1.8)[chosen.argsort()] for _ in range(3)]
    turns = draw(-0.2, 0.2)[chosen.argsort()]
    steps = [
        lambda y: colour.brightness(y, factors[0]),
        lambda y: colour.contrast(y, factors[1]),
        lambda y: colour.saturation(y, factors[2]),
        lambda y: colour.rotate_hue(y, turns),
    ]
    found = torch.zeros(n, 24, dtype=torch.bool)
    for column, order in enumerate(permutations(range(4))):
        y = x
        for step in order:
            y = steps[step](y)
        found[:, column] = (y - got).abs().amax((1, 2, 3)) < 1e-5
    assert found.any(1).all()
    assert found.any(0).all()


def test_jitter_with_chance_zero_is_the_identity():
    x = pixels() / 255
    kept = colour.colour_jitter(x, generator(), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, chance=0)
    assert torch.allclose(kept, x, atol=1e-6)


def test_jitter_does_not_write_into_its_input():
    x = pixels() / 255
    before = x.clone()
    colour.colour_jitter(x, generator(), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    assert torch.equal(x, before)


def test_grey_images_have_three_equal_channels_of_pillows_luma():
    raw = pixels()
    got = colour.random_grey(raw / 255, generator(), chance=1)
    assert torch.equal(got[:, 0], got[:, 1]) and torch.equal(got[:, 0], got[:, 2])
    luma = np.asarray(Image.fromarray(raw[0].permute(1, 2, 0).contiguous().numpy()).convert("L"))
    assert np.abs(got[0, 0].numpy() * 255 - luma).max() < 1


def test_one_channel_survives_a_drop_and_the_noise_is_faint():
    x = (pixels(300) / 255) - 0.5
    dropped = colour.drop_channels(x, generator(), noise=0.01)
    survived = (dropped == x).flatten(2).all(2)
    assert (survived.sum(1) == 1).all()
    assert survived.float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.1)
    ratio = dropped[~survived].std() / x.std()
    assert ratio == pytest.approx(0.01, rel=0.1)


def test_the_projection_is_the_papers_matrix():
    a = np.array([[-1.0, 2.0, -1.0]])
    b = np.eye(3) - a.T @ a / (a @ a.T)
    x = pixels() / 255
    expected = np.einsum("nchw,cd->ndhw", x.numpy(), b)
    assert np.abs(colour.project_green_magenta(x).numpy() - expected).max() < 1e-6
