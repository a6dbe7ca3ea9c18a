import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from ssl_core.ops import images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int = 4, height: int = 40, width: int = 40, seed: int = 0) -> torch.Tensor:
    """uint8 [n, 3, h, w] of smooth colour fields, laid out as the reader does."""
    noise = np.random.default_rng(seed).random((n, height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    pixels = ((smooth - low) / (high - low) * 255).astype(np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def pillow(x: torch.Tensor) -> Image.Image:
    return Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def test_to_float_spans_zero_to_one_and_leaves_its_input_alone():
    raw = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert images.to_float(raw).flatten().tolist() == pytest.approx([0, 128 / 255, 1])
    assert raw.flatten().tolist() == [0, 128, 255]


def test_denormalise_undoes_normalise():
    x = images.to_float(photos())
    assert torch.allclose(images.denormalise(images.normalise(x)), x, atol=1e-6)


@pytest.mark.parametrize("size", [12, 23, 40, 61])
def test_a_crop_is_resized_as_pillow_does(size: int):
    raw = photos(3, 40, 56)
    boxes = torch.tensor([[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.7], [0.33, 0.4, 0.21, 0.13]])
    ours = images.crop_resize(images.to_float(raw), boxes, size)
    for picture, (top, left, height, width), got in zip(raw, boxes.tolist(), ours, strict=True):
        box = (left * 56, top * 40, (left + width) * 56, (top + height) * 40)
        theirs = pillow(picture).resize((size, size), Image.Resampling.BILINEAR, box=box)
        assert (got - as_tensor(theirs)).abs().max() < 2.5 / 255


def test_a_mirrored_crop_is_the_crop_mirrored():
    x, boxes = images.to_float(photos(2)), torch.tensor([[0.1, 0.2, 0.5, 0.7]]).repeat(2, 1)
    plain = images.crop_resize(x, boxes, 20)
    turned = images.crop_resize(x, boxes, 20, torch.tensor([True, False]))
    assert torch.allclose(turned[0], plain[0].flip(2), atol=1e-6)
    assert torch.equal(turned[1], plain[1])


def test_the_largest_area_of_a_crop_can_be_named():
    boxes = images.crop_boxes(20_000, generator(), 0.08, 4 / 3, 0.6)
    area = boxes[:, 2] * boxes[:, 3]
    assert area.min() > 0.079 and area.max() < 0.601 and area.mean().item() == pytest.approx(0.34, abs=0.005)
    unnamed, named = (images.crop_boxes(9, generator(), 0.2, 4 / 3, *last) for last in ((), (1.0,)))
    assert torch.equal(unnamed, named)


def test_crop_boxes_stay_inside_and_follow_the_stated_laws():
    top, left, height, width = images.crop_boxes(20_000, generator(), 0.08, 4 / 3).unbind(1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all()
    area, ratio = height * width, width / height
    assert 0.08 - 1e-5 <= area.min() < 0.085 and area.max() > 0.98
    assert ratio.min() > 0.749 and ratio.max() < 1.334
    assert ratio.log().mean().abs() < 0.01
    small = area[area < 0.5]  # all such boxes fit, so none was rejected: uniform in [0.08, 0.5]
    assert small.mean() == pytest.approx(0.29, abs=0.005)


def test_a_crop_of_everything_at_its_own_size_is_the_image():
    x = images.to_float(photos())
    whole = images.random_resized_crop(x, 40, generator(), min_area=1, max_ratio=1, flip=0)
    assert torch.allclose(whole, x, atol=1e-6)


def test_resize_gives_the_whole_image():
    raw = photos(1, 40, 40)
    theirs = pillow(raw[0]).resize((17, 17), Image.Resampling.BILINEAR)
    assert (images.resize(images.to_float(raw), 17)[0] - as_tensor(theirs)).abs().max() < 2.5 / 255


def test_flip_mirrors_about_the_given_share():
    raw = photos(1).expand(4000, -1, -1, -1)[:, :, :3, :5]
    flipped = images.random_flip(raw, generator(), 0.3)
    mirrored = (flipped == raw.flip(3)).flatten(1).all(1)
    assert ((flipped == raw).flatten(1).all(1) ^ mirrored).all()
    assert mirrored.float().mean() == pytest.approx(0.3, abs=0.03)


def test_rotations_move_pixels_exactly_as_numpy_does():
    raw = photos()
    turned = images.four_rotations(raw)
    assert turned.dtype == torch.uint8
    for k in range(4):
        assert np.array_equal(turned[:, k].numpy(), np.rot90(raw.numpy(), k, (2, 3)))


def test_blur_equals_scipys_gaussian_with_each_images_sigma():
    x, sigmas = images.to_float(photos(4, 32, 48)), [0.3, 0.9, 1.7, 2.0]
    ours = images.blur(x, torch.tensor(sigmas), radius=6)
    for picture, sigma, got in zip(x, sigmas, ours, strict=True):
        theirs = ndimage.gaussian_filter(picture.numpy(), (0, sigma, sigma), mode="mirror", radius=(0, 6, 6))
        assert np.abs(got.numpy() - theirs).max() < 1e-5


def test_no_blur_is_the_identity_and_a_blur_too_wide_is_named():
    x = images.to_float(photos())
    assert torch.allclose(images.random_blur(x, generator(), chance=0), x, atol=1e-6)
    with pytest.raises(ValueError, match="radius of 40 px does not fit an image of 40 px"):
        images.blur(x, torch.ones(4), radius=40)


@pytest.mark.parametrize("side", [3, 10, 31, 40])
def test_pixelate_is_shrinking_and_enlarging(side: int):
    raw = photos(1)
    coarse = images.pixelate(images.to_float(raw), torch.tensor([side]))[0]
    linear = Image.Resampling.BILINEAR
    theirs = pillow(raw[0]).resize((side, side), linear).resize((40, 40), linear)
    assert (coarse - as_tensor(theirs)).abs().max() < 3.5 / 255


def test_random_pixelate_keeps_the_image_at_chance_zero():
    x = images.to_float(photos())
    assert torch.allclose(images.random_pixelate(x, generator(), chance=0), x, atol=1e-6)
    assert (images.random_pixelate(x, generator(), chance=1) - x).abs().amax((1, 2, 3)).min() > 0


def test_standardised_images_have_no_channel_mean_and_unit_power():
    x = images.standardise(images.to_float(photos()))
    assert x.mean((2, 3)).abs().max() < 1e-5
    assert torch.allclose(x.square().mean((1, 2, 3)), torch.ones(4), atol=1e-5)


def test_a_flat_image_standardises_to_zero():
    assert images.standardise(torch.full((1, 3, 4, 4), 0.4)).abs().max() < 1e-3


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_each_sample_is_changed_with_the_stated_chance(n: int, chance: float):
    rng, changed = generator(), torch.zeros(n)
    for _ in range(600):
        changed += images.change_some(torch.zeros(n, 1), chance, rng, lambda part: part + 1)[:, 0]
    assert (changed / 600 - chance).abs().max() < 0.1


def test_several_views_are_cut_from_each_image():
    raw = photos(3)
    boxes = images.crop_boxes(6, generator(), 0.1, 4 / 3)
    both = images.crop_resize(raw, boxes, 20)
    one = [images.crop_resize(raw, part, 20) for part in boxes.split(3)]
    assert torch.equal(both, torch.cat(one))


def test_bytes_and_floats_resample_alike():
    raw, boxes = photos(3), images.crop_boxes(3, generator(), 0.1, 4 / 3)
    assert torch.allclose(images.crop_resize(raw, boxes, 20), images.crop_resize(raw / 255, boxes, 20), atol=1e-6)


def test_resampling_stays_float32_under_autocast():
    x = images.to_float(photos())
    boxes = images.crop_boxes(4, generator(), 0.1, 4 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        crops, coarse = images.crop_resize(x, boxes, 20), images.pixelate(x, torch.full((4,), 9))
    assert torch.equal(crops, images.crop_resize(x, boxes, 20))
    assert torch.equal(coarse, images.pixelate(x, torch.full((4,), 9)))
