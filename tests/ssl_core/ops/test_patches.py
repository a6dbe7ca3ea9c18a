import torch

from ssl_core.ops import patches


def test_cut_equals_slicing():
    x = torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    top = torch.tensor([[0, 3], [15, 7], [1, 2]])
    left = torch.tensor([[0, 19], [4, 5], [6, 7]])
    got = patches.cut(x, top, left, 5)
    assert got.dtype == torch.uint8 and got.shape == (3, 2, 3, 5, 5)
    for i in range(3):
        for k in range(2):
            t, s = int(top[i, k]), int(left[i, k])
            assert torch.equal(got[i, k], x[i, :, t : t + 5, s : s + 5])


def test_random_grids_fill_the_square_and_keep_gap_within_jitter():
    rng = torch.Generator().manual_seed(0)
    top, left = patches.random_grids(5000, 50, rng, cells=3, patch=10, gap=4, jitter=2)
    assert top.min() == 0 and left.min() == 0
    assert top.max() == 40 and left.max() == 40
    step = (left[:, 1] - left[:, 0]).unique().tolist()
    assert step == list(range(14 - 4, 14 + 5))
    assert (top[:, 3] > top[:, 0]).all() and ((top[:, 1] - top[:, 0]).abs() <= 4).all()


def test_a_grid_without_room_gap_or_jitter_tiles_the_square():
    rng = torch.Generator().manual_seed(0)
    top, left = patches.random_grids(2, 30, rng, cells=3, patch=10, gap=0, jitter=0)
    assert top[1].tolist() == [0, 0, 0, 10, 10, 10, 20, 20, 20]
    assert left[1].tolist() == [0, 10, 20] * 3


def test_some_of_a_grid_are_different_cells_that_span_the_square():
    rng = torch.Generator().manual_seed(0)
    top, left = patches.some_of_grid(4000, 50, rng, cells=3, patch=12, jitter=4, count=5)
    assert top.shape == left.shape == (4000, 5)
    assert top.min() == left.min() == 0 and top.max() == left.max() == 38  # 2 * 17 + 4
    cell = top // 17 * 3 + left // 17
    assert ((top % 17) <= 4).all() and ((left % 17) <= 4).all()
    assert all(len(set(row)) == 5 for row in cell[:200].tolist())
    share = cell.flatten().bincount() / cell.numel()
    assert len(share) == 9 and (share - 1 / 9).abs().max() < 0.01
    assert (top % 17).flatten().bincount().min() > 4000 * 5 / 5 * 0.9


def test_an_even_grid_reaches_both_borders():
    top, left = patches.even_grid(50, 10, 3, torch.device("cpu"))
    assert left[:3].tolist() == [0, 20, 40] and top[::3].tolist() == [0, 20, 40]
    assert patches.even_grid(50, 10, 1, torch.device("cpu"))[0].tolist() == [0]


def test_channels_are_cut_at_their_own_corners():
    x = torch.arange(2 * 3 * 8 * 9).view(2, 3, 8, 9)
    top, left = torch.randint(4, (2, 2, 3, 5), generator=torch.Generator().manual_seed(0))
    cells = patches.cut_channels(x, top, left, 4)
    for n, c, k in [(0, 0, 0), (1, 2, 4), (0, 1, 3)]:
        y, z = top[n, c, k], left[n, c, k]
        assert torch.equal(cells[n, c, k], x[n, c, y : y + 4, z : z + 4])


def test_split_patches_are_slices_and_join_puts_them_back():
    x = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    rows = patches.split(x, 2)
    assert rows.shape == (2, 9, 12)
    for place in range(9):
        down, right = 2 * (place // 3), 2 * (place % 3)
        assert torch.equal(rows[:, place], x[:, :, down : down + 2, right : right + 2].permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(patches.join(rows, 2), x)
