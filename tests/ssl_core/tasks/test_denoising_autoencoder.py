import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import log_loss, mean_squared_error, r2_score
from small_tasks import as_raw, encoder, generator

from ssl_core.ops import images
from ssl_core.tasks.denoising_autoencoder import DenoisingAutoencoder

SIDE, BLOCK = 24, 5


def task_of(**fields) -> DenoisingAutoencoder:
    return DenoisingAutoencoder(**{"canvas": SIDE, "block": BLOCK, "flip": 0.0, **fields})


def raw_of(n: int = 40) -> dict[str, torch.Tensor]:
    return as_raw(task_of(), 0.2 + 0.6 * torch.rand(n, 3, SIDE, SIDE, generator=generator()))


def damaged(task: DenoisingAutoencoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Damaged and clean pictures in [0, 1], and where they were struck."""
    inputs, (clean, struck) = task.make_batch(raw_of(), generator())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.IMAGENET_MEAN, images.IMAGENET_STD))
    return inputs["images"] * std + mean, clean, struck


def corners_of_squares(values: torch.Tensor) -> list[tuple[int, int]]:
    """The corners at which a grid of squares of BLOCK px can start, so that the values are the same in each square."""
    found = []
    for down in range(BLOCK):
        for right in range(BLOCK):
            rows = (torch.arange(SIDE) + down) // BLOCK
            columns = (torch.arange(SIDE) + right) // BLOCK
            square = (rows.view(-1, 1) * SIDE + columns).flatten()
            groups = [values.flatten(1)[:, square == index] for index in square.unique()]
            if all(torch.allclose(group, group[:, :1], atol=1e-4) for group in groups):
                found.append((down, right))
    return found


@pytest.mark.parametrize("noise", ["masking", "salt_pepper"])
def test_noise_strikes_whole_squares_at_its_level_and_leaves_the_rest(noise):
    seen, clean, struck = damaged(task_of(noise=noise, level=0.3))
    assert struck.mean() == pytest.approx(0.3, abs=0.04)
    assert torch.allclose(seen * (1 - struck), clean * (1 - struck), atol=1e-5)
    hit = seen[struck.expand_as(seen) > 0]
    black = (hit.abs() < 1e-5).float().mean()
    assert ((hit.abs() < 1e-5) | ((hit - 1).abs() < 1e-5)).all()
    assert black == 1 if noise == "masking" else 0.4 < black < 0.6
    starts = [corners_of_squares(one) for one in struck]
    assert all(starts) and len({tuple(start) for start in starts}) > 10


def test_gaussian_noise_is_added_to_squares_with_its_deviation():
    seen, clean, struck = damaged(task_of(noise="gaussian", level=0.5))
    added = seen - clean
    assert struck.min() == 1 and added.std() == pytest.approx(0.5, rel=0.05) and abs(added.mean()) < 0.03
    assert all(corners_of_squares(one) for one in added)


@pytest.mark.parametrize("noise", ["masking", "salt_pepper", "gaussian"])
def test_the_papers_noise_strikes_each_pixel_alone(noise):
    seen, clean, _ = damaged(task_of(noise=noise, block=1, level=0.25))
    touched = (seen - clean)[:, 0] if noise == "gaussian" else (seen != clean).any(1).float()
    touched = touched - touched.mean()
    neighbours = (touched[:, 1:] * touched[:, :-1]).mean() / touched.square().mean()
    assert abs(neighbours) < 0.03


@pytest.mark.parametrize("untouched", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("error", ["squared", "cross_entropy"])
def test_losses_and_metrics_are_those_of_scikit_learn(error, untouched):
    task = task_of(error=error, untouched=untouched, level=0.4)
    _, targets = task.make_batch(raw_of(6), generator())
    outputs = torch.randn(6, 3, SIDE, SIDE, generator=generator(1))
    loss, metrics = task.loss(outputs, targets)
    answers = expit(outputs.numpy()) if error == "cross_entropy" else outputs.numpy()
    for i, (answer, clean, struck) in enumerate(zip(answers, *targets, strict=True)):
        clean, weights = clean.numpy().ravel(), np.broadcast_to(struck.numpy(), (3, SIDE, SIDE)).ravel()
        weights = np.where(weights > 0, 1, untouched)
        if error == "squared":
            expected = mean_squared_error(clean, answer.ravel(), sample_weight=weights)
        else:  # a pixel of brightness b is a white one with weight b and a black one with weight 1 - b
            both = np.concatenate([weights * clean, weights * (1 - clean)])
            kinds = np.repeat([1, 0], len(clean))
            expected = log_loss(kinds, np.tile(answer.ravel(), 2).astype(float), sample_weight=both)
        assert loss[i].item() == pytest.approx(expected, rel=1e-4)
        assert metrics["psnr"][i].item() == pytest.approx(
            10 * np.log10(1 / mean_squared_error(clean, answer.ravel())), abs=1e-3
        )


def test_explained_variance_is_that_of_the_pixels_that_were_struck():
    task = task_of(noise="gaussian", level=0.5)
    _, targets = task.make_batch(raw_of(), generator())
    answers = 0.5 * (targets.values + 0.5)
    theirs = r2_score(targets.values.flatten(1), answers.flatten(1), multioutput="variance_weighted")
    assert task.loss(answers, targets)[1]["r2"].mean().item() == pytest.approx(theirs, abs=1e-4)
    task = task_of(level=0.3)
    _, targets = task.make_batch(raw_of(), generator())
    only_untouched = torch.where(targets.weights > 0, targets.values.mean(0), targets.values)
    assert abs(task.loss(only_untouched, targets)[1]["r2"].mean()) < 1e-5


def test_there_is_no_way_around_the_encoder():
    """All that the decoder gets is the last feature map."""
    model = task_of().build(encoder).eval()
    inputs, _ = task_of().make_batch(raw_of(2), generator())
    model.encoder.stage3.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    with torch.no_grad():
        restored = model(**inputs)
    assert torch.equal(restored[0], restored[1])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 4}, "canvas must be at least 8 px"),
        ({"block": 300}, "block must be between 1 px and canvas"),
        ({"noise": "fog"}, "noise is 'fog'; it can be masking, salt_pepper or gaussian"),
        ({"error": "absolute"}, "error is 'absolute'; it can be squared"),
        ({"level": 1.0}, "level is 1.0; it must be above 0, and below 1"),
        ({"untouched": 2.0}, "untouched and flip must be between 0 and 1"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        DenoisingAutoencoder(**fields)
