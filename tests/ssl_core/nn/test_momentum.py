"""The slow copy and the queue against a naive writing of both."""

import math

import pytest
import torch
from torch import nn

from ssl_core.nn.momentum import Queue, momentum_copy, momentum_update, rising_momentum


def test_a_copy_follows_its_network_and_is_not_trained():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copy = momentum_copy(network)
    expected = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for _ in range(3):
        with torch.no_grad():
            for weight in network.parameters():
                weight.normal_()
        momentum_update(copy, network, 0.9)
        now = dict(network.named_parameters())
        expected = {name: 0.9 * old + 0.1 * now[name].detach() for name, old in expected.items()}
    for name, weight in copy.named_parameters():
        assert not weight.requires_grad and weight is not now[name]
        torch.testing.assert_close(weight, expected[name])


def test_a_momentum_on_the_device_moves_as_a_number_does():
    network, (one, other) = nn.Linear(3, 4), [nn.Linear(3, 4), nn.Linear(3, 4)]
    other.load_state_dict(one.state_dict())
    momentum_update(one, network, 0.75)
    momentum_update(other, network, torch.tensor(0.75))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_momentum_rises_to_one_by_half_a_cosine_and_stays():
    risen = [rising_momentum(0.9, torch.tensor(step), 10).item() for step in range(14)]
    assert risen == pytest.approx([1 - 0.1 * (math.cos(math.pi * min(step, 10) / 10) + 1) / 2 for step in range(14)])
    assert risen[0] == pytest.approx(0.9) and risen[5] == pytest.approx(0.95) and risen[10:] == [1.0] * 4


def test_running_statistics_are_the_copys_own():
    network = nn.BatchNorm1d(4)
    copy = momentum_copy(network)
    network(torch.randn(8, 4) + 5)
    momentum_update(copy, network, 0.5)
    assert copy.running_mean.abs().max() == 0


@pytest.mark.parametrize("size", [4, 7, 12])
def test_a_queue_holds_the_newest_keys_and_forgets_the_oldest_first(size):
    queue, naive = Queue(size, 2), []
    naive = list(queue.keys.clone())
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(size))
    for step in range(9):
        parts = torch.randn(2, 1 + step % 3, 2)  # two micro-batches
        held = queue.keys.clone()
        for part in parts:
            queue.add(part)
        assert torch.equal(queue.keys, held)  # nothing moves before the step is done
        queue.enqueue()
        naive = (naive + list(parts.flatten(0, 1)))[-size:]
        rows = torch.arange(size).roll(-int(queue.place))
        assert torch.equal(queue.keys[rows], torch.stack(naive))
    queue.enqueue()
    assert torch.equal(queue.keys[rows], torch.stack(naive))
