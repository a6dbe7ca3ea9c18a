import numpy as np
import pytest
import torch
from scipy import ndimage
from small_tasks import as_raw, encoder, generator
from torch.nn import functional as F

from ssl_core.ops import images
from ssl_core.tasks.context_encoder import BLOCKS, Contest, ContextEncoder

SIDE = 32


def task_of(**fields) -> ContextEncoder:
    return ContextEncoder(**{"canvas": SIDE, "flip": 0.0, **fields})


def raw_of(n: int = 6) -> dict[str, torch.Tensor]:
    return as_raw(task_of(), torch.rand(n, 3, SIDE, SIDE, generator=generator()))


def holes_of(n: int = 60, **fields) -> np.ndarray:
    return task_of(**fields).make_batch(raw_of(n), generator())[1].weights[:, 0].numpy() > 0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_random_regions_have_their_share_any_shape_and_any_place(share):
    holes = holes_of(share=share)
    assert holes.mean((1, 2)) == pytest.approx(np.full(60, share), abs=0.01)
    assert np.abs(holes.mean(0) - share).max() < 5 * (share * (1 - share) / 60) ** 0.5  # no place is preferred
    pieces = [ndimage.label(hole)[1] for hole in holes]
    assert 1 < np.mean(pieces) < 20  # regions, not single pixels


def test_the_central_region_is_a_square_of_its_share_in_the_middle():
    (hole,) = np.unique(holes_of(region="central"), axis=0)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[8:24, 8:24] = True
    assert np.array_equal(hole, expected)


def test_blocks_are_squares_that_may_overlap():
    side = int(SIDE * (0.25 / BLOCKS) ** 0.5)
    square = np.ones((side, side), bool)
    for hole in holes_of(region="blocks"):
        assert np.array_equal(ndimage.binary_opening(hole, square), hole)  # nothing but squares of that side
        assert side**2 <= hole.sum() <= BLOCKS * side**2 <= 0.25 * SIDE**2


@pytest.mark.parametrize("region", ["random", "blocks", "central"])
def test_nothing_of_a_hole_reaches_the_network(region):
    task, raw = task_of(region=region), raw_of()
    inputs, targets = task.make_batch(raw, generator())
    changed = {"image": torch.where(targets.weights > 0, 255 - raw["image"], raw["image"])}
    assert torch.equal(task.make_batch(changed, generator())[0]["images"], inputs["images"])
    assert (inputs["images"] * targets.weights == 0).all()
    assert torch.equal(targets.values, images.normalise(images.to_float(raw["image"])))


@pytest.mark.parametrize(("region", "overlap"), [("random", 7), ("central", 0), ("central", 3)])
def test_the_loss_is_that_of_the_hole_and_ten_times_that_of_its_overlap(region, overlap):
    task = task_of(region=region, overlap=overlap)
    _, targets = task.make_batch(raw_of(), generator())
    outputs = torch.randn(6, 3, SIDE, SIDE, generator=generator(1))
    for loss, answer, picture, hole in zip(task.loss(outputs, targets)[0], outputs, *targets, strict=True):
        weights = hole[0].numpy().copy()
        if region == "central" and overlap:
            square = np.ones((2 * overlap + 1,) * 2, bool)
            weights[ndimage.binary_dilation(weights > 0, square) & (weights == 0)] = 10
        error = ((answer - picture) ** 2).mean(0).numpy()
        assert loss.item() == pytest.approx((error * weights).sum() / (weights > 0).sum(), rel=1e-5)


def test_one_backward_teaches_the_adversary_to_tell_and_the_encoder_to_deceive():
    torch.manual_seed(0)
    task = task_of(adversarial=0.1)
    model = task.build(encoder)
    inputs, targets = task.make_batch(raw_of(), generator())
    outputs = model(**inputs)
    assert isinstance(outputs, Contest)
    loss, metrics = task.loss(outputs, targets)
    loss.mean().backward()
    pixels = outputs.pixels.detach().requires_grad_()
    real, painted = model.adversary(inputs["real"]).flatten(), model.adversary(pixels).flatten()
    contest = F.binary_cross_entropy_with_logits(real, torch.ones(6))
    contest = contest + F.binary_cross_entropy_with_logits(painted, torch.zeros(6))
    of_adversary = torch.autograd.grad(contest, list(model.adversary.parameters()), retain_graph=True)
    for weight, gradient in zip(model.adversary.parameters(), of_adversary, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-4)
    painting = task_of().loss(pixels, targets)[0].mean()
    wanted = torch.autograd.grad(0.9 * painting - 0.1 * contest, pixels)[0]
    last_bias = model.decoder.layers[-1].bias
    torch.testing.assert_close(last_bias.grad, wanted.sum((0, 2, 3)), atol=1e-6, rtol=1e-4)
    told = ((real > 0).float().mean() + (painted < 0).float().mean()) / 2
    assert metrics["adversary_accuracy"].mean() == pytest.approx(told.item())


def test_without_an_adversary_there_is_none():
    inputs, _ = task_of().make_batch(raw_of(), generator())
    assert set(inputs) == {"images"} and task_of().build(encoder).adversary is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 4}, "canvas must be at least 8 px"),
        ({"region": "ring"}, "region is 'ring'; it can be random, blocks or central"),
        ({"share": 0.0}, "share is 0.0; it must be between"),
        ({"adversarial": 1.0}, r"adversarial must be at least 0 and below 1"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ContextEncoder(**fields)
