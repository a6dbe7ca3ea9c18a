"""The supervised reference: its answers are the labels, its loss is cross-entropy, and its layers need no label."""

import pytest
import torch
from small_tasks import encoder, generator, scenes, small
from torch.nn import functional as F

from ssl_core.ops import images
from ssl_core.tasks.supervised import Supervised
from ssl_core.types import media

STILL = {"size": 20, "min_area": 1.0, "max_ratio": 1.0, "flip": 0.0, "jitter": 0.0}


def test_the_answer_is_the_label_and_the_picture_its_own():
    task = small("supervised", **STILL)
    raw = scenes(task, 6) | {"label": torch.tensor([3, 3, 0, 1, 2, 0])}
    inputs, labels = task.make_batch(raw, generator())
    assert torch.equal(labels, raw["label"])
    assert torch.allclose(images.denormalise(inputs["images"]), raw["image"] / 255, atol=1e-5)
    assert task.chance(6) == {"accuracy": 0.25}


def test_only_training_needs_labels():
    task = small("supervised")
    assert set(task.sample) == {"image", "label"} and set(media(task.sample)) == {"image"}
    layers = task.build(encoder).eval().represent({"image": scenes(task, 2)["image"]})
    assert layers["stage3"].shape == (2, 64)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_label(smoothing):
    task = small("supervised", smoothing=smoothing)
    logits, labels = torch.randn(5, 4, generator=generator()), torch.tensor([0, 3, 1, 1, 2])
    loss, metrics = task.loss(logits, labels)
    for row, label, answered in zip(logits.double(), labels.tolist(), loss.tolist()):
        target = [smoothing / 4 + (1 - smoothing) * (k == label) for k in range(4)]
        shares = row.exp() / row.exp().sum()
        assert answered == pytest.approx(-sum(t * s.log().item() for t, s in zip(target, shares)), abs=1e-5)
    assert metrics["accuracy"].tolist() == (logits.argmax(1) == labels).float().tolist()


def test_the_head_is_linear_on_the_pooled_last_stage():
    task = small("supervised")
    model = task.build(encoder).eval()
    inputs, _ = task.make_batch(scenes(task, 3), generator())
    pooled = model.encoder.stages(inputs["images"])["stage3"].mean((2, 3))
    (linear,) = [module for module in model.head.modules() if isinstance(module, torch.nn.Linear)]
    assert torch.allclose(model(**inputs), F.linear(pooled, linear.weight, linear.bias), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"classes": 1}, "classes at least 2"),
        ({"size": 4}, "must be at least 8 px"),
        ({"smoothing": 1.0}, "smoothing is 1.0; it must be at least 0"),
        ({"min_area": 0}, "min_area is 0"),
        ({"grey": 2}, "grey is 2"),
        ({"shear": 90}, "shear is 90; it must be at least 0"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Supervised(**fields)
