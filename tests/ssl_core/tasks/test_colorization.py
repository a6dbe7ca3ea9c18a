import itertools

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab, rgb2xyz, xyz2lab
from skimage.transform import downscale_local_mean
from small_tasks import as_raw, encoder, generator, scenes, small

from ssl_core import artefact
from ssl_core.ops import lab
from ssl_core.tasks import colorization
from ssl_core.tasks.colorization import Colorization, fit_prior

CENTRES = np.array(lab.BINS)


def task_of(**fields) -> Colorization:
    """With a prior of its own making."""
    return small("colorization", **{"flip": False, **fields})


def raw_of(task: Colorization, n: int = 4) -> dict[str, torch.Tensor]:
    return as_raw(task, torch.rand(n, 3, task.canvas, task.canvas, generator=generator()))


def flat(colours: list[tuple[int, int, int]], side: int) -> torch.Tensor:
    """Pictures of one colour each, [n, 3, side, side] in [0, 1]."""
    return (torch.tensor(colours) / 255).view(-1, 3, 1, 1).expand(-1, -1, side, side)


def cells_of(pictures: torch.Tensor, stride: int) -> np.ndarray:
    """scikit-image's Lab of each cell's mean light; bytes [n, 3, s, s] -> [n, 3, s / stride, s / stride]."""
    light = rgb2xyz(pictures.numpy(), channel_axis=1)
    return xyz2lab(downscale_local_mean(light, (1, 1, stride, stride)), channel_axis=1)


def test_it_sees_lightness_and_is_asked_for_the_colour_of_each_cells_light():
    task = task_of()
    raw = raw_of(task)
    inputs, ab = task.make_batch(raw, generator())
    assert np.abs(inputs["lightness"].numpy() * 50 + 50 - cells_of(raw["image"], 1)[:, :1]).max() < 0.02
    assert np.abs(ab.numpy() - cells_of(raw["image"], task.stride)[:, 1:]).max() < 0.02


def test_picture_and_answer_are_mirrored_together():
    plain, mirrored = task_of(), task_of(flip=True)
    raw = raw_of(plain, 40)
    straight, colours = plain.make_batch(raw, generator())
    seen, ab = mirrored.make_batch(raw, generator())
    turned = (seen["lightness"] == straight["lightness"].flip(3)).flatten(1).all(1)
    assert 8 < turned.sum() < 32
    assert torch.allclose(ab[turned], colours[turned].flip(3), atol=1e-3)
    assert torch.equal(ab[~turned], colours[~turned])


def naive_loss(logits: np.ndarray, ab: np.ndarray, prior: np.ndarray, task: Colorization) -> list[float]:
    """Equations 2 to 4 by loops; colours are rounded to whole units, as the soft encoding does."""
    mixed = (1 - task.uniform) * prior + task.uniform / 313
    weights = (1 / mixed) / (prior / mixed).sum()
    losses = []
    for picture, colours in zip(logits, np.round(ab)):
        cells = []
        for place in np.ndindex(colours.shape[1:]):
            distance = np.linalg.norm(CENTRES - colours[(slice(None), *place)], axis=1)
            near = np.argsort(distance, kind="stable")[: task.neighbours]
            shares = np.exp(-(distance[near] ** 2) / (2 * task.sigma**2))
            scores = picture[(slice(None), *place)]
            logs = scores - np.log(np.exp(scores).sum())
            cells.append(-weights[near[0]] * (shares / shares.sum() * logs[near]).sum())
        losses.append(float(np.mean(cells)))
    return losses


def telling_colours(k: int) -> torch.Tensor:
    """Whole colours [m, 2], shuffled, of which it is plain which bin is the nearest and which are the k nearest."""
    axis = np.arange(-60.0, 61)
    colours = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    distance = np.sort(np.linalg.norm(colours[:, None] - CENTRES, axis=2), 1)
    plain = (distance[:, 1] - distance[:, 0] > 0.01) & (distance[:, k] - distance[:, k - 1] > 0.01)
    return torch.from_numpy(np.random.default_rng(0).permutation(colours[plain])).float()


@pytest.mark.parametrize("fields", [{}, {"neighbours": 1}, {"neighbours": 10, "uniform": 0.2}, {"uniform": 1.0}])
def test_the_loss_is_the_papers(fields):
    task = task_of(**fields)
    ab = telling_colours(task.neighbours)[:48].view(3, 4, 4, 2).permute(0, 3, 1, 2)
    logits = torch.randn(3, 313, 4, 4, generator=generator())
    prior = artefact.load(task.prior)["prior"].double().numpy()
    expected = naive_loss(logits.double().numpy(), ab.double().numpy(), prior, task)
    loss, _ = task.loss(logits, ab)
    assert loss.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("uniform", [0.1, 0.5, 1.0])
def test_weights_are_one_on_average_over_the_prior(uniform):
    task = task_of(uniform=uniform)
    weights, prior = task.weights(torch.device("cpu")), artefact.load(task.prior)["prior"]
    assert (weights * prior).sum().item() == pytest.approx(1, abs=1e-5)
    if uniform == 1:
        assert torch.allclose(weights, torch.ones(313))
    else:
        assert weights[prior.argmin()] > 1 > weights[prior.argmax()]


def test_the_prior_is_the_smoothed_share_of_each_colour_in_pictures_that_are_not_grey(monkeypatch):
    monkeypatch.setattr(colorization, "PRIOR_IMAGES", 30)
    task = Colorization(canvas=8)
    colours = [(200, 40, 30), (200, 40, 30), (40, 90, 200), (128, 128, 128)]
    raw = as_raw(task, flat(colours, 8))
    prior = fit_prior(task, itertools.repeat(raw), generator())["prior"].numpy()
    expected = np.zeros(313)
    for colour in colours[:3]:
        ab = rgb2lab(np.array(colour) / 255)[1:]
        nearest = CENTRES[np.linalg.norm(CENTRES - ab, axis=1).argmin()]
        spread = np.exp(-((CENTRES - nearest) ** 2).sum(1) / (2 * 5**2))
        expected += spread / spread.sum() / 3
    assert np.abs(prior - expected).max() < 1e-6


def test_a_corpus_without_colours_is_refused_in_a_sentence():
    task = Colorization(canvas=8)
    grey = as_raw(task, torch.rand(4, 1, 8, 8, generator=generator()).expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="20 batches held no picture with colours; train on a corpus of colour"):
        fit_prior(task, itertools.repeat(grey), generator())


def test_grey_pictures_teach_nothing_and_are_not_measured():
    task = task_of()
    scene, grey = scenes(task, 6)["image"], as_raw(task, flat([(90, 90, 90), (200, 201, 200)], 16))["image"]
    _, ab = task.make_batch({"image": torch.cat([scene, grey])}, generator())
    logits = torch.randn(8, 313, 4, 4, generator=generator(), requires_grad=True)
    loss, metrics = task.loss(logits, ab)
    loss.sum().backward()
    shown = logits.grad.flatten(1).abs().sum(1) > 0
    assert shown.tolist() == [True] * 6 + [False] * 2 and loss[6:].tolist() == [0, 0]
    wrong = torch.cat([logits[:6], -logits[6:]]).detach()
    assert torch.equal(task.loss(wrong, ab)[1]["r2"], metrics["r2"])


def test_rare_colours_win_by_their_weights():
    """Where one lightness stands for several colours, the best answer shares out by frequency times weight."""
    task = task_of(neighbours=1)
    weights, prior = task.weights(torch.device("cpu")), artefact.load(task.prior)["prior"]
    often, rare = int(prior.argmax()), int(prior.argmin())
    ab = torch.tensor(CENTRES[[often] * 9 + [rare]]).float().view(10, 2, 1, 1)
    logits = torch.zeros(1, 313, 1, 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = task.loss(logits.expand(10, -1, -1, -1), ab)[0].mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (weights[rare] / (9 * weights[often] + weights[rare])).item()
    assert logits.detach().softmax(1)[0, rare].item() == pytest.approx(expected, abs=0.01)
    assert expected > 0.3


def test_it_explains_all_where_it_knows_and_nothing_where_it_answers_the_mean():
    task = task_of(temperature=1.0)
    ab = torch.tensor(CENTRES[[40, 200]]).float().view(2, 2, 1, 1).expand(-1, -1, 4, 4)
    known = torch.full((2, 313, 4, 4), -1e4)
    known[0, 40], known[1, 200] = 0, 0
    assert task.loss(known, ab)[1]["r2"].tolist() == pytest.approx([1, 1])
    both = torch.full((2, 313, 4, 4), -1e4)
    both[:, [40, 200]] = 0
    assert task.loss(both, ab)[1]["r2"].tolist() == pytest.approx([0, 0], abs=1e-5)


def test_its_encoder_never_sees_colours():
    task = task_of()
    model, raw = task.build(encoder).eval(), raw_of(task)
    lightness = torch.from_numpy(cells_of(raw["image"], 1)[:, :1] / 50 - 1).float()
    with torch.no_grad():
        assert torch.allclose(model.represent(raw)["stage3"], model.encoder(lightness), atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 18}, "stride is 8 px and canvas 18 px; canvas must be at least 8 and a multiple"),
        ({"neighbours": 400}, "neighbours must be between 1 and 313"),
        ({"temperature": 0.0}, "sigma and temperature must be above 0"),
        ({"uniform": 0.0}, "uniform is 0.0; it is a share"),
        ({"grey": -1.0}, "grey is -1.0; it must be at least 0"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Colorization(**fields)
