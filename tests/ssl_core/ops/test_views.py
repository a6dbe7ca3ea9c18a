"""Random views: their order, and that every setting left out changes nothing."""

from dataclasses import dataclass

import pytest
import torch
from small_tasks import generator

from ssl_core.ops import images, views
from ssl_core.ops.views import BOUNDS, Augmentation, check_views, random_views
from ssl_core.tasks.simclr import SimCLR


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), generator=generator(), dtype=torch.uint8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_more_images_than_a_piece_come_out_view_after_view_in_order(monkeypatch, count):
    monkeypatch.setattr(views, "PIECE", 1)
    x = pictures(21)  # two pieces of 8 and a rest
    made = random_views(x, 16, generator(), Augmentation(), views=count)
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
    plain = random_views(x, 16, generator(), Augmentation())
    changed = random_views(x, 16, generator(), Augmentation(**settings))
    assert (changed - plain).abs().amax((1, 2, 3)).min() > 0.01
    assert torch.equal(changed, random_views(x, 16, generator(), Augmentation(**settings)))


def test_an_augmentation_of_a_task_is_what_its_fields_say():
    task = SimCLR(min_area=0.3, max_ratio=1.5, degrees=4.0, shear=5.0, translate=0.1, zoom=1.2, elastic=0.05, grey=0.25)
    made = Augmentation.of(task, (0.1, 0.2, 0.3, 0.4), max_area=0.9, blur=0.6)
    own = {name: value for name, value in vars(made).items() if name in vars(task) and name not in ("jitter", "blur")}
    assert len(own) == 10 and all(value == getattr(task, name) for name, value in own.items())
    assert (made.jitter, made.max_area, made.blur) == ((0.1, 0.2, 0.3, 0.4), 0.9, 0.6)


@dataclass(frozen=True)
class Fields:
    """Every field that has bounds, at its lowest."""

    min_area: float = 1e-6
    max_ratio: float = 1.0
    flip: float = 0.0
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0
    jitter: float = 0.0
    hue: float = 0.0
    jitter_chance: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    paste: float = 0.0


@pytest.mark.parametrize("name", [*BOUNDS, "paste"])
def test_a_field_out_of_bounds_is_named_with_its_task_and_value(name):
    check_views("toy", Fields(), paste=1)
    below = {"min_area": 0.0, "max_ratio": 0.9, "zoom": 0.9}.get(name, -0.1)
    with pytest.raises(ValueError, match=rf"^toy: {name} is {below}; it (must|is a \w+ and must) .*\.$"):
        check_views("toy", Fields(**{name: below}), paste=1)


@pytest.mark.parametrize(
    ("name", "highest", "above"),
    [("min_area", 1.0, 1.1), ("flip", 1.0, 1.1), ("shear", 89.9, 90.0), ("hue", 0.5, 0.51), ("jitter", 1.0, 1.1)],
)
def test_the_highest_value_is_allowed_and_what_is_above_is_not(name, highest, above):
    check_views("toy", Fields(**{name: highest}))
    with pytest.raises(ValueError, match=f"toy: {name} is {above}"):
        check_views("toy", Fields(**{name: above}))


def test_a_task_may_allow_more():
    check_views("toy", Fields(jitter=2.0), jitter=2)
    with pytest.raises(ValueError, match=r"toy: jitter is 2.1; it must be between 0 and 2\."):
        check_views("toy", Fields(jitter=2.1), jitter=2)
