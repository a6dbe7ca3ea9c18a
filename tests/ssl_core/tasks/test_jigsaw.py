from itertools import permutations

import pytest
import torch
from scipy.spatial.distance import pdist
from small_tasks import as_raw, encoder, fitted, generator, noise

from ssl_core import artefact
from ssl_core.ops import images
from ssl_core.tasks.jigsaw import Jigsaw, most_different

PLAIN = {"canvas": 60, "tile": 12, "gap": 7, "jitter": 3, "permutations": 20, "embed": 16, "hidden": 32}
"""Fields of a small puzzle."""
UNTOUCHED = {"grey": 0.0, "channel_jitter": 0, "standardise": False}
"""No treatment of the tiles."""


def puzzle(**changed) -> Jigsaw:
    return fitted(Jigsaw(**{**PLAIN, **changed}))


def compass(task: Jigsaw, n: int) -> dict[str, torch.Tensor]:
    """Pictures whose red and blue channels are the row and whose green channel is the column, in 1/255."""
    place = torch.arange(task.canvas) / 255
    rows = place.view(-1, 1).expand(task.canvas, task.canvas)
    return as_raw(task, torch.stack([rows, rows.T, rows]).expand(n, -1, -1, -1))


def corners(tiles: torch.Tensor) -> torch.Tensor:
    """What each channel says of each tile's upper left pixel, read from a compass picture: [m, 3]."""
    return images.denormalise(tiles)[..., 0, 0].mul(255).round()


def test_the_answer_is_the_order_in_which_the_tiles_are_shown():
    task = puzzle(**UNTOUCHED, per_image=3)
    inputs, answers = task.make_batch(compass(task, 5), generator())
    assert inputs["tiles"].shape == (5 * 9, 3, 12, 12) and len(answers) == 15
    row, column, _ = (corners(inputs["tiles"][inputs["order"]]) // (task.tile + task.gap)).unbind(2)
    orders = task.orders(answers.device)
    assert torch.equal((3 * row + column).long(), orders[answers])
    assert (inputs["order"] // 9 == (torch.arange(15) // 3).unsqueeze(1)).all()  # never tiles of another image
    assert any(len(set(group.tolist())) > 1 for group in answers.view(5, 3))


def test_tiles_keep_their_gap_and_use_their_jitter():
    task = puzzle(**UNTOUCHED)
    inputs, _ = task.make_batch(compass(task, 200), generator())
    place = corners(inputs["tiles"]).view(200, 3, 3, 3)
    apart = place[:, :, 1:, 1] - place[:, :, :-1, 1] - task.tile
    assert apart.min() == task.gap - 2 * task.jitter and apart.max() == task.gap + 2 * task.jitter
    assert place.min() == 0 and place.max() == task.canvas - task.tile


def test_channels_move_on_their_own_within_the_canvas():
    task = puzzle(**{**UNTOUCHED, "channel_jitter": 2})
    inputs, _ = task.make_batch(compass(task, 200), generator())
    red, _, blue = corners(inputs["tiles"]).unbind(1)
    assert sorted(set((red - blue).int().tolist())) == list(range(-4, 5))
    assert red.min() == 0 and red.max() == task.canvas - task.tile


def test_some_images_lose_their_colours_in_all_of_their_tiles():
    task = puzzle(**{**UNTOUCHED, "grey": 0.3})
    inputs, _ = task.make_batch(noise(task, 400), generator())
    red, green, _ = images.denormalise(inputs["tiles"]).unbind(1)
    grey = ((red - green).abs().amax((1, 2)) < 1e-5).view(400, 9)
    assert torch.equal(grey.any(1), grey.all(1))
    assert 0.2 < grey.all(1).float().mean() < 0.4


def test_grey_tiles_are_not_made_of_displaced_channels():
    """Where all channels of a picture are the same black and white, so is its grey, unless they move."""
    task = puzzle(**{**UNTOUCHED, "grey": 0.5, "channel_jitter": 2})
    one = torch.rand(100, 1, 60, 60, generator=generator()).round()
    inputs, _ = task.make_batch(as_raw(task, one.expand(-1, 3, -1, -1)), generator())
    tiles = images.denormalise(inputs["tiles"]).view(100, 9, 3, 12, 12)
    ghostless = ((tiles - tiles.round()).abs().amax((1, 2, 3, 4)) < 1e-5).all()
    moved = (tiles - tiles[:, :, :1]).abs().amax((1, 2, 3, 4)) > 0.5
    assert ghostless and 0.3 < moved.float().mean() < 0.7


def test_each_tile_is_standardised_by_itself():
    task = puzzle()
    inputs, _ = task.make_batch(noise(task, 3), generator())
    for tile in inputs["tiles"]:
        assert tile.mean((1, 2)).abs().max() < 1e-5 and tile.square().mean().item() == pytest.approx(1, abs=1e-4)


def test_orders_are_picked_greedily_by_the_nearest_and_then_by_all():
    """Each pick against a search in plain Python over all 24 orders of four tiles."""
    picked = [tuple(order) for order in most_different(10, 4, generator()).tolist()]
    for i in range(1, 10):

        def merit(order: tuple[int, ...], before: list[tuple[int, ...]] = picked[:i]) -> tuple[int, int]:
            apart = [sum(a != b for a, b in zip(order, other)) for other in before]
            return min(apart), sum(apart)

        assert merit(picked[i]) == max(merit(order) for order in permutations(range(4)))


@pytest.mark.parametrize(("count", "nearest"), [(24, 7), (100, 6), (1000, 5)])
def test_orders_are_further_apart_than_the_published_ones(count, nearest):
    """Published sets have a least distance of 2 of 9 places; the mean distance of any two orders is 8."""
    orders = most_different(count, 9, generator())
    apart = 9 * pdist(orders.numpy(), "hamming")
    assert apart.min() == pytest.approx(nearest) and apart.mean() > 8
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(count, 9))


def test_the_seed_makes_the_orders():
    assert torch.equal(most_different(30, 9, generator(1)), most_different(30, 9, generator(1)))
    assert not torch.equal(most_different(30, 9, generator(1)), most_different(30, 9, generator(2)))
    assert len(torch.unique(most_different(24, 4, generator()), dim=0)) == 24


def test_the_encoder_sees_each_tile_alone_and_the_head_the_order():
    task = puzzle()
    model = task.build(encoder).eval()
    inputs, _ = task.make_batch(noise(task, 4), generator())
    tiles, order = inputs["tiles"], inputs["order"]
    straight = torch.arange(36).view(4, 9)
    with torch.no_grad():
        assert torch.allclose(model(tiles, order), model(tiles[order].flatten(0, 1), straight), atol=1e-5)
        before = model.encoder(tiles)
        tiles[0] += 1
        changed = (model.encoder(tiles) - before).abs().amax(1) > 1e-6
    assert changed.tolist() == [True] + [False] * 35


def test_a_right_answer_is_shown_as_the_solved_puzzle():
    task = puzzle(per_image=2)
    inputs, answers = task.make_batch(noise(task, 2), generator())
    panel = task.show(inputs, torch.nn.functional.one_hot(answers, 20).float(), answers)
    expected = inputs["tiles"].mul(0.2).add(0.5).clamp(0, 1).view(2, 3, 3, 3, 12, 12)
    whole = expected.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 36, 36)
    assert torch.equal(panel.columns["as answered"], whole.repeat_interleave(2, 0))
    assert panel.columns["puzzle"].shape == (4, 3, 36, 36)
    assert panel.captions[0] == f"order {answers[0]}, answered {answers[0]}"


def test_two_by_two_puzzles_and_the_whole_canvas_can_be_represented():
    task = puzzle(grid=2, permutations=24, representation="canvas")
    raw = noise(task, 3)
    model = task.build(encoder).eval()
    with torch.no_grad():
        whole, alone = model.represent(raw), model.represent({name: value[1:2] for name, value in raw.items()})
    assert whole["stage3"].shape == (3, 64)
    torch.testing.assert_close(whole["stage3"][1:2], alone["stage3"])
    assert not torch.allclose(whole["stage3"][0], whole["stage3"][1]), "other pictures, other vectors"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"canvas": 200}, "need 254 px"),
        ({"grid": 4}, "can be 2 or 3"),
        ({"grid": 2, "permutations": 25}, "4 tiles have 2 to 24 orders"),
        ({"tile": 3}, "tile must be at least 4"),
        ({"grey": 1.5}, "between 0 and 1"),
        ({"per_image": 0}, "must be at least 1"),
        ({"representation": "puzzle"}, "can be tiles or canvas"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Jigsaw(**fields)


def test_orders_of_another_puzzle_are_refused():
    task = puzzle()
    with pytest.raises(ValueError, match="holds 20 orders of 9 tiles, the task needs 21 of 9"):
        Jigsaw(**{**PLAIN, "permutations": 21}, permutation_set=task.permutation_set).make_batch(
            noise(task, 2), generator()
        )
    with pytest.raises(artefact.MissingArtefactError, match="artefact abc"):
        Jigsaw(**PLAIN, permutation_set="abc").make_batch(noise(task, 2), generator())
