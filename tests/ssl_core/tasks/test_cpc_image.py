"""CPC against a naive writing: patches by slicing, the masked convolution and InfoNCE by loops."""

import pytest
import torch
from small_tasks import as_raw, encoder, generator
from torch import Tensor

from ssl_core.ops import images
from ssl_core.tasks.cpc_image import GREY_MEAN, GREY_STD, CPCImage

SMALL = {"canvas": 30, "cells": 4, "patch": 12, "stride": 6, "subcrop": 10, "steps": 3, "blocks": 2, "width": 8}


def task_of(**fields) -> CPCImage:
    return CPCImage(**{**SMALL, "flip": 0.0, **fields})


def raw_of(task: CPCImage, n: int = 3) -> dict[str, Tensor]:
    return as_raw(task, torch.rand(n, 3, task.canvas, task.canvas, generator=generator()))


def model_of(task: CPCImage):
    torch.manual_seed(0)
    return task.build(encoder)


def compass(task: CPCImage, n: int) -> dict[str, Tensor]:
    """Pictures whose red channel is the row and whose green channel is the column, in 1/255."""
    rows = (torch.arange(task.canvas) / 255).view(-1, 1).expand(task.canvas, task.canvas)
    return as_raw(task, torch.stack([rows, rows.T, rows]).expand(n, -1, -1, -1))


def test_the_papers_grid_fits_the_papers_canvas_exactly():
    task = CPCImage()
    assert task.span == 256 == task.canvas
    inputs, _ = task.make_batch(raw_of(task, 1), generator())
    assert inputs["patches"].shape == (49, 1, 64, 64)


def test_whole_patches_are_those_of_the_grid_in_grey():
    task = task_of(subcrop=12)
    raw = raw_of(task)
    patches = task.make_batch(raw, generator())[0]["patches"].unflatten(0, (3, 4, 4))
    red, green, blue = (raw["image"] / 255).unbind(1)
    grey = ((0.299 * red + 0.587 * green + 0.114 * blue) - GREY_MEAN[0]) / GREY_STD[0]
    for row in range(4):
        for column in range(4):
            expected = grey[:, 6 * row : 6 * row + 12, 6 * column : 6 * column + 12]
            assert torch.allclose(patches[:, row, column, 0], expected, atol=1e-5)


def test_each_patch_shows_a_subcrop_at_a_place_of_its_own_and_is_padded_evenly():
    task = task_of(grey=False)
    patches = task.make_batch(compass(task, 200), generator())[0]["patches"]
    assert all((patches[..., side, :] == 0).all() and (patches[..., side] == 0).all() for side in (0, -1))
    corner = images.denormalise(patches)[:, :2, 1, 1].mul(255).round().view(200, 4, 4, 2)
    moved = corner - 6 * torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), 2)
    assert moved.min() == 0 and moved.max() == 2
    assert moved[:, 0, 0].unique(dim=0).shape == (9, 2)
    assert (moved[:, 0, 0] != moved[:, 0, 1]).any()


def test_on_a_larger_canvas_the_grid_lies_anywhere():
    task = task_of(canvas=40, subcrop=12, grey=False)
    patches = task.make_batch(compass(task, 200), generator())[0]["patches"]
    corner = images.denormalise(patches)[:, :2, 0, 0].mul(255).round().view(200, 4, 4, 2)
    assert corner[:, 0, 0].min() == 0 and corner[:, 0, 0].max() == 10
    assert (corner[:, 1:] - corner[:, :-1])[..., 0].unique().tolist() == [6]


@pytest.mark.parametrize(("skip", "steps"), [(0, 3), (1, 3), (2, 3), (0, 1)])
def test_the_answer_lies_the_asked_number_of_rows_below_in_the_same_column_and_image(skip, steps):
    task = task_of(skip=skip, steps=steps)
    _, below = task.make_batch(raw_of(task), generator())
    pairs = list(zip(below.query.tolist(), below.key.tolist()))
    place = {patch: (patch // 16, patch % 16 // 4, patch % 4) for patch in range(48)}
    expected = [
        (a, b)
        for k in range(skip + 1, steps + 1)
        for a, (image, row, column) in place.items()
        for b in place
        if place[b] == (image, row + k, column)
    ]
    assert pairs == expected


def naive_context(model, grid: Tensor) -> Tensor:
    """grid [n, rows, columns, d], each block by loops over places."""
    for block in list(model.context)[:-1]:
        first, _, row = block.row
        column, _, last = block.column
        n, rows, columns, _ = grid.shape
        inner = {}
        for r in range(rows):
            for c in range(columns):
                total = row.bias.expand(n, -1)
                for j in (-1, 0, 1):
                    if 0 <= c + j < columns:
                        hidden = (grid[:, r, c + j] @ first.weight[:, :, 0, 0].T + first.bias).relu()
                        total = total + hidden @ row.weight[:, :, 0, j + 1].T
                inner[r, c] = total
        out = grid.clone()
        for r in range(rows):
            for c in range(columns):
                total = column.bias + inner[r, c] @ column.weight[:, :, 1, 0].T
                if r > 0:
                    total = total + inner[r - 1, c] @ column.weight[:, :, 0, 0].T
                out[:, r, c] = out[:, r, c] + total.relu() @ last.weight[:, :, 0, 0].T + last.bias
        grid = out
    return grid.relu()


@pytest.mark.parametrize("fields", [{}, {"skip": 0, "out": 6, "scale": 0.1}])
def test_losses_are_those_of_the_equations(fields):
    task = task_of(**fields)
    model = model_of(task)
    inputs, below = task.make_batch(raw_of(task), generator())
    with torch.no_grad():
        losses, metrics = task.loss(model(**inputs), below)
        model.train()
        vectors = model.encoder(inputs["patches"]).view(3, 4, 4, -1)
        context = naive_context(model, vectors)
        keys = model.target(vectors).flatten(0, 2)
        expected, found = [], []
        for k in range(task.skip + 1, task.steps + 1):
            predict = model.predict[k - task.skip - 1]
            for image in range(3):
                for row in range(4 - k):
                    for column in range(4):
                        said = task.scale * (predict.weight @ context[image, row, column])
                        scores = torch.stack([said @ key for key in keys])
                        own = 16 * image + 4 * (row + k) + column
                        expected.append(-(scores[own] - scores.exp().sum().log()))
                        found.append(float(scores.argmax() == own))
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert metrics["accuracy"].tolist() == found


def test_a_prediction_sees_no_row_below_the_one_it_starts_from():
    task = task_of(skip=0)
    model = model_of(task).eval()
    inputs, below = task.make_batch(raw_of(task, 1), generator())
    for row in range(4):
        changed = inputs["patches"].clone()
        changed[4 * row : 4 * row + 4] += torch.randn(4, 1, 12, 12, generator=generator())
        with torch.no_grad():
            moved = (model(changed).predicted - model(**inputs).predicted).abs().amax(1) > 1e-6
        assert torch.equal(moved, below.query // 4 >= row)


def test_its_representation_is_the_mean_over_an_even_grid():
    task = task_of(subcrop=12)
    model, raw = model_of(task).eval(), raw_of(task)
    with torch.no_grad():
        patches = task.make_batch(raw, generator())[0]["patches"]  # without jitter and room there is one grid
        expected = model.encoder(patches).view(3, 16, -1).mean(1)
        assert torch.allclose(model.represent(raw)["stage3"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"cells": 0}, "cells, patch, stride, subcrop and width must be at least 1"),
        ({"subcrop": 9}, "subcrop is 9; it must be patch, 12, or less by an even number"),
        ({"canvas": 29}, "needs 30 px .* canvas has 29; enlarge canvas or shrink"),
        ({"steps": 4}, "steps below cells, 4"),
        ({"skip": 3}, "skip is 3 and steps is 3; skip must be below steps"),
        ({"scale": 0.0}, "scale above 0"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of(**fields)
