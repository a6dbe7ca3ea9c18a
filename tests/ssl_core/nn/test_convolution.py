"""Our convolution against torch's, where it takes the detour and where it does not."""

import pytest
import torch
from torch import nn

from ssl_core.nn import convolution
from ssl_core.nn.convolution import Conv2d


def both(kernel: int, stride: int, bias: bool = False):
    torch.manual_seed(0)
    ours = Conv2d(6, 10, kernel, stride, kernel // 2, bias=bias)
    theirs = nn.Conv2d(6, 10, kernel, stride, kernel // 2, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(conv: nn.Conv2d, x: torch.Tensor, weigh: torch.Tensor):
    x = x.clone().requires_grad_()
    out = conv(x)
    (out * weigh).sum().backward()
    return [out.detach().float(), x.grad, *(weight.grad for weight in conv.parameters())]


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 1, 3), (3, 2, 5), (3, 2, 6), (3, 1, 1), (7, 2, 6), (1, 2, 6)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_torch(kernel, stride, size, bias):
    ours, theirs = both(kernel, stride, bias)
    x = torch.randn(4, 6, size, size).contiguous(memory_format=torch.channels_last)
    assert ours._pays(x) == (kernel > 1)
    weigh = torch.randn_like(theirs(x))
    for mine, other in zip(gradients(ours, x, weigh), gradients(theirs, x, weigh), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_under_autocast_it_computes_in_bfloat16_as_torch_does():
    ours, theirs = both(3, 1)
    x = torch.randn(4, 6, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours._pays(x) and ours(x).dtype == theirs(x).dtype == torch.bfloat16
        weigh = torch.randn(4, 10, 6, 6)
        results = zip(gradients(ours, x, weigh), gradients(theirs, x, weigh), strict=True)
    for mine, other in results:
        assert mine.dtype == other.dtype and torch.allclose(mine, other, atol=0.1, rtol=0.02)


def test_large_maps_and_plain_inference_go_the_usual_way():
    ours, _ = both(3, 1)
    assert not ours._pays(torch.randn(2, 6, 9, 9))
    with torch.no_grad():
        assert not ours._pays(torch.randn(2, 6, 2, 2))
    assert set(convolution._SIDE) == {torch.bfloat16, torch.float32}
