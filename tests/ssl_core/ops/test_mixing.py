import torch

from ssl_core.ops.mixing import cutmix


def mixed(chance: float, n: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that are their own number everywhere."""
    x = torch.arange(1.0, n + 1).view(-1, 1, 1, 1).expand(n, 3, 20, 30).contiguous()
    return cutmix(x, torch.Generator().manual_seed(seed), chance)


def test_a_box_of_the_image_before_stands_where_the_image_is_not_itself():
    x, own = mixed(1.0)
    number = torch.arange(1.0, 601).view(-1, 1, 1, 1)
    before = number.roll(1, 0)
    assert torch.equal(x, torch.where(own.bool(), number, before).expand_as(x))
    for mask in own[:50, 0]:
        rows, columns = ((1 - mask).amax(1), (1 - mask).amax(0))
        assert torch.equal(1 - mask, rows.view(-1, 1) * columns)  # one box


def test_the_box_is_of_any_size_up_to_the_whole():
    own = mixed(1.0)[1].mean((1, 2, 3))
    assert own.min() < 0.25 and own.max() > 0.95
    assert 0.6 < own.mean() < 0.8  # half the area, less what lies outside


def test_the_chance_is_that_of_an_image():
    own = mixed(0.3)[1].mean((1, 2, 3))
    assert 0.2 < (own < 1).float().mean() < 0.4
    x, own = mixed(0.0)
    assert (own == 1).all() and torch.equal(x[:, 0, 0, 0], torch.arange(1.0, 601))
