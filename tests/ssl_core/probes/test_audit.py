"""Every shortcut of every task: a cue-only probe is high with the countermeasure off and near chance with it on."""

import pytest
import torch
from small_tasks import SMALL, as_raw, generator, numbered, side, small
from textures import Pictures, cheap_lens_texture, grey_texture, lens_texture, texture
from torch import Tensor

from ssl_core.probes import audit
from ssl_core.task import PretextTask
from ssl_core.tasks import TASKS
from ssl_core.tasks.rotation import Rotation


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SHORTCUTS = [(name, shortcut) for name, task in TASKS.items() for shortcut in task.shortcuts]


def raw(task: PretextTask, pictures: Pictures, n: int, seed: int) -> dict[str, Tensor]:
    """Other pictures for each seed, or the same where the task asks for their numbers."""
    return as_raw(task, pictures(n, side(task), generator(0 if numbered(task) else seed)))


def test_every_shortcut_of_every_task_is_audited():
    carried = {(name, cue) for name, form in SMALL.items() for cue in form.audits}
    assert carried == {(name, shortcut.cue) for name, shortcut in SHORTCUTS}


@pytest.mark.parametrize(("name", "shortcut"), SHORTCUTS, ids=lambda value: getattr(value, "cue", value))
def test_a_countermeasure_closes_its_shortcut(name, shortcut):
    """Open, the cue alone is far above chance; closed, what is left is noise or below a tenth of that rise."""
    pictures, fields = SMALL[name].audits[shortcut.cue]
    task, n = small(name, **fields), 128
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


def test_a_task_of_several_pictures_that_does_not_say_which_is_told_to():
    class Undecided(Rotation):
        def make_batch(self, raw, rng):
            inputs, targets = super().make_batch(raw, rng)
            return {**inputs, "more": inputs["images"]}, targets

    task = Undecided(canvas=16)
    pixels = raw(task, grey_texture, 2, 0)
    with pytest.raises(TypeError, match=r"Undecided.make_batch returns 2 kinds of pictures; add a method `cue_pairs`"):
        audit.cue_probe(task, "black_bars", pixels, pixels)
