import numpy as np
import pytest
import torch
from small_tasks import as_raw, encoder, generator

from ssl_core.nn.encoders import EncoderSpec
from ssl_core.ops import images
from ssl_core.tasks.masked_autoencoder import MaskedAutoencoder

VIT = EncoderSpec("vit_tiny", width=0.25, patch=4, positions="sincos")


def task_of(**fields) -> MaskedAutoencoder:
    plain = {"min_area": 1.0, "max_ratio": 1.0, "flip": 0.0, "width": 32, "depth": 1, "heads": 2}
    return MaskedAutoencoder(**{"canvas": 16, "size": 16, "patch": 4, **plain, **fields})


def raw_of(n: int = 6) -> dict[str, torch.Tensor]:
    return as_raw(task_of(), torch.rand(n, 3, 16, 16, generator=generator()))


def cells(picture: torch.Tensor) -> list[np.ndarray]:
    """The 16 patches of [3, 16, 16], row by row, as [4, 4, 3]."""
    pixels = picture.double().numpy().transpose(1, 2, 0)
    return [pixels[y : y + 4, x : x + 4] for y in range(0, 16, 4) for x in range(0, 16, 4)]


def test_three_of_four_patches_are_hidden_another_choice_for_each_image():
    inputs, targets = task_of().make_batch(raw_of(50), generator())
    assert inputs["seen"].shape == (50, 4)
    assert targets.weights.sum(1).flatten().tolist() == [12] * 50
    for places, hidden in zip(inputs["seen"].tolist(), targets.weights[:, :, 0], strict=True):
        assert sorted(places) == torch.nonzero(hidden == 0).flatten().tolist()
    assert len({tuple(sorted(places)) for places in inputs["seen"].tolist()}) > 40


def test_nothing_of_a_hidden_patch_reaches_the_network():
    task, raw = task_of(), raw_of()
    inputs, targets = task.make_batch(raw, generator())
    hidden = targets.weights.view(6, 1, 4, 1, 4, 1).expand(-1, 3, -1, 4, -1, 4).reshape(6, 3, 16, 16)
    changed = {"image": torch.where(hidden > 0, 255 - raw["image"], raw["image"])}
    assert torch.equal(task.make_batch(changed, generator())[0]["images"], inputs["images"])
    assert not torch.equal(task.make_batch(changed, generator())[1].values, targets.values)


def test_the_encoder_computes_on_seen_patches_only():
    model = task_of().build(VIT.build)
    sizes = []
    model.encoder.blocks[0].register_forward_hook(lambda block, args, out: sizes.append(args[0].shape[1]))
    model(**task_of().make_batch(raw_of(), generator())[0])
    assert sizes == [1 + 4]  # with the class token


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_papers(normalise):
    """Mean squared error in a patch, averaged over the hidden ones; targets by patch, from the picture itself."""
    task, raw = task_of(normalise=normalise), raw_of()
    inputs, targets = task.make_batch(raw, generator())
    outputs = torch.randn(6, 16, 48, generator=generator(1))
    losses = []
    for picture, seen, answers in zip(raw["image"], inputs["seen"].tolist(), outputs.double().numpy(), strict=True):
        errors = []
        for place, cell in enumerate(cells(images.normalise(images.to_float(picture[None]))[0])):
            if normalise:
                cell = (cell - cell.mean()) / np.sqrt(cell.var(ddof=1) + 1e-6)
            if place not in seen:
                errors.append(np.mean((answers[place] - cell.reshape(-1)) ** 2))
        losses.append(np.mean(errors))
    assert np.allclose(task.loss(outputs, targets)[0].numpy(), losses, atol=1e-5)


def test_the_whole_answer_explains_everything():
    task = task_of()
    _, targets = task.make_batch(raw_of(), generator())
    loss, metrics = task.loss(targets.values, targets)
    assert loss.tolist() == [0] * 6 and metrics["r2"].tolist() == [1] * 6


def test_its_representation_is_of_all_patches():
    task, raw = task_of(), raw_of()
    model = task.build(VIT.build).eval()
    with torch.no_grad():
        whole = model.encoder(images.normalise(images.to_float(raw["image"])))
        assert torch.equal(model.represent(raw)["output"], whole)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (encoder, "set encoder.name to vit_small"),
        (EncoderSpec("vit_tiny", width=0.25, patch=8, positions="sincos").build, "patch is 4 and encoder.patch 8"),
        (EncoderSpec("vit_tiny", width=0.25, patch=4, positions="none").build, "set encoder.positions to sincos"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_with_the_key_to_change(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of().build(build)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"size": 200}, "size must be a multiple of patch"),
        ({"masked": 1.0}, "leaves 0 of 196 patches"),
        ({"masked": 0.0}, "leaves 196 of 196 patches"),
        ({"flip": 2.0}, "flip is 2.0; it must be between 0 and 1"),
        ({"heads": 3}, "width is 512, heads 3"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        MaskedAutoencoder(**fields)
