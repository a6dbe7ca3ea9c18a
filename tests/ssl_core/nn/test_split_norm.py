"""Split batch norm against PyTorch's own on each part."""

import pytest
import torch
from torch import nn

from ssl_core.nn.encoders import EncoderSpec
from ssl_core.nn.split_norm import SplitBatchNorm, split_batch_norm
from ssl_core.types import Field


def norms(splits: int) -> tuple[SplitBatchNorm, nn.BatchNorm2d]:
    plain = nn.BatchNorm2d(6)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    other = nn.BatchNorm2d(6)
    other.load_state_dict(plain.state_dict())
    return SplitBatchNorm(plain, splits), other


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_part_is_normalised_as_if_it_were_alone(layout):
    ours, theirs = norms(4)
    x = (torch.randn(12, 6, 5, 5) + torch.arange(12).view(-1, 1, 1, 1)).contiguous(memory_format=layout)
    x.requires_grad_()
    out, parts = ours(x), torch.cat([theirs(part) for part in x.split(3)])
    torch.testing.assert_close(out, parts)
    assert out.is_contiguous(memory_format=layout)
    weigh = torch.randn_like(out)
    for mine, other in zip(
        torch.autograd.grad((out * weigh).sum(), [x, ours.weight, ours.bias]),
        torch.autograd.grad((parts * weigh).sum(), [x, theirs.weight, theirs.bias]),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_running_statistics_move_once_by_the_mean_of_the_parts():
    ours, _ = norms(3)
    x = torch.randn(12, 6, 5, 5) * 2 + torch.arange(12).view(-1, 1, 1, 1)
    ours(x)
    parts = x.split(4)
    mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variance = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(ours.running_mean, 0.1 * mean)
    torch.testing.assert_close(ours.running_var, 0.9 + 0.1 * variance)
    assert ours.num_batches_tracked == 1


def test_at_rest_it_is_the_plain_norm():
    ours, theirs = norms(3)
    x = torch.randn(5, 6, 4, 4)  # need not be a multiple of the parts
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_a_network_keeps_its_state_dict_and_loses_every_plain_batch_norm():
    spec, field = EncoderSpec("resnet18", width=0.125), Field("image", (3, 32, 32))
    plain, split = spec.build(field), split_batch_norm(spec.build(field), 2)
    split.load_state_dict(plain.state_dict())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in split.modules())
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(split(x)[:4], plain(x[:4]), atol=1e-5)
        assert not torch.allclose(split(x)[:4], plain(x)[:4], atol=1e-2)
    grouped = EncoderSpec("resnet18", width=0.125, norm="group").build(field)
    names = [type(module) for module in grouped.modules()]
    assert [type(module) for module in split_batch_norm(grouped, 2).modules()] == names


def test_synchronising_over_workers_leaves_the_parts_apart():
    plain = nn.BatchNorm2d(6)
    network = nn.SyncBatchNorm.convert_sync_batchnorm(split_batch_norm(nn.Sequential(plain), 2))
    assert isinstance(network[0], SplitBatchNorm)
    x = torch.randn(8, 6, 4, 4) + torch.arange(8).view(-1, 1, 1, 1)
    out = network(x)
    torch.testing.assert_close(out[:4].mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[4:].mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    assert (plain(x)[:4].mean((0, 2, 3)) < -0.5).all(), "one norm for all would tell the parts apart"


def test_a_batch_that_cannot_be_cut_is_answered_in_a_sentence():
    with pytest.raises(ValueError, match=r"in 4 parts got 6 samples .* multiple of 4 x cluster\.workers"):
        norms(4)[0](torch.randn(6, 6, 2, 2))
