"""The triplet loss against loops over all triplets, in one process and over ranks."""

import pytest
import torch
from ranks import over_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core.nn.triplet import semi_hard_triplet_and_top1

MARGIN = 0.5


def naive(z: Tensor, image: list[int], margin: float) -> tuple[list[Tensor], list[float]]:
    """Loss and whether a positive is nearest, by loops over anchors, positives and negatives."""
    z = [row / row.norm() for row in z]
    losses, found = [], []
    for a in range(len(z)):
        far = [((z[a] - other) ** 2).sum() for other in z]
        negatives = [far[i] for i in range(len(z)) if image[i] != image[a]]
        positives = [far[i] for i in range(len(z)) if image[i] == image[a] and i != a]
        hinges = []
        for near in positives:
            farther = [distance for distance in negatives if distance > near]
            negative = min(farther) if farther else max(negatives)
            hinges.append((margin + near - negative).clamp_min(0))
        losses.append(torch.stack(hinges).mean())
        found.append(float(min(positives) < min(negatives)))
    return losses, found


def clustered(n: int, views: int, spread: float, seed: int = 0) -> Tensor:
    """Views around a centre each, [views n, 6]: some positives are nearer than all negatives, some farther."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(n, 6, generator=rng)
    return (centres + spread * torch.randn(views, n, 6, generator=rng)).flatten(0, 1)


@pytest.mark.parametrize(("n", "views"), [(2, 2), (7, 2), (5, 4), (3, 8)])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("margin", [0.5, 4.0])
def test_value_gradient_and_top1_are_those_of_the_loops(n, views, spread, margin):
    z = clustered(n, views, spread).requires_grad_()
    loss, top1 = semi_hard_triplet_and_top1(z, views, margin)
    losses, found = naive(z, [i % n for i in range(n * views)], margin)
    expected = torch.stack(losses)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert top1.tolist() == found and not top1.requires_grad
    weights = torch.rand(len(z))
    mine, theirs = (torch.autograd.grad((each * weights).sum(), z)[0] for each in (loss, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_views_that_agree_and_images_that_differ_lose_nothing():
    z = torch.eye(6).repeat(3, 1)
    loss, top1 = semi_hard_triplet_and_top1(z, 3, MARGIN)
    assert loss.max() < 1e-5 and top1.min() == 1


def test_a_collapsed_batch_loses_the_margin_and_finds_nothing():
    loss, top1 = semi_hard_triplet_and_top1(torch.ones(8, 4), 2, MARGIN)
    torch.testing.assert_close(loss, torch.full((8,), MARGIN))
    assert top1.max() == 0


def _network() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(6, 4)


def _part(rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    network = DistributedDataParallel(_network())
    own = clustered(6, 3, 1.0).view(3, world, -1, 6)[:, rank].flatten(0, 1)
    loss, top1 = semi_hard_triplet_and_top1(network(own), 3, MARGIN)
    loss.mean().backward()
    return loss.detach(), top1, network.module.weight.grad


def test_ranks_together_have_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    parts = over_ranks(_part, 2, tmp_path)
    network = _network()
    losses, found = naive(network(clustered(6, 3, 1.0)), [i % 6 for i in range(18)], MARGIN)
    expected = torch.stack(losses)
    expected.mean().backward()
    for index, whole in ((0, expected.detach()), (1, torch.tensor(found))):
        together = torch.stack([part[index].view(3, -1) for part in parts], 1).flatten()
        torch.testing.assert_close(together, whole, atol=1e-5, rtol=1e-5)
    for part in parts:
        torch.testing.assert_close(part[2], network.weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("count", "views", "words"), [(6, 1, "two views or more"), (7, 2, "7 vectors of 2 views"), (3, 3, "one image only")]
)
def test_too_little_to_compare_is_answered_in_a_sentence(count, views, words):
    with pytest.raises(ValueError, match=words):
        semi_hard_triplet_and_top1(torch.randn(count, 4), views, MARGIN)
