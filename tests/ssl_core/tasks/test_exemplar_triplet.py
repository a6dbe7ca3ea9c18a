import pytest
import torch
from small_tasks import as_raw, encoder, generator

from ssl_core.ops import images
from ssl_core.tasks.exemplar_triplet import ExemplarTriplet

PLAIN = {"min_area": 1.0, "max_ratio": 1.0, "flip": 0.0, "brightness": 0.0, "jitter": 0.0, "hue": 0.0, "grey": 0.0}
"""No distortion."""


def task_of(**fields) -> ExemplarTriplet:
    return ExemplarTriplet(**{"canvas": 16, "size": 16, "views": 3, "out": 8, **fields})


def raw_of(task: ExemplarTriplet, n: int = 6) -> dict[str, torch.Tensor]:
    return as_raw(task, torch.rand(n, 3, task.canvas, task.canvas, generator=generator()))


def test_undistorted_crops_are_the_image_once_per_view():
    task = task_of(**PLAIN)
    raw = raw_of(task)
    views = task.make_batch(raw, generator())[0]["views"]
    assert torch.allclose(views, images.normalise(images.to_float(raw["image"])).repeat(3, 1, 1, 1), atol=1e-5)


def test_an_image_loses_its_colours_in_all_crops_or_in_none():
    task = task_of(**{**PLAIN, "grey": 0.5, "min_area": 0.5})
    views = images.denormalise(task.make_batch(raw_of(task, 40), generator())[0]["views"])
    colourless = (views.amax(1) - views.amin(1)).amax((1, 2)).view(3, 40) < 1e-4
    assert (colourless == colourless[0]).all() and 8 < colourless[0].sum() < 32


def test_each_crop_has_mean_0_and_deviation_1_over_its_three_channels():
    task = task_of(standardise=True)
    views = task.make_batch(raw_of(task), generator())[0]["views"]
    assert views.mean((1, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(views.std((1, 2, 3), correction=0), torch.ones(18), atol=1e-4, rtol=0)
    assert views.mean((2, 3)).abs().max() > 0.1  # channels together, not each


def test_a_flat_crop_is_standardised_to_zero_and_a_crop_of_one_other_byte_to_the_floor():
    task = task_of(standardise=True, **PLAIN)
    flat = torch.full((2, 3, 16, 16), 102 / 255)
    flat[1, 0, 0, 0] += 1 / 255
    flat, nearly = task.make_batch(as_raw(task, flat), generator())[0]["views"][:2]
    n = 3 * 16 * 16
    assert flat.abs().max() < 2e-3
    byte = 1 - 1 / n  # of the odd one out, in bytes above the mean; the deviation is a little less than the floor
    assert nearly.max().item() == pytest.approx(byte * n**0.5, rel=2e-4)


def test_standardised_crops_are_shown_around_grey():
    task = task_of(standardise=True, **PLAIN)
    inputs, _ = task.make_batch(raw_of(task, 4), generator())
    crops = task.show(inputs, torch.randn(12, 8, generator=generator()), None).columns["crop"]
    assert torch.allclose(crops, inputs["views"][:4] * 0.2 + 0.5, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [{"min_area": 0.3}, {"flip": 0.5}, {"degrees": 20.0}, {"elastic": 0.2}, {"brightness": 0.5}, {"jitter": 0.5}],
    ids=lambda fields: next(iter(fields)),
)
def test_each_distortion_makes_crops_differ(fields):
    task = task_of(**{**PLAIN, **fields})
    first, second, _ = task.make_batch(raw_of(task, 16), generator())[0]["views"].chunk(3)
    assert (first - second).abs().amax((1, 2, 3)).max() > 0.1


def test_each_vector_is_normalised_alone():
    task, z = task_of(), torch.randn(12, 8, generator=generator())
    loss = task.loss(z, None)[0]
    scales = torch.rand(12, 1, generator=generator()) * 9 + 0.5
    assert torch.allclose(task.loss(scales * z, None)[0], loss, atol=1e-5)


def test_it_shows_the_nearest_crop_and_whose_it_is():
    task = task_of()
    inputs, _ = task.make_batch(raw_of(task, 4), generator())
    z = torch.eye(8)[torch.tensor([0, 1, 2, 3, 0, 1, 3, 2, 4, 5, 6, 7])]
    panel = task.show(inputs, z, None)
    assert panel.captions[0] == "squared distance 0.00, found"
    assert panel.captions[2] == "squared distance 0.00, mistaken for 3"
    assert torch.equal(panel.columns["nearest"][0], panel.columns["another of it"][0])


@pytest.mark.parametrize("standardise", [True, False])
def test_its_representation_is_of_the_whole_image(standardise):
    task = task_of(canvas=20, standardise=standardise)
    model, raw = task.build(encoder).eval(), raw_of(task)
    whole = images.resize(images.to_float(raw["image"]), 16)
    mean, deviation = (f((1, 2, 3), keepdim=True) for f in (whole.mean, whole.std))
    whole = (whole - mean) / deviation if standardise else images.normalise(whole)
    with torch.no_grad():
        assert torch.allclose(model.represent(raw)["stage3"], model.encoder(whole), atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"views": 1}, "out at least 1, views at least 2"),
        ({"min_area": 0.0}, "min_area is 0.0; it is a share and must be above 0"),
        ({"grey": 1.2}, "grey is 1.2; it must be between 0 and 1"),
        ({"hue": 0.6}, "hue is 0.6; it must be between 0 and 0.5"),
        ({"margin": 5.0}, "margin is 5.0; it must be above 0 and at most 4"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ExemplarTriplet(**fields)
