"""Lab against scikit-image; the bins against the gamut and against the released ones."""

import hashlib

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from skimage.color import lab2rgb, rgb2lab

from ssl_core.ops import lab


def pixels(n: int = 4, side: int = 24) -> torch.Tensor:
    """Random bytes, a third of them dark enough for the straight feet of the curves."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, side, side), generator=rng, dtype=torch.uint8)
    return torch.where(torch.rand(n, 1, side, side, generator=rng) < 0.3, x // 16, x)


@pytest.mark.parametrize("given", ["bytes", "floats", "channels_last"])
def test_lab_is_that_of_scikit_image(given):
    """Which takes the primaries to six digits; ours are the standard's four."""
    x = pixels()
    given = {"bytes": x, "floats": x / 255, "channels_last": x.contiguous(memory_format=torch.channels_last)}[given]
    expected = rgb2lab(x.numpy(), channel_axis=1)
    assert np.abs(lab.from_rgb(given).numpy() - expected).max() < 0.02
    assert np.abs(lab.lightness(lab.light(given)).numpy() - expected[:, :1]).max() < 0.01


def test_the_way_back_is_that_of_scikit_image():
    colours = rgb2lab(pixels().numpy(), channel_axis=1)
    ours = lab.to_rgb(torch.from_numpy(colours).float()).numpy()
    assert np.abs(ours - lab2rgb(colours, channel_axis=1)).max() < 0.002


def test_landmarks():
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    found = lab.from_rgb(colours.view(5, 3, 1, 1)).view(5, 3).tolist()
    known = [[0, 0, 0], [100, 0, 0], [53.585, 0, 0], [53.24, 80.09, 67.2], [32.30, 79.19, -107.86]]
    for ours, theirs in zip(found, known, strict=True):
        assert ours == pytest.approx(theirs, abs=0.05)


def test_it_inverts():
    x = pixels()
    assert (lab.to_rgb(lab.from_rgb(x)) - x / 255).abs().max() < 1e-4


def test_colours_that_no_screen_shows_are_clamped():
    shown = lab.to_rgb(torch.tensor([[50.0, 100, 100], [120, 0, 0], [-5, 0, 0]]).view(3, 3, 1, 1))
    assert shown.isfinite().all() and shown.min() >= 0 and shown.max() <= 1
    garish, white, black = shown.view(3, 3)
    assert garish.max() == 1 and garish.min() == 0, "what lies outside ends on the border"
    assert torch.equal(white, torch.ones(3)) and torch.equal(black, torch.zeros(3))


def test_its_inputs_are_left_as_they_were():
    x = pixels() / 255
    light = lab.light(x)
    colours = lab.from_light(light)
    before = [value.clone() for value in (x, light, colours)]
    lab.lightness(light)
    lab.to_rgb(colours)
    lab.encode(colours[:, 1:], 5)
    assert all(torch.equal(now, then) for now, then in zip((x, light, colours), before))


def gamut() -> np.ndarray:
    """a, b of all bytes on the faces of the RGB cube; those inside lie between them."""
    levels = np.arange(256) / 255
    first, second = np.meshgrid(levels, levels)
    faces = [np.stack([np.full_like(first, end), first, second], -1) for end in (0, 1)]
    colours = np.concatenate([np.roll(face, turn, -1).reshape(-1, 3) for face in faces for turn in range(3)])
    return rgb2lab(colours)[:, 1:]


def test_the_bins_are_the_released_ones_in_their_order():
    """SHA-256 of the models' pts_in_hull.npy as int8, as OpenCV's samples/dnn/colorization.cpp has it."""
    released = "e998ac8ef501e2599f898d384433aa276ba4ef172c264d05f6541707baf69842"
    assert hashlib.sha256(np.array(lab.BINS).astype(np.int8).tobytes()).hexdigest() == released


def test_there_are_313_bins_and_they_cover_the_gamut():
    bins, colours = np.array(lab.BINS), gamut()
    assert bins.shape == (313, 2) and len(set(lab.BINS)) == 313
    ways = [(f, g) for f in (np.floor, np.ceil) for g in (np.floor, np.ceil)]
    around = [np.stack([f(colours[:, 0] / 10), g(colours[:, 1] / 10)], 1) for f, g in ways]
    corners = set(map(tuple, 10 * np.unique(np.concatenate(around), axis=0)))
    assert set(lab.BINS) - corners == {(40, 90), (100, -90), (100, -10), (100, 0)} and corners < set(lab.BINS)
    assert cKDTree(bins).query(colours)[0].max() <= 50**0.5


@pytest.mark.parametrize(("k", "sigma"), [(1, 5.0), (5, 5.0), (10, 2.0)])
def test_soft_encoding_is_the_papers(k, sigma):
    ab = torch.from_numpy(gamut()[::1009]).float().T.reshape(1, 2, -1, 1)
    bins, shares = lab.encode(ab, k, sigma)
    assert bins.shape == shares.shape == (1, ab.shape[2], 1, k)
    centres = np.array(lab.BINS)
    for colour, chosen, share in zip(ab[0, :, :, 0].T.round().double().numpy(), bins[0, :, 0], shares[0, :, 0]):
        distance = np.linalg.norm(centres - colour, axis=1)
        nearest = np.sort(distance)[:k]
        assert distance[chosen.numpy()] == pytest.approx(nearest)  # equally near ones may change places
        weights = np.exp(-(nearest**2) / (2 * sigma**2))
        assert share.numpy() == pytest.approx(weights / weights.sum(), abs=1e-6)


def test_colours_beyond_the_gamut_go_to_a_bin():
    bins, shares = lab.encode(torch.tensor([[1e4, -1e4, 110], [-1e4, 1e4, 0]]).view(1, 2, 3, 1), 5)
    assert bins.min() >= 0 and bins.max() < 313 and torch.allclose(shares.sum(-1), torch.ones(()))


def test_annealing_goes_from_the_mean_to_the_mode():
    logits = torch.full((1, 313, 1, 1), -30.0)
    logits[0, 10], logits[0, 200] = 1.0, 0.0
    first, second = (np.array(lab.BINS[i]) for i in (10, 200))
    for temperature in (1.0, 0.38):
        share = 1 / (1 + np.exp(-1 / temperature))
        expected = share * first + (1 - share) * second
        assert lab.annealed_mean(logits, temperature).flatten().numpy() == pytest.approx(expected, abs=1e-3)
    assert lab.annealed_mean(logits, 0.02).flatten().tolist() == pytest.approx(first)
