import numpy as np
import pytest
import torch
from scipy import ndimage
from small_tasks import as_raw, encoder, generator

from ssl_core.ops import images
from ssl_core.tasks.rotation import Rotation


def noise(n: int = 3, side: int = 12) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=generator())


def test_all_four_turns_of_every_image_are_in_the_batch_exactly():
    task = Rotation(canvas=12, flip=False)
    raw = as_raw(task, noise())
    inputs, targets = task.make_batch(raw, generator())
    assert targets.tolist() == [0, 1, 2, 3] * 3
    original = images.normalise(images.to_float(raw["image"])).numpy()
    for row, (picture, turn) in enumerate(zip(inputs["images"].numpy(), targets.tolist(), strict=True)):
        assert np.array_equal(picture, np.rot90(original[row // 4], turn, (1, 2)))


def test_a_mirrored_image_is_mirrored_in_all_its_turns():
    task = Rotation(canvas=12)
    raw = as_raw(task, noise(40))
    turned = task.make_batch(raw, generator())[0]["images"].unflatten(0, (40, 4))
    original = images.normalise(images.to_float(raw["image"]))
    for k in range(4):
        assert torch.equal(turned[:, k], turned[:, 0].rot90(k, (2, 3)))
    mirrored = (turned[:, 0] == original.flip(3)).flatten(1).all(1)
    assert 8 < mirrored.sum() < 32
    assert (turned[~mirrored, 0] == original[~mirrored]).all()


def test_eight_angles_keep_the_right_ones_exact():
    task = Rotation(canvas=12, flip=False, angles=8)
    inputs, targets = task.make_batch(as_raw(task, noise()), generator())
    exact, _ = Rotation(canvas=12, flip=False).make_batch(as_raw(task, noise()), generator())
    assert targets[:8].tolist() == list(range(8))
    assert torch.equal(inputs["images"][::2], exact["images"])
    assert task.chance(5) == {"accuracy": 1 / 8}


def test_the_odd_angles_turn_anticlockwise_too():
    task = Rotation(canvas=64, flip=False, angles=8)
    smooth = images.blur(noise(2, 64), torch.full((2,), 4.0), 12)
    smooth = (smooth - 0.5) * 6 + 0.5
    raw = as_raw(task, smooth)
    turned = images.denormalise(task.make_batch(raw, generator())[0]["images"]).unflatten(0, (2, 8)).numpy()
    axis = torch.arange(64) - 31.5
    inside = ((axis.square() + axis.square().view(-1, 1)) < 28**2).numpy()
    original = images.to_float(raw["image"]).numpy()
    for k in (1, 3, 5, 7):
        expected = ndimage.rotate(original, 45 * k, axes=(2, 3), reshape=False, order=1)
        assert np.abs(turned[:, k] - expected)[..., inside].max() < 1e-3
        other_way = ndimage.rotate(original, -45 * k, axes=(2, 3), reshape=False, order=1)
        assert np.abs(turned[:, k] - other_way)[..., inside].max() > 0.1


def test_its_representation_is_of_the_upright_image():
    task = Rotation(canvas=12)
    model, raw = task.build(encoder).eval(), as_raw(task, noise())
    upright = images.normalise(images.to_float(raw["image"]))
    with torch.no_grad():
        assert torch.allclose(model.represent(raw)["stage3"], model.encoder(upright))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 4}, "canvas is 4 px; give at least 8"),
        ({"min_area": 0.0}, "min_area is 0.0; it is a share"),
        ({"angles": 5}, "angles is 5; it can be 4"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Rotation(**fields)
