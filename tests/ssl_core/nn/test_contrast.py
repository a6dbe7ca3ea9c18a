"""InfoNCE and NT-Xent against a naive writing of their equations, in one process; ranks are in test_contrast_ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_core.nn.contrast import gather, info_nce, info_nce_and_top1, nt_xent, nt_xent_and_top1


def naive_info_nce(query: Tensor, keys: Tensor, positives: Tensor, temperature: float, skip: list[set[int]]) -> Tensor:
    """-log of exp(positive) over the sum of exp(positive) and exp(negatives), one query after another."""
    losses = []
    query, keys = query.double(), keys.double()
    for q, positive, skipped in zip(query, positives.tolist(), skip):
        scores = torch.stack([(q * key).sum() / temperature for key in keys])
        kept = [j for j in range(len(keys)) if j == positive or j not in skipped]
        losses.append(-(scores[positive] - scores[kept].exp().sum().log()))
    return torch.stack(losses)


def naive_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1 for both directions of each pair."""
    n = len(z1)
    z = torch.cat([z1 / z1.norm(dim=1, keepdim=True), z2 / z2.norm(dim=1, keepdim=True)])
    positives = torch.arange(2 * n).roll(n)
    losses = naive_info_nce(z, z, positives, temperature, [{i} for i in range(2 * n)])
    return (losses[:n] + losses[n:]) / 2


def assert_equal(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Value, and gradient of the mean and of a sum whose weights differ by example, to 1e-5 of the largest entry."""
    pairs = [(loss.detach(), expected.detach())]
    for weights in (torch.full_like(loss, 1 / len(loss)), torch.rand(len(loss))):
        gradients = [torch.autograd.grad((x * weights).sum(), inputs, retain_graph=True) for x in (loss, expected)]
        pairs += zip(*gradients)
    for ours, naive in pairs:
        torch.testing.assert_close(ours.double(), naive.double(), rtol=0, atol=1e-5 * float(naive.abs().max()))


@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.01])
@pytest.mark.parametrize("chunk", [1, 5, None])
def test_info_nce_equals_the_equation_in_value_and_gradient(temperature, chunk):
    query = F.normalize(torch.randn(11, 8), dim=1).requires_grad_()
    keys = F.normalize(torch.randn(17, 8), dim=1).requires_grad_()
    positives, exclude = torch.randint(17, (11,)), torch.randint(17, (11, 3))
    skip = [set(row) for row in exclude.tolist()]
    expected = naive_info_nce(query, keys, positives, temperature, skip)
    assert_equal(info_nce(query, keys, positives, temperature, exclude, chunk), expected, query, keys)


def test_info_nce_survives_scores_whose_exponentials_overflow():
    query, keys = torch.randn(6, 4) * 100, torch.randn(9, 4) * 100
    positives = torch.arange(6)
    expected = F.cross_entropy(query @ keys.T / 0.1, positives, reduction="none")
    torch.testing.assert_close(info_nce(query, keys, positives, 0.1), expected, rtol=1e-5, atol=1e-2)


def test_info_nce_passes_a_gradient_to_a_learned_temperature():
    query, keys, positives = torch.randn(6, 4), torch.randn(9, 4), torch.arange(6)
    temperature = torch.tensor(0.5, requires_grad=True)
    expected = F.cross_entropy(query @ keys.T / temperature, positives)
    (naive,) = torch.autograd.grad(expected, temperature)
    (ours,) = torch.autograd.grad(info_nce(query, keys, positives, temperature).mean(), temperature)
    torch.testing.assert_close(ours, naive)


def test_keys_without_gradient_get_none_as_moco_asks():
    query, keys = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    info_nce(query, keys, torch.arange(6), 0.2).mean().backward()
    assert query.grad is not None and keys.grad is None


@pytest.mark.parametrize("n", [2, 7, 19])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])  # the last takes the path that subtracts a maximum
def test_nt_xent_equals_the_equation_in_value_and_gradient(n, temperature, monkeypatch):
    monkeypatch.setattr("ssl_core.nn.contrast._CPU_SCORES", 11**2)  # several blocks that do not divide the batch
    z1, z2 = torch.randn(2, n, 8).unbind()
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    assert_equal(nt_xent(z1, z2, temperature), naive_nt_xent(z1, z2, temperature), z1, z2)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_top1_tells_whether_the_partner_is_the_nearest(temperature, monkeypatch):
    monkeypatch.setattr("ssl_core.nn.contrast._CPU_SCORES", 16**2)
    n = 30
    z1 = F.normalize(torch.randn(n, 8), dim=1)
    z2 = F.normalize(z1 + 0.4 * torch.randn(n, 8), dim=1)
    z = torch.cat([z1, z2])
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(1)
    expected = (nearest == torch.arange(2 * n).roll(n)).float().view(2, n).mean(0)
    top1 = nt_xent_and_top1(z1, z2, temperature)[1]
    assert 0 < float(expected.mean()) < 1
    assert top1.equal(expected)


def test_a_collapsed_batch_scores_zero_not_one():
    same = torch.ones(8, 4)
    loss, top1 = nt_xent_and_top1(same, same, 0.1)
    assert float(top1.sum()) == 0
    torch.testing.assert_close(loss, torch.full((8,), 15.0).log())
    assert float(info_nce_and_top1(same, same, torch.arange(8), 1.0)[1].sum()) == 0


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_bf16_autocast_changes_neither_the_loss_nor_the_gradient(temperature):
    z1, z2 = torch.randn(2, 20, 8).unbind()
    z1.requires_grad_()
    plain = nt_xent(z1, z2, temperature)
    with torch.autocast("cpu", torch.bfloat16):
        cast = nt_xent(z1, z2, temperature)
        ours = torch.autograd.grad(cast.sum(), z1)[0]
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain)
    torch.testing.assert_close(ours, torch.autograd.grad(plain.sum(), z1)[0])


def test_bf16_vectors_are_accepted_and_get_bf16_gradients():
    z1 = torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = nt_xent(z1, torch.randn(6, 8, dtype=torch.bfloat16), 0.1)
    loss.mean().backward()
    assert loss.dtype == torch.float32 and z1.grad.dtype == torch.bfloat16


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def test_neither_pass_makes_a_tensor_of_the_size_of_the_matrix(monkeypatch):
    monkeypatch.setattr("ssl_core.nn.contrast._CPU_SCORES", 64**2)
    z1, z2 = torch.randn(2, 256, 8, requires_grad=True).unbind()
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    own = torch.arange(512)
    with _Largest() as largest:
        nt_xent(z1, z2, 0.1).mean().backward(retain_graph=True)
        info_nce(z, z, own.roll(256), 0.1, exclude=own).mean().backward()
    assert largest.elements <= 2 * 64**2 < 512**2 / 16


def test_gather_is_the_identity_without_a_process_group():
    x = torch.randn(3, 2)
    assert gather(x) == (x, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nt_xent(torch.ones(3, 2), torch.ones(4, 2), 0.1), r"shapes \[3, 2\] and \[4, 2\]"),
        (lambda: nt_xent(torch.ones(3, 2), torch.ones(3, 2), 0.0), "temperature is 0.0"),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 4), torch.arange(3), 0.1), r"keys \[3, 4\]"),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 2), torch.arange(2), 0.1), r"they must be \[3\] int64"),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3), -1.0), "temperature is -1.0"),
    ],
)
def test_wrong_shapes_and_temperatures_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
