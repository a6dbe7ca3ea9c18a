import pytest
import torch
from small_tasks import as_raw, encoder, generator

from ssl_core.ops import images
from ssl_core.tasks.context_prediction import DIRECTIONS, ContextPrediction

PLAIN = {"canvas": 60, "patch": 12, "gap": 7, "jitter": 3, "hidden": 16}
"""Fields of a small grid."""
UNTOUCHED = {"colour": "keep", "standardise": False, "pixelate": 0.0}
"""No treatment of the patches."""


def compass(task: ContextPrediction, n: int) -> dict[str, torch.Tensor]:
    """Pictures whose red channel is the row and whose green channel is the column, in 1/255."""
    place = torch.arange(task.canvas) / 255
    rows = place.view(-1, 1).expand(task.canvas, task.canvas)
    return as_raw(task, torch.stack([rows, rows.T, rows]).expand(n, -1, -1, -1))


def corners(task: ContextPrediction, patches: torch.Tensor) -> torch.Tensor:
    """Row and column of each patch's upper left pixel, read from a compass picture: [m, 2]."""
    return images.denormalise(patches)[:, :2, 0, 0].mul(255).round()


def test_the_answer_is_where_the_second_patch_lies_from_the_first():
    task = ContextPrediction(**PLAIN, **UNTOUCHED, grids=2)
    inputs, answers = task.make_batch(compass(task, 5), generator())
    assert inputs["patches"].shape == (5 * 2 * 9, 3, 12, 12)
    assert len(answers) == 5 * 2 * 16
    place = corners(task, inputs["patches"])
    steps = (place[inputs["second"]] - place[inputs["first"]]) / (task.patch + task.gap)
    for (down, right), answer in zip(steps.round().int().tolist(), answers.tolist(), strict=True):
        words = [("up", "", "down")[down + 1], ("left", "", "right")[right + 1]]
        assert " ".join(filter(None, words)) == DIRECTIONS[answer]


def test_every_answer_is_as_frequent_and_each_pair_comes_in_both_orders():
    task = ContextPrediction(**PLAIN)
    inputs, answers = task.make_batch(compass(task, 4), generator())
    assert answers.bincount().tolist() == [8] * 8
    pairs = set(zip(inputs["first"].tolist(), inputs["second"].tolist(), strict=True))
    assert {(b, a) for a, b in pairs} == pairs
    assert all(a // 9 == b // 9 for a, b in pairs)  # never across grids


def test_patches_keep_their_gap_and_use_their_jitter():
    task = ContextPrediction(**PLAIN, **UNTOUCHED)
    inputs, _ = task.make_batch(compass(task, 200), generator())
    place = corners(task, inputs["patches"]).view(200, 3, 3, 2)
    apart = place[:, :, 1:, 1] - place[:, :, :-1, 1] - task.patch
    assert apart.min() == task.gap - 2 * task.jitter and apart.max() == task.gap + 2 * task.jitter
    assert place.min() == 0 and place.max() == task.canvas - task.patch


def test_a_crop_of_the_canvas_enlarges_what_patches_show():
    task = ContextPrediction(**PLAIN, **UNTOUCHED, min_area=0.3)
    inputs, _ = task.make_batch(compass(task, 50), generator())
    shown = images.denormalise(inputs["patches"])[:, 0, 2:-2].mul(255)
    rise = (shown[:, -1, 0] - shown[:, 0, 0]) / (task.patch - 5)
    assert 0.5 < rise.min() < 0.62 and 0.93 < rise.max() < 1.05  # sides of 0.55 to 1 of the canvas


def test_what_is_seen_of_a_patch_is_standardised_in_one_channel():
    task = ContextPrediction(**{**PLAIN, "pixelate": 0.0})
    contrast = torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
    raw = as_raw(task, contrast * torch.rand(4, 3, 60, 60, generator=generator()))
    patches = task.make_batch(raw, generator())[0]["patches"]
    assert patches.mean((2, 3)).abs().max() < 0.01
    level, kept = patches.square().mean((2, 3)).sqrt().sort(1)
    assert kept[:, 2].unique().tolist() == [0, 1, 2]
    assert (level[:, 2] - 1).abs().max() < 1e-4  # whichever is kept, whatever its contrast
    assert level[:, :2].max() < 0.02


def test_a_representation_shows_each_channel_as_training_did_at_a_third():
    task = ContextPrediction(**PLAIN)
    model, seen = task.build(encoder), []
    model.encoder.layers = lambda x: seen.append(x) or {}
    contrast = torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
    model.represent(as_raw(task, contrast * torch.rand(4, 3, 60, 60, generator=generator())))
    assert (3 * seen[0]).square().mean((2, 3)).sqrt().sub(1).abs().max() < 1e-4


def test_only_the_first_hidden_layer_has_batch_norm():
    head = ContextPrediction(**PLAIN).build(encoder).head
    assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "ReLU", "Linear"]
    assert head[0].bias is None and head[3].bias is not None


def test_both_representations_are_of_the_canvas():
    raw = compass(ContextPrediction(**PLAIN), 3)
    gap = {"image": raw["image"].clone()}
    gap["image"][:, :, :, 15] = 255 - gap["image"][:, :, :, 15]  # a column between the patches of the even grid
    for kind in ("patches", "canvas"):
        task = ContextPrediction(**PLAIN, representation=kind)
        torch.manual_seed(0)
        model = task.build(encoder).eval()
        with torch.no_grad():
            layers, in_the_gap = model.represent(raw), model.represent(gap)
        assert torch.equal(layers["stage3"], in_the_gap["stage3"]) == (kind == "patches")
        assert {name: tuple(vectors.shape) for name, vectors in layers.items()} == {
            "stage1": (3, 16),
            "stage2": (3, 32),
            "stage3": (3, 64),
        }


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 256}, "needs 398 px .* canvas has 256; enlarge canvas or shrink"),
        ({"jitter": -1}, "gap and jitter at least 0"),
        ({"pixelate": 1.5}, "shares between 0 and 1"),
        ({"colour": "grey"}, "colour is 'grey'; it can be drop, project or keep"),
        ({"representation": "best"}, "representation is 'best'; it can be patches or canvas"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ContextPrediction(**fields)
