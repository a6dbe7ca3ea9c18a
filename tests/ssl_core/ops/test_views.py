"""Random views: their order, and that every setting left out changes nothing."""

import pytest
import torch
from small_tasks import generator

from ssl_core.ops import images, views
from ssl_core.ops.views import random_views


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), generator=generator(), dtype=torch.uint8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_more_images_than_a_piece_come_out_view_after_view_in_order(monkeypatch, count):
    monkeypatch.setattr(views, "PIECE", 1)
    x = pictures(21)  # two pieces of 8 and a rest
    made = random_views(x, 16, generator(), views=count, max_ratio=1.0)
    assert torch.allclose(made, images.normalise(images.to_float(x)).repeat(count, 1, 1, 1), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"degrees": 20.0},
        {"elastic": 0.2},
        {"jitter": (0.5, 0.0, 0.0, 0.0)},
        {"grey": 1.0},
        {"blur": 1.0},
        {"flip": 1.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_each_setting_changes_the_views_and_keeps_the_seed(settings):
    x = pictures(8)
    plain = random_views(x, 16, generator(), max_ratio=1.0)
    changed = random_views(x, 16, generator(), max_ratio=1.0, **settings)
    assert (changed - plain).abs().amax((1, 2, 3)).min() > 0.01
    assert torch.equal(changed, random_views(x, 16, generator(), max_ratio=1.0, **settings))
