import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.transform import AffineTransform, ProjectiveTransform
from small_tasks import as_raw, encoder, generator

from ssl_core.ops import images
from ssl_core.tasks.relative_transformation import RelativeTransformation

SIDE, SIZE = 192, 96
RING = np.array([(1, 0), (-1, 0), (0.5, 0.87), (-0.5, -0.87), (-0.5, 0.87), (0.5, -0.87)])
DOTS = {"affine": SIZE / 2 + 10 * RING, "projective": SIZE / 2 + 24 * RING}
"""Two dots in each of the three channels, x and y in px of the view, as far out as no transformation moves one out of
sight; a perspective shows far from the middle only."""


def task_of(kind: str, **fields) -> RelativeTransformation:
    scale = 0.3 if kind == "affine" else 0.2
    settings = {"canvas": SIDE, "size": SIZE, "kind": kind, "scale": scale, "flip": False, **fields}
    return RelativeTransformation(**settings)


def dotted(task: RelativeTransformation, n: int) -> dict[str, torch.Tensor]:
    """Pictures of a bright and a dimmer blob in each channel."""
    axis = torch.arange(SIDE) + 0.5 - (SIDE - SIZE) / 2
    x, y = torch.from_numpy(DOTS[task.kind]).float().T.view(2, 3, 2, 1, 1).unbind()
    blobs = torch.exp(-((axis - x).square() + (axis.view(-1, 1) - y).square()) / (2 * 1.7**2))
    return as_raw(task, torch.maximum(blobs[:, 0], 0.6 * blobs[:, 1]).expand(n, -1, -1, -1))


def places(picture: torch.Tensor) -> np.ndarray:
    """Where the dots are in a view [3, s, s]: centres of mass of its blobs, [6, 2], x and y in px."""
    found = []
    for channel in images.denormalise(picture[None])[0].double().numpy():
        mass = np.clip(channel - 0.1, 0, None)
        blobs, count = ndimage.label(mass)
        assert count == 2
        order = sorted((1, 2), key=lambda blob: -channel[blobs == blob].max())
        found += [np.array(centre)[::-1] + 0.5 for centre in ndimage.center_of_mass(mass, blobs, order)]
    return np.array(found)


def places_and_answers(task: RelativeTransformation, n: int = 12):
    """For n transformations: places in the original and in the transformed view in px, and the answer."""
    inputs, answers = task.make_batch(dotted(task, n), generator())
    both = zip(inputs["original"], inputs["transformed"], answers, strict=True)
    return [(places(first), places(second), answer.double().numpy()) for first, second, answer in both]


def test_affine_parameters_are_those_that_scikit_image_finds_in_the_pictures():
    for before, after, answer in places_and_answers(task_of("affine")):
        found = AffineTransform.from_estimate(before - SIZE / 2, after - SIZE / 2)
        angle, (scale, same) = found.rotation, found.scale
        assert same == pytest.approx(scale, abs=0.01)
        slant = -np.degrees(np.arctan(np.tan(found.shear)))  # its angle may have turned full circle
        shift = found.translation / (0.2 * SIZE)
        expected = [np.cos(angle), np.sin(angle), *shift, (scale - 1) / 0.3, slant / 30]
        assert np.abs(expected - answer).max() < 0.05


def test_projective_parameters_are_those_that_scikit_image_finds_in_the_pictures():
    """The paper's map reads, from the second picture to the first, in pixels of a picture of 224."""
    mean, deviation = [0, 0, 112, 0, 0, 112, 6.4e-5, 6.4e-5], [0.75, 0.75, 118, 0.75, 0.75, 118, 7.75e-4, 7.75e-4]
    expected, answers = [], []
    for before, after, answer in places_and_answers(task_of("projective")):
        numbers = ProjectiveTransform.from_estimate(after * 224 / SIZE, before * 224 / SIZE).params.flatten()[:8]
        expected.append((numbers - mean) / deviation)
        answers.append(answer)
    off = np.abs(np.array(expected) - answers).max(0)
    assert (off / np.std(expected, 0)).max() < 0.1  # each number by how much it varies itself


def test_projective_parameters_have_mean_0_and_deviation_1():
    task = RelativeTransformation(canvas=8, size=8)
    raw = {"image": torch.zeros(20_000, 3, 8, 8, dtype=torch.uint8)}
    answers = task.make_batch(raw, generator())[1]
    assert answers.mean(0).abs().max() < 0.05
    assert (answers.std(0) - 1).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["affine", "projective"])
def test_the_first_picture_can_be_the_pixels_as_they_are(kind):
    task = task_of(kind, resample_both=False)
    raw = as_raw(task, torch.rand(6, 3, SIDE, SIDE, generator=generator()))
    inputs, answers = task.make_batch(raw, generator())
    middle = images.normalise(images.to_float(raw["image"]))[..., 48:-48, 48:-48]
    assert torch.equal(inputs["original"], middle)
    assert torch.equal(answers, task_of(kind).make_batch(raw, generator())[1])
    still = task_of(kind, resample_both=False, corner=0, scale=0, degrees=0, translate=0, shear=0, turns=False)
    torch.testing.assert_close(still.make_batch(raw, generator())[0]["transformed"], middle, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["affine", "projective"])
def test_without_strength_both_views_are_the_middle_of_the_canvas(kind):
    task = task_of(kind, corner=0.0, scale=0.0, degrees=0.0, translate=0.0, shear=0.0, turns=False)
    smooth = images.blur(torch.rand(6, 3, SIDE, SIDE, generator=generator()), torch.full((6,), 4.0), 10)
    raw = as_raw(task, smooth)
    middle = images.normalise(images.to_float(raw["image"]))[..., 48:-48, 48:-48]
    for view in task.make_batch(raw, generator())[0].values():
        assert (view - middle).abs().max() < 0.1  # read at a place within a pixel


def test_what_lies_around_the_view_moves_into_it():
    task = task_of("affine")
    frame = torch.ones(40, 3, SIDE, SIDE)
    frame[..., 48:-48, 48:-48] = 0
    original, transformed = task.make_batch(as_raw(task, frame), generator())[0].values()
    white = (images.denormalise(transformed)[:, 0] > 0.9).flatten(1).float().mean(1)
    assert (images.denormalise(original) < 0.1).float().mean() > 0.9
    assert (white > 0.02).float().mean() > 0.9 and white.max() < 0.7


def test_flat_fill_shows_and_a_mirrored_picture_does_not():
    raw = as_raw(task_of("affine", canvas=SIZE), torch.rand(20, 3, SIZE, SIZE, generator=generator()))
    flat = {}
    for fill in ("reflection", "zeros"):
        task = task_of("affine", canvas=SIZE, fill=fill)
        transformed = task.make_batch(raw, generator())[0]["transformed"]
        flat[fill] = (transformed == 0).all(1).float().mean()
    assert flat["reflection"] == 0 and flat["zeros"] > 0.05


def test_its_representation_is_of_the_middle_of_the_canvas():
    task = task_of("affine", hidden=8)
    model, raw = task.build(encoder).eval(), as_raw(task, torch.rand(3, 3, SIDE, SIDE, generator=generator()))
    middle = images.normalise(images.to_float(raw["image"][..., 48:-48, 48:-48]))
    with torch.no_grad():
        assert torch.equal(model.represent(raw)["stage3"], model.encoder(middle))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 64}, "size must be between 8 px and canvas"),
        ({"kind": "rigid"}, "kind is 'rigid'; it can be affine or projective"),
        ({"fill": "grey"}, "fill is 'grey'; it can be reflection or zeros"),
        ({"corner": 0.3}, "corner between 0 and 0.2"),
        ({"degrees": 270.0}, "degrees must be between 0 and 180"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        RelativeTransformation(**fields)
