"""AMDIM's loss against loops over images and places, in one process and over ranks."""

import pytest
import torch
from ranks import over_ranks
from small_tasks import as_raw, encoder, generator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core.nn.encoders import EncoderSpec
from ssl_core.ops import images
from ssl_core.tasks.amdim import AMDIM, Embedding, Scales

PLAIN = {"min_area": 1.0, "max_ratio": 1.0, "flip": 0.0, "jitter": 0.0, "hue": 0.0, "grey": 0.0}
"""Every augmentation off."""


def task_of(**fields) -> AMDIM:
    return AMDIM(**{"canvas": 16, "size": 16, "coarse": 2, "fine": 3, "out": 8, **fields})


def raw_of(task: AMDIM, n: int = 4) -> dict[str, Tensor]:
    return as_raw(task, torch.rand(n, 3, task.canvas, task.canvas, generator=generator()))


def features(n: int, scale: float = 3.0, d: int = 5) -> Scales:
    """Random vectors whose scores reach into the clip."""
    shapes = ((2 * n, d), (2 * n, d), (2 * n, 4, d), (2 * n, 9, d))
    rng = generator()
    return Scales(*(scale * torch.randn(*shape, generator=rng) for shape in shapes))


def naive(task: AMDIM, outputs: Scales) -> tuple[list[Tensor], list[float]]:
    """Equations 2 to 4 of the paper with its clipping and its penalty, one pair of vectors after another."""
    n = len(outputs.whole) // 2
    losses, found = [torch.zeros(()) for _ in range(n)], [0.0] * n
    for here, there in ((0, n), (n, 0)):
        for source, target in (("whole", "coarse"), ("whole", "fine"), ("place", "coarse")):
            places = getattr(outputs, target)
            for i in range(n):
                vector = getattr(outputs, source)[here + i]
                raw = [[vector @ place / len(vector) ** 0.5 for place in places[there + j]] for j in range(n)]
                clipped = [[task.clip * torch.tanh(score / task.clip) for score in row] for row in raw]
                negatives = sum(score.exp() for j in range(n) if j != i for score in clipped[j])
                each = [-torch.log(score.exp() / (score.exp() + negatives)) for score in clipped[i]]
                squares = [score**2 for row in raw for score in row]
                losses[i] = losses[i] + sum(each) / len(each) / 2 + task.penalty * sum(squares) / len(squares) / 2
                if (source, target) == ("whole", "coarse"):
                    best = max(range(n), key=lambda j: max(clipped[j]).item())
                    found[i] += 0.5 * (best == i)
    return losses, found


@pytest.mark.parametrize("fields", [{}, {"clip": 2.0, "penalty": 0.5}])
def test_loss_gradient_and_accuracy_are_those_of_the_loops(fields):
    task, outputs = task_of(**fields), features(5)
    for part in outputs:
        part.requires_grad_()
    loss, metrics = task.loss(outputs, None)
    losses, found = naive(task, outputs)
    expected = torch.stack(losses)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    assert metrics["accuracy"].tolist() == found
    weights = torch.rand(5, generator=generator())
    mine, theirs = (torch.autograd.grad((each * weights).sum(), outputs) for each in (loss, expected))
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def _part(rank: int, world: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    network = DistributedDataParallel(nn.Linear(5, 6))
    rows = torch.arange(6).view(world, -1)[rank]
    own = Scales(*(network(part[torch.cat([rows, 6 + rows])]) for part in features(6)))
    loss = task_of().loss(own, None)[0]
    loss.mean().backward()
    return loss.detach(), network.module.weight.grad


def test_ranks_together_have_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    parts = over_ranks(_part, 2, tmp_path)
    torch.manual_seed(0)
    network = nn.Linear(5, 6)
    loss = torch.stack(naive(task_of(), Scales(*(network(part) for part in features(6))))[0])
    loss.mean().backward()
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), loss.detach(), atol=1e-4, rtol=1e-4)
    for part in parts:
        torch.testing.assert_close(part[1], network.weight.grad, atol=1e-4, rtol=1e-3)


def test_with_everything_off_both_views_are_the_image():
    task = task_of(**PLAIN)
    raw = raw_of(task)
    views = task.make_batch(raw, generator())[0]["views"]
    assert torch.allclose(views, images.normalise(images.to_float(raw["image"])).repeat(2, 1, 1, 1), atol=1e-5)


def test_both_views_are_mirrored_or_none():
    task = task_of(**{**PLAIN, "flip": 0.5})
    raw = raw_of(task, 40)
    first, second = task.make_batch(raw, generator())[0]["views"].chunk(2)
    original = images.normalise(images.to_float(raw["image"]))
    assert torch.equal(first, second)
    mirrored = (first - original.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert 8 < mirrored.sum() < 32
    assert torch.allclose(first[~mirrored], original[~mirrored], atol=1e-4)


@pytest.mark.parametrize(
    "fields", [{"min_area": 0.3}, {"degrees": 20.0}, {"elastic": 0.2}, {"jitter": 0.5}, {"hue": 0.4}, {"grey": 0.5}]
)
def test_each_augmentation_makes_the_two_views_differ(fields):
    task = task_of(**{**PLAIN, **fields})
    first, second = task.make_batch(raw_of(task, 16), generator())[0]["views"].chunk(2)
    assert (first - second).abs().amax((1, 2, 3)).max() > 0.1


def test_scales_are_the_encoders_stages_and_a_chosen_place_is_one_of_them():
    task = task_of()
    torch.manual_seed(0)
    model = task.build(encoder).eval()
    assert model.scales == ("stage3", "stage2")  # 4 x 4 and 8 x 8 places
    views = task.make_batch(raw_of(task), generator())[0]["views"]
    place = torch.tensor([0.0, 0.25, 0.6, 0.999, 0.0, 0.3, 0.5, 0.8])
    with torch.no_grad():
        out, maps = model(views, place), model.encoder.stages(views)
        coarse = model.coarse(nn.functional.avg_pool2d(maps["stage3"], 2).flatten(2).mT)
        whole = model.whole(model.encoder(views)[:, None])
    assert out.coarse.shape == (8, 4, 8) and out.fine.shape == (8, 9, 8)
    torch.testing.assert_close(out.whole, whole[:, 0])
    for i, cell in enumerate((0, 1, 2, 3, 0, 1, 2, 3)):
        torch.testing.assert_close(out.place[i], coarse[i, cell])


@pytest.mark.parametrize(
    ("spec", "size", "scales"),
    [
        (EncoderSpec("resnet18", width=0.125), 128, ("stage4", "stage3")),
        (EncoderSpec("resnet18", width=0.125), 16, ("stage2", "stage1")),
        (EncoderSpec("resnet18", width=0.125, stem="cifar"), 16, ("stage4", "stage3")),
        (EncoderSpec("vit_tiny", width=0.125, patch=8), 32, ("block12", "block11")),
    ],
)
def test_the_scales_are_the_deepest_maps_of_more_than_one_place(spec, size, scales):
    task = task_of(canvas=size, size=size)
    model = task.build(spec.build)
    assert model.scales == scales and model.training
    loss = task.loss(model(**task.make_batch(raw_of(task), generator())[0]), None)[0]
    assert loss.isfinite().all()


def test_an_encoder_without_two_maps_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"task\.size 8 all but 1 of .* set encoder\.stem to cifar"):
        task_of(canvas=8, size=8).build(EncoderSpec("resnet18", width=0.125).build)


def test_an_embedding_starts_as_a_normalised_identity():
    x = torch.randn(6, 9, 5, generator=generator())
    out = Embedding(5, 8)(x)[..., :5]
    expected = nn.BatchNorm1d(5)(x.flatten(0, 1)).view_as(x)
    assert (out - expected).abs().max() < 0.15


def test_its_representation_is_of_the_whole_image():
    task = task_of(canvas=20)
    model, raw = task.build(encoder).eval(), raw_of(task)
    whole = images.normalise(images.resize(images.to_float(raw["image"]), 16))
    with torch.no_grad():
        assert torch.allclose(model.represent(raw)["stage3"], model.encoder(whole))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"coarse": 0}, "coarse, fine and out at least 1"),
        ({"max_ratio": 0.5}, "max_ratio is 0.5; it is a factor and must be at least 1"),
        ({"grey": -0.1}, "grey is -0.1; it must be between 0 and 1"),
        ({"hue": 0.6}, "hue is 0.6; it must be between 0 and 0.5"),
        ({"clip": 0.0}, "clip must be above 0, penalty must be at least 0"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of(**fields)
