import pytest
import torch
from small_tasks import as_raw, encoder, generator

from ssl_core.nn.encoders import EncoderSpec
from ssl_core.ops import images
from ssl_core.tasks.image_position import ImagePosition

PATCH, CELLS = 8, 4
VIT = EncoderSpec("vit_tiny", width=0.25, patch=PATCH, positions="none")
UNTOUCHED = {"colour": "keep", "standardise": False, "flip": 0.0}


def task_of(**fields) -> ImagePosition:
    plain = {"canvas": 60, "cells": CELLS, "patch": PATCH, "gap": 6, "jitter": 3}
    return ImagePosition(**{**plain, **UNTOUCHED, **fields})


def compass(task: ImagePosition, n: int) -> dict[str, torch.Tensor]:
    """Pictures whose red channel is the row and whose green channel is the column, in 1/255."""
    place = torch.arange(task.canvas) / 255
    rows = place.view(-1, 1).expand(task.canvas, task.canvas)
    return as_raw(task, torch.stack([rows, rows.T, rows]).expand(n, -1, -1, -1))


def corners(task: ImagePosition, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of the upper left pixel of each patch of n images [n, m, 2], and the answers [n, m]."""
    inputs, places = task.make_batch(compass(task, n), generator())
    shown = task.counts[0]
    found = images.denormalise(inputs["patches"])[:, :2, 0, 0].mul(255).round().long()
    return found.view(n, shown, 2), places.view(n, shown)


@pytest.mark.parametrize("shown", [1.0, 0.5])
def test_the_answer_is_the_cell_that_a_patch_was_cut_from(shown):
    task = task_of(shown=shown)
    found, places = corners(task, 300)
    cells = torch.stack([places // CELLS, places % CELLS], 2)
    offset = found - cells * (PATCH + task.gap)  # what is left is the grid's place and the jitter
    assert offset.min() == 0 and offset.max() == task.canvas - task.span + 2 * task.jitter
    assert (offset.amax(1) - offset.amin(1)).max() == 2 * task.jitter
    assert all(len(set(row)) == len(row) == 16 * shown for row in places.tolist())


def test_the_order_of_the_patches_tells_nothing():
    _, places = corners(task_of(), 2000)
    for column in places.T:
        assert column.bincount(minlength=16).float().div(2000).sub(1 / 16).abs().max() < 5 * (1 / 16 / 2000) ** 0.5


def answers_of(task: ImagePosition, raw: dict[str, torch.Tensor], change=lambda patches: patches):
    torch.manual_seed(0)
    model = task.build(VIT.build).eval()
    torch.nn.init.normal_(model.head.mlp[-1].weight)
    inputs, _ = task.make_batch(raw, generator())
    with torch.no_grad():
        return model(change(inputs["patches"])).view(len(raw["image"]), -1, 16)


def test_all_look_at_those_in_sight_and_at_nobody_else():
    task = task_of(seen=0.25)
    raw = as_raw(task, torch.rand(2, 3, 60, 60, generator=generator()))
    before = answers_of(task, raw)
    for changed, others in ((15, False), (2, True)):  # the first four are in sight

        def other_patch(patches, changed=changed):
            cells = patches.clone()
            cells.view(2, 16, *patches.shape[1:])[:, changed] += 1
            return cells

        moved = (answers_of(task, raw, other_patch) - before).abs().amax(2) > 1e-5
        assert moved[:, changed].all()
        assert moved[:, [place for place in range(16) if place != changed]].all() == others
        assert moved.any(1).all() and (others or moved.sum() == 2)


def test_patches_in_sight_may_change_places():
    task = task_of(seen=0.25)
    raw = as_raw(task, torch.rand(2, 3, 60, 60, generator=generator()))
    order = torch.tensor([2, 0, 3, 1, *range(4, 16)])
    moved = answers_of(task, raw, lambda patches: patches.view(2, 16, 3, PATCH, PATCH)[:, order].flatten(0, 1))
    torch.testing.assert_close(moved, answers_of(task, raw)[:, order], atol=1e-5, rtol=1e-4)


def test_a_patch_is_standardised_and_keeps_one_channel():
    task = task_of(colour="drop", standardise=True)
    contrast = torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
    raw = as_raw(task, contrast * torch.rand(4, 3, 60, 60, generator=generator()))
    patches = task.make_batch(raw, generator())[0]["patches"]
    level, kept = patches.square().mean((2, 3)).sqrt().sort(1)
    assert patches.mean((2, 3)).abs().max() < 0.01
    assert kept[:, 2].unique().tolist() == [0, 1, 2]
    assert (level[:, 2] - 1).abs().max() < 1e-4  # whichever is kept, whatever its contrast
    assert level[:, :2].max() < 0.02
    whole = task.whole(raw["image"]).unflatten(3, (CELLS, PATCH)).unflatten(2, (CELLS, PATCH))
    assert (3 * whole).square().mean((3, 5)).sqrt().sub(1).abs().max() < 1e-4


def test_its_representation_is_of_a_grid_that_covers_the_canvas():
    task = task_of(canvas=32, gap=0, jitter=0)  # as large as its patches, so that the grid is the picture
    model, raw = task.build(VIT.build).eval(), as_raw(task, torch.rand(3, 3, 32, 32, generator=generator()))
    with torch.no_grad():
        whole = model.encoder(images.normalise(images.to_float(raw["image"])))
        torch.testing.assert_close(model.represent(raw)["output"], whole)
    place = images.denormalise(task_of().whole(compass(task_of(), 1)["image"]))[0, :2].mul(255).round()
    assert place[:, ::PATCH, ::PATCH][0, :, 0].tolist() == place[:, ::PATCH, ::PATCH][1, 0].tolist() == [0, 17, 34, 52]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (encoder, "set encoder.name to vit_small"),
        (EncoderSpec("vit_tiny", width=0.25, patch=PATCH, positions="sincos").build, "set encoder.positions to none"),
        (EncoderSpec("vit_tiny", width=0.25, patch=4, positions="none").build, "patch is 8 and encoder.patch 4"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_with_the_key_to_change(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of().build(build)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"jitter": 2}, "gap at least twice jitter"),
        ({"canvas": 224}, "needs 252 px .* canvas has 224; enlarge canvas or shrink"),
        ({"seen": 0.0}, "shown and seen must be shares above 0"),
        ({"colour": "grey"}, "colour is 'grey'; it can be drop, project or keep"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImagePosition(**fields)
