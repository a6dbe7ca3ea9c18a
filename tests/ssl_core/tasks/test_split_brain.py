import numpy as np
import pytest
import torch
from skimage.color import rgb2xyz, xyz2lab
from skimage.transform import downscale_local_mean
from small_tasks import as_raw, encoder, generator, scenes, small

from ssl_core.nn.encoders import EncoderSpec
from ssl_core.ops import lab
from ssl_core.tasks.split_brain import SplitBrain
from ssl_core.types import Field

CENTRES = np.array(lab.BINS)


def task_of(**fields) -> SplitBrain:
    return small("split_brain", **{"flip": False, **fields})


def cells_of(pictures: torch.Tensor, stride: int) -> np.ndarray:
    """scikit-image's Lab of each cell's mean light; bytes [n, 3, s, s] -> [n, 3, s / stride, s / stride]."""
    light = rgb2xyz(pictures.numpy(), channel_axis=1)
    return xyz2lab(downscale_local_mean(light, (1, 1, stride, stride)), channel_axis=1)


def test_it_sees_lab_and_is_asked_for_that_of_each_cells_light():
    task = task_of()
    raw = as_raw(task, torch.rand(4, 3, 16, 16, generator=generator()))
    inputs, cells = task.make_batch(raw, generator())
    seen = cells_of(raw["image"], 1)
    seen[:, 0] -= 50
    assert np.abs(inputs["lab"].numpy() * 50 - seen).max() < 0.02
    assert np.abs(cells.numpy() - cells_of(raw["image"], 4)).max() < 0.02


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("answers", ["classes", "values"])
def test_nothing_leaks_from_one_half_to_the_other(answers, training):
    """No output changes with the channels that it is asked for, to the last bit."""
    task = task_of(answers=answers)
    model = task.build(encoder).train(training)
    inputs, _ = task.make_batch(scenes(task, 6), generator())
    for name, own, others in (("colours", slice(0, 1), slice(1, 3)), ("lightness", slice(1, 3), slice(0, 1))):
        seen = inputs["lab"].clone().requires_grad_()
        outputs = model(lab=seen)[name]
        (outputs * torch.randn(outputs.shape, generator=generator())).sum().backward()
        assert seen.grad[:, own].abs().amax((1, 2, 3)).min() > 0
        assert seen.grad[:, others].abs().max() == 0


def test_its_representation_is_both_halves_side_by_side():
    task = task_of()
    model, raw = task.build(encoder).eval(), scenes(task, 4)
    seen, _ = task.make_batch(raw, generator())
    with torch.no_grad():
        both = model.represent(raw)
        first = model.encoder.lightness.layers(seen["lab"][:, :1])
        second = model.encoder.colours.layers(seen["lab"][:, 1:])
        assert torch.equal(model.encoder(seen["lab"]), both["stage3"])
        for name, vectors in both.items():
            assert torch.equal(vectors, torch.cat([first[name], second[name]], 1))


def test_halves_are_half_as_wide_so_that_both_are_as_wide_as_the_runs_encoder():
    spec = EncoderSpec("resnet18", width=0.5)
    whole = spec.build(Field("image", (3, 16, 16)))
    model = task_of().build(spec.build)
    assert model.encoder.dims == whole.dims and model.encoder.dim == whole.dim
    count = sum(weight.numel() for weight in model.encoder.parameters())
    assert 0.45 < count / sum(weight.numel() for weight in whole.parameters()) < 0.55


def outputs_of(colours: int, lightness: int) -> dict[str, torch.Tensor]:
    rng = generator()
    return {
        "colours": torch.randn(3, colours, 4, 4, generator=rng),
        "lightness": torch.randn(3, lightness, 4, 4, generator=rng),
    }


def test_the_loss_of_classes_is_the_sum_of_two_cross_entropies():
    task, outputs = task_of(l_bins=7), outputs_of(313, 7)
    truth = torch.rand(3, 3, 4, 4, generator=generator()) * 100
    truth[:, 1:] = (truth[:, 1:] - 50).round()
    truth[:, 1:] += (truth[:, 1:] % 5 == 0).float()  # never halfway between two bins
    truth[0, 0, 0, 0], truth[0, 0, 0, 1] = 100, 0
    expected = []
    for i in range(3):
        cells = []
        for y, x in np.ndindex(4, 4):
            lightness, *ab = truth[i, :, y, x].double().numpy()
            for name, answer in (
                ("colours", np.linalg.norm(CENTRES - ab, axis=1).argmin()),
                ("lightness", min(int(lightness // (100 / 7)), 6)),
            ):
                scores = outputs[name][i, :, y, x].double().numpy()
                cells.append(np.log(np.exp(scores).sum()) - scores[answer])
        expected.append(sum(cells) / 16)
    assert task.loss(outputs, truth)[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_values_is_half_the_squared_error_in_units_of_fifty():
    task, outputs = task_of(answers="values"), outputs_of(2, 1)
    truth = torch.rand(3, 3, 4, 4, generator=generator()) * 100
    said = torch.cat([outputs["lightness"] * 50 + 50, outputs["colours"] * 50], 1)
    expected = ((said - truth) / 50).square().sum(1).mean((1, 2)) / 2
    assert torch.allclose(task.loss(outputs, truth)[0], expected, atol=1e-5)
    assert torch.allclose(task.decoded(outputs), said, atol=1e-4)


def test_classes_are_decoded_to_their_mean():
    task = task_of(l_bins=4)
    outputs = {"colours": torch.full((1, 313, 1, 1), -1e4), "lightness": torch.full((1, 4, 1, 1), -1e4)}
    outputs["colours"][0, [3, 300]] = 0
    outputs["lightness"][0, 1:3] = 0
    found = task.decoded(outputs).flatten().tolist()
    assert found == pytest.approx([50, *CENTRES[[3, 300]].mean(0)], abs=1e-3)


@pytest.mark.parametrize("answers", ["classes", "values"])
def test_it_explains_all_where_it_knows(answers):
    task = task_of(answers=answers, l_bins=4)
    truth = torch.tensor([[12.5, *CENTRES[60]], [62.5, *CENTRES[250]]]).float().view(2, 3, 1, 1)
    if answers == "values":
        said = {"colours": truth[:, 1:] / 50, "lightness": truth[:, :1] / 50 - 1}
    else:
        said = {"colours": torch.full((2, 313, 1, 1), -1e4), "lightness": torch.full((2, 4, 1, 1), -1e4)}
        for i, (colour, level) in enumerate(((60, 0), (250, 2))):
            said["colours"][i, colour], said["lightness"][i, level] = 0, 0
    for value in task.loss(said, truth)[1].values():
        assert value.tolist() == pytest.approx([1, 1], abs=1e-5)


def test_regression_fits_a_batch():
    task = task_of(answers="values")
    torch.manual_seed(0)
    model = task.build(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    inputs, truth = task.make_batch(scenes(task, 16), generator())
    found = []
    for _ in range(60):
        loss, metrics = task.loss(model(**inputs), truth)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        found.append(metrics["r2"].mean().item())
    assert found[0] < 0.1 and found[-1] > 0.6


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 184}, "stride is 15 px and canvas 184 px; canvas must be at least 8 and a multiple"),
        ({"answers": "both"}, "answers is 'both'; it can be classes or values"),
        ({"l_bins": 1}, "l_bins must be at least 2"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        SplitBrain(**fields)
