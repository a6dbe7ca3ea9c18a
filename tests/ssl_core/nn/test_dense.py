import pytest
import torch

from ssl_core.nn.dense import DenseHead


@pytest.mark.parametrize("maps", [(2, 2), (3, 3), (6, 6), (9, 7)])
def test_it_answers_for_each_cell_whatever_the_size_of_the_maps(maps):
    head = DenseHead(8, 16, 5, side=6)
    assert head(torch.randn(4, 8, *maps)).shape == (4, 5, 6, 6)


def test_it_starts_undecided():
    shares = DenseHead(8, 16, 313, side=4)(torch.randn(4, 8, 2, 2)).softmax(1)
    assert shares.max() < 3 / 313 and shares.min() > 1 / (3 * 313)


def test_a_cell_is_answered_from_what_lies_near_it():
    head = DenseHead(4, 8, 2, side=16).eval()
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    head(x)[0, 0, 2, 3].backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero().unbind(1)
    assert rows.min() == 0 and rows.max() == 4 and columns.min() == 1 and columns.max() == 5
