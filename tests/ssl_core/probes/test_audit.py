"""Every shortcut of every task: a cue-only probe is high with the countermeasure off and near chance with it on."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from small_tasks import as_raw, generator, numbered, side, small
from torch import Tensor

from ssl_core.ops import images, warps
from ssl_core.probes import audit
from ssl_core.task import PretextTask
from ssl_core.tasks import TASKS

Pictures = Callable[[int, int, torch.Generator], Tensor]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def texture(n: int, size: int, rng: torch.Generator, sigma: float = 1.2, channels: int = 1) -> Tensor:
    """Blurred white noise of unit deviation: no position, no direction, no object."""
    x = images.blur(torch.randn(n, channels, size, size, generator=rng), torch.full((n,), sigma), 5)
    return (x / x.std()).expand(n, 3, size, size)


def smooth_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    return 0.5 + 0.15 * texture(n, size, rng, sigma=3.0)


def grey_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    return 0.5 + 0.15 * texture(n, size, rng)


def sharp_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    return torch.rand(n, 3, size, size, generator=rng)


def magnified(x: Tensor, scale: float) -> Tensor:
    none = torch.zeros(len(x))
    return warps.warp(x, warps.affine_matrices(none, none, none + scale, torch.zeros(len(x), 2)), "border")


def lens_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Green 6 % smaller than red and blue (the paper's achromatic lens): the shift points to the middle."""
    x = grey_texture(n, size, rng)
    return torch.stack([x[:, 0], magnified(x, 0.94)[:, 1], x[:, 2]], 1)


def cheap_lens_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Red larger, blue smaller: a lens that is not achromatic."""
    x = grey_texture(n, size, rng)
    return torch.stack([magnified(x, 1.06)[:, 0], x[:, 1], magnified(x, 0.94)[:, 2]], 1)


def lit_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Lit from the upper left, evenly falling off."""
    axis = torch.linspace(-1, 1, size)
    light = 0.2 * axis.view(-1, 1) + 0.1 * axis
    return 0.5 - light + 0.05 * texture(n, size, rng)


def bright_or_dark_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Every picture in its own brightness, otherwise alike."""
    return 0.2 + 0.6 * torch.rand(n, 1, 1, 1, generator=rng) + 0.05 * texture(n, size, rng)


def tinted_texture(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Every picture in its own two colours, otherwise alike."""
    colours = torch.rand(n, 3, 1, 1, generator=rng)
    return colours + 0.1 * texture(n, size, rng)


CARRIERS: Mapping[tuple[str, str], tuple[Pictures, Mapping[str, Any]]] = {
    ("rotation", "black_bars"): (grey_texture, {"canvas": 32}),
    ("rotation", "interpolation"): (sharp_texture, {"canvas": 32}),
    ("relative_transformation", "flat_wedges"): (grey_texture, {"canvas": 32, "size": 32}),
    ("context_prediction", "edge_continuity"): (grey_texture, {}),
    ("context_prediction", "chromatic_aberration"): (lens_texture, {"canvas": 76, "patch": 16, "gap": 12}),
    ("context_prediction", "luminance"): (lit_texture, {}),
    ("image_position", "chromatic_aberration"): (lens_texture, {"canvas": 76, "cells": 3, "gap": 12, "jitter": 2}),
    ("image_position", "luminance"): (lit_texture, {"canvas": 76, "cells": 3, "gap": 12, "jitter": 2}),
    ("jigsaw", "edge_continuity"): (grey_texture, {"per_image": 4}),
    ("jigsaw", "luminance"): (lit_texture, {"per_image": 4}),
    ("denoising_autoencoder", "local_smoothing"): (grey_texture, {"canvas": 96, "block": 32}),
    ("context_encoder", "middle_rim"): (smooth_texture, {"canvas": 32}),
    ("masked_autoencoder", "luminance"): (bright_or_dark_texture, {}),
    ("bag_of_words", "colour_histogram"): (
        tinted_texture,
        {"canvas": 32, "size": 24, "jitter": 0.8, "jitter_chance": 1.0, "cutmix": 1.0},
    ),
    ("spatial_bag_of_words", "colour_histogram"): (
        tinted_texture,
        {"canvas": 32, "size": 24, "jitter": 0.8, "jitter_chance": 1.0, "cutmix": 1.0},
    ),
    ("online_bag_of_words", "colour_histogram"): (
        tinted_texture,
        {"canvas": 32, "size": 24, "crop": 24, "max_area": 0.9, "jitter": 0.8, "jitter_chance": 1.0},
    ),
    ("simclr", "colour_histogram"): (tinted_texture, {"canvas": 32, "size": 24, "jitter": 1.0}),
    ("moco", "colour_histogram"): (
        tinted_texture,
        {"canvas": 32, "size": 24, "jitter": 0.8, "hue": 0.2, "grey": 0.2, "queue": 192},
    ),
    ("cpc_image", "shared_pixels"): (grey_texture, {"canvas": 60, "patch": 24, "stride": 12, "subcrop": 22}),
    ("amdim", "colour_histogram"): (tinted_texture, {"canvas": 32, "size": 24, "jitter": 0.8, "hue": 0.2, "grey": 0.2}),
    ("exemplar_cnn", "colour_histogram"): (tinted_texture, {"classes": 128, "power": 4.0, "hue": 0.5}),
    ("exemplar_triplet", "colour_histogram"): (
        tinted_texture,
        {"canvas": 32, "size": 24, "views": 2, "brightness": 0.8, "jitter": 0.8, "hue": 0.2},
    ),
    ("moco", "batch_statistics"): (tinted_texture, {"splits": 8, "jitter": 0.0, "grey": 0.0, "queue": 192}),
}
"""Task and cue -> pictures that carry the shortcut, and the task's settings for them."""

SHORTCUTS = [(name, shortcut) for name, task in TASKS.items() for shortcut in task.shortcuts]


def raw(task: PretextTask, pictures: Pictures, n: int, seed: int) -> dict[str, Tensor]:
    """Other pictures for each seed, or the same where the task asks for their numbers."""
    return as_raw(task, pictures(n, side(task), generator(0 if numbered(task) else seed)))


def test_every_shortcut_of_every_task_is_audited():
    assert set(CARRIERS) == {(name, shortcut.cue) for name, shortcut in SHORTCUTS}


@pytest.mark.parametrize(("name", "shortcut"), SHORTCUTS, ids=lambda value: getattr(value, "cue", value))
def test_a_countermeasure_closes_its_shortcut(name, shortcut):
    """Open, the cue alone is far above chance; closed, what is left is noise or below a tenth of that rise."""
    pictures, settings = CARRIERS[name, shortcut.cue]
    task, n = small(name, **settings), 128
    found = audit.audit(task, shortcut, raw(task, pictures, n, 1), raw(task, pictures, n, 2))
    print(f"\n{name}, {found}")
    rise = found.opened - found.open_chance
    error = (found.chance * (1 - found.chance) / (4 * n)) ** 0.5  # every image gives four answers or more
    assert rise > max(0.1, 0.9 * found.open_chance), found
    assert found.closed - found.chance < max(3 * error, 0.1 * rise), found


@pytest.mark.parametrize(
    ("lens", "treatment", "low", "high"),
    [
        (lens_texture, "keep", 0.9, 1.0),
        (lens_texture, "drop", 0.0, 0.17),
        (lens_texture, "project", 0.0, 0.17),
        (cheap_lens_texture, "drop", 0.0, 0.17),
        (cheap_lens_texture, "project", 0.9, 1.0),  # the projection removes green against magenta, not red against blue
    ],
)
def test_dropping_closes_any_aberration_and_projection_that_of_an_achromatic_lens(lens, treatment, low, high):
    task = small("context_prediction", canvas=76, patch=16, gap=12, colour=treatment)
    level = audit.cue_probe(task, "chromatic_aberration", raw(task, lens, 96, 1), raw(task, lens, 96, 2))
    assert low <= level <= high


@pytest.mark.parametrize(("treated", "low", "high"), [({"grey": 0.0, "channel_jitter": 0}, 0.95, 1.0), ({}, 0.4, 0.8)])
def test_what_jigsaw_does_about_aberration_weakens_it_and_does_not_close_it(treated, low, high):
    task = small("jigsaw", **{"canvas": 76, "tile": 16, "gap": 10, "channel_jitter": 2, "grey": 0.3, **treated})
    fit, test = (raw(task, lens_texture, 96, seed) for seed in (1, 2))
    assert low <= audit.cue_probe(task, "chromatic_aberration", fit, test) <= high


def test_an_untold_cue_is_named():
    task = small("rotation")
    pixels = raw(task, grey_texture, 2, 0)
    with pytest.raises(ValueError, match=r"no cue 'smell'; known are .*black_bars, chromatic_aberration"):
        audit.cue_probe(task, "smell", pixels, pixels)


def test_chromatic_aberration_is_measured_in_pixels():
    x = texture(4, 40, generator(), sigma=3.0)
    moved = torch.stack([x[:, 0].roll((0, 1), (1, 2)), x[:, 1], x[:, 2].roll((-1, 0), (1, 2))], 1)[..., 4:-4, 4:-4]
    first = audit.chromatic_aberration(moved, x[..., 4:-4, 4:-4])
    # slopes are (down, right), changes (red, blue): a shift by +1 px changes a picture by minus its slope
    assert first[:, :4].mean(0).tolist() == pytest.approx([0, 1, -1, 0], abs=0.15)
    assert first[:, 4:8].abs().max() < 0.05
