import pytest
import torch
from small_tasks import as_raw, encoder, generator

from ssl_core.ops import images
from ssl_core.tasks.simclr import SimCLR

NONE = {
    "min_area": 1.0,
    "max_ratio": 1.0,
    "flip": 0.0,
    "jitter": 0.0,
    "grey": 0.0,
    "blur": 0.0,
}
"""Every augmentation off."""


def task_of(**fields) -> SimCLR:
    return SimCLR(**{"canvas": 24, "size": 16, "hidden": 16, "out": 8, **fields})


def raw_of(task: SimCLR, n: int = 6) -> dict[str, torch.Tensor]:
    return as_raw(task, torch.rand(n, 3, task.canvas, task.canvas, generator=generator()))


def naive_nt_xent(z: torch.Tensor, temperature: float) -> list[float]:
    """Equation 1 of the paper for the 2 n projections z, by loops."""
    count = len(z)
    losses = []
    for i in range(count):
        j = (i + count // 2) % count
        exp = [torch.exp(torch.cosine_similarity(z[i], z[k], dim=0) / temperature) for k in range(count)]
        losses.append(-torch.log(exp[j] / sum(exp[k] for k in range(count) if k != i)).item())
    return losses


def test_with_everything_off_both_views_are_the_image():
    task = task_of(**NONE, canvas=16)
    raw = raw_of(task)
    first, second = task.make_batch(raw, generator())[0]["views"].chunk(2)
    original = images.normalise(images.to_float(raw["image"]))
    assert torch.allclose(first, original, atol=1e-5) and torch.allclose(second, original, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"min_area": 0.3},
        {"max_ratio": 2.0, "min_area": 0.5},
        {"flip": 0.5},
        {"jitter": 0.5},
        {"grey": 0.5},
        {"blur": 1.0},
        {"degrees": 10.0},
        {"shear": 10.0},
        {"translate": 0.1},
        {"zoom": 1.2},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_augmentation_makes_the_two_views_differ(fields):
    task = task_of(**{**NONE, **fields})
    first, second = task.make_batch(raw_of(task, 16), generator())[0]["views"].chunk(2)
    assert (first - second).abs().amax((1, 2, 3)).max() > 0.1


def test_loss_and_accuracy_are_the_papers():
    task = task_of(temperature=0.3)
    z = torch.randn(10, 8, generator=generator())
    naive = torch.tensor(naive_nt_xent(z, 0.3)).view(2, 5).mean(0)
    assert torch.allclose(task.loss(z, None)[0], naive, atol=1e-5)
    together = torch.randn(5, 8, generator=generator()).repeat(2, 1)
    assert task.loss(together, None)[1]["accuracy"].tolist() == [1.0] * 5


def test_its_representation_is_of_the_whole_image():
    task = task_of()
    model, raw = task.build(encoder).eval(), raw_of(task)
    whole = images.normalise(images.resize(images.to_float(raw["image"]), 16))
    with torch.no_grad():
        assert torch.allclose(model.represent(raw)["stage3"], model.encoder(whole))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"size": 2}, "canvas and size must be at least 8 px"),
        ({"min_area": 1.5}, "min_area is 1.5; it is a share"),
        ({"grey": -0.1}, "grey is -0.1; it must be between 0 and 1"),
        ({"jitter": 3.0}, "jitter is 3.0; it must be between 0 and 2"),
        ({"zoom": 0.5}, "zoom is 0.5; it is a factor and must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        SimCLR(**fields)
