"""Exemplar-CNN: its transformations against scipy and loops, and that its classes are the samples' numbers."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_tasks import as_raw, encoder, generator

from ssl_core.ops import images
from ssl_core.tasks.exemplar_cnn import ExemplarCNN

STILL = {"translate": 0.0, "zoom": 1.0, "degrees": 0.0}
"""The seed itself."""
PLAIN = {"contrast": 1.0, "power": 1.0, "gain": 1.0, "shift": 0.0, "hue": 0.0}
"""Its own colours."""


def task_of(**fields) -> ExemplarCNN:
    return ExemplarCNN(**{"canvas": 40, "size": 16, "classes": 50, "seeds": "centre", **STILL, **PLAIN, **fields})


def smooth(n: int, side: int = 40) -> torch.Tensor:
    """Pictures without edges, so that resampling twice changes little."""
    noise = torch.rand(n, 3, side, side, generator=generator())
    return torch.from_numpy(ndimage.gaussian_filter(noise.numpy(), (0, 0, 3, 3))).sub(0.5).mul(6).add(0.5).clamp(0, 1)


def network_inputs(task: ExemplarCNN, raw: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
    return images.denormalise(task.make_batch(raw, generator(seed))[0]["images"])


def test_the_answer_is_the_samples_number():
    task = task_of(translate=0.2, power=4.0)
    raw = as_raw(task, smooth(6)) | {"number": torch.tensor([7, 3, 49, 0, 7, 1])}
    inputs, numbers = task.make_batch(raw, generator())
    assert torch.equal(numbers, raw["number"])
    assert inputs["images"].shape == (6, 3, 16, 16)
    assert task.chance(6) == {"accuracy": 1 / 50}


def test_without_transformation_it_is_the_middle_of_the_canvas():
    task = task_of()
    raw = as_raw(task, smooth(4))
    assert torch.allclose(network_inputs(task, raw), raw["image"][:, :, 12:28, 12:28] / 255, atol=1e-5)


def test_a_seed_is_where_the_gradient_is_largest():
    task = task_of(seeds="gradient")
    pictures, corners = torch.full((5, 3, 40, 40), 0.5), [(0, 0), (24, 24), (3, 17), (20, 9), (24, 0)]
    for picture, (top, left) in zip(pictures, corners):
        checks = torch.arange(16).view(-1, 1) + torch.arange(16)
        picture[:, top : top + 16, left : left + 16] = (checks % 2).float()
    raw = as_raw(task, pictures)
    for found, whole, (top, left) in zip(network_inputs(task, raw), raw["image"] / 255, corners):
        assert torch.allclose(found, whole[:, top : top + 16, left : left + 16], atol=1e-4)


def test_a_patch_is_shifted_scaled_and_turned_as_scipy_does_it(monkeypatch):
    task = task_of(translate=0.2, zoom=1.4, degrees=20.0)
    pictures = smooth(8)
    drawn, uniform = [], images.uniform
    monkeypatch.setattr(images, "uniform", lambda *args: drawn.append(uniform(*args)) or drawn[-1])
    views = network_inputs(task, as_raw(task, pictures))
    angles, exponents, moves = drawn
    assert angles.abs().max() < np.radians(20) and moves.abs().max() < 0.2
    for view, whole, angle, exponent, (right, down) in zip(
        views.numpy(), (pictures * 255).round().numpy() / 255, angles.tolist(), exponents.tolist(), moves.tolist()
    ):
        side = 1.4**exponent
        cos, sin = side * np.cos(angle), side * np.sin(angle)
        matrix = np.array([[cos, sin], [-sin, cos]])  # of (down, right)
        middle = np.array([19.5 + 16 * down, 19.5 + 16 * right])
        offset = middle - matrix @ np.array([7.5, 7.5])
        expected = [
            ndimage.affine_transform(channel, matrix, offset, (16, 16), order=1, mode="mirror") for channel in whole
        ]
        assert np.abs(view - np.stack(expected)).max() < 2e-3


@pytest.mark.parametrize("fields", [{"contrast": 2.0}, {"power": 4.0}, {"gain": 1.4}, {"shift": 0.1}, {"hue": 0.1}])
def test_each_colour_change_changes_colours_and_nothing_else(fields):
    task = task_of(**fields)
    raw = as_raw(task, smooth(12))
    original = raw["image"][:, :, 12:28, 12:28] / 255
    changed = network_inputs(task, raw)
    assert (changed - original).abs().amax((1, 2, 3)).max() > 0.03
    pixels = torch.rand(12, 3, 1, 1, generator=generator()).expand(-1, -1, 40, 40)
    flat = network_inputs(task, as_raw(task, pixels))
    assert (flat - flat[:, :, :1, :1]).abs().max() < 1e-5  # the same for all pixels of a patch


def test_factors_are_as_often_above_one_as_below():
    factors = ExemplarCNN()._factors(10_000, 4.0, generator())
    assert 0.25 <= factors.min() < 0.27 and 3.7 < factors.max() <= 4
    assert abs((factors > 1).float().mean() - 0.5) < 0.02


def test_every_pass_over_an_image_makes_another_sample_of_its_class():
    task = ExemplarCNN(canvas=40, size=16, classes=50)
    raw = as_raw(task, smooth(4))
    assert (network_inputs(task, raw, 1) - network_inputs(task, raw, 2)).abs().amax((1, 2, 3)).min() > 0.05


def test_its_representation_is_of_the_whole_image_and_needs_no_number():
    task = task_of()
    model, raw = task.build(encoder).eval(), as_raw(task, smooth(3))
    whole = images.normalise(images.resize(images.to_float(raw["image"]), 16))
    with torch.no_grad():
        assert torch.allclose(model.represent({"image": raw["image"]})["stage3"], model.encoder(whole))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"size": 41}, "size is 41 px and canvas 40; size must be at least 8 and at most the canvas"),
        ({"classes": 1}, "classes is 1; a choice needs at least 2"),
        ({"zoom": 0.7}, "zoom is 0.7; a factor must be at least 1"),
        ({"translate": 1.0}, "translate is 1.0; it must be at least 0 and below 1"),
        ({"hue": 0.6}, "hue must be between 0 and 0.5"),
        ({"seeds": "edge"}, "seeds can be gradient or centre"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of(**fields)
