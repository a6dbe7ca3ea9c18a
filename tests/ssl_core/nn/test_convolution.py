"""Our convolution against torch's, where it takes the detour and where it does not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_core.nn import convolution
from ssl_core.nn.convolution import Conv2d

SHAPES = [(3, 1, 3), (3, 2, 5), (3, 2, 6), (3, 1, 1), (3, 1, 2), (7, 2, 6), (5, 3, 7), (3, 2, 4)]


@pytest.mark.parametrize(("kernel", "stride", "size"), SHAPES)
@pytest.mark.parametrize("channels", [0, 10**6], ids=["a product per pixel", "one convolution"])
def test_products_give_the_values_and_gradients_of_torch(monkeypatch, kernel, stride, size, channels):
    monkeypatch.setattr(convolution, "_CHANNELS", channels)
    torch.manual_seed(0)
    x = torch.randn(4, 6, size, size + 1, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(10, 6, kernel, kernel, dtype=torch.float64)
    axes = [convolution._Axis(side, kernel, stride, kernel // 2) for side in x.shape[2:]]
    found = []
    for convolve in (
        lambda x, w: convolution._Conv2d.apply(x, w, *axes),
        lambda x, w: F.conv2d(x, w, None, stride, kernel // 2),
    ):
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = convolve(*inputs)
        weigh = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        found.append([out, *torch.autograd.grad((out * weigh).sum(), inputs)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-10)


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


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 6), (3, 2, 5), (1, 2, 6), (1, 1, 3), (7, 2, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_under_autocast_it_computes_in_bfloat16_as_torch_does(kernel, stride, size, bias):
    ours, theirs = both(kernel, stride, bias)
    x = torch.randn(4, 6, size, size).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution._trains_in_bf16(x) and ours(x).dtype == theirs(x).dtype == torch.bfloat16
        weigh = torch.randn_like(theirs(x).float())
        results = list(zip(gradients(ours, x, weigh), gradients(theirs, x, weigh), strict=True))
    for mine, other in results:
        assert mine.dtype == other.dtype and (mine - other).abs().max() <= 0.02 * other.abs().max()


def test_float32_and_plain_inference_go_the_usual_way():
    ours, theirs = both(3, 1)
    x = torch.randn(2, 6, 3, 3)
    assert not convolution._trains_in_bf16(x)
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not convolution._trains_in_bf16(x)
