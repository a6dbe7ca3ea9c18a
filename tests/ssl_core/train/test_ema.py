"""The average of a model's weights against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_core.train.ema import EMA


def moved(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_follows_with_a_decay_that_rises_to_the_one_asked_for(decay: float) -> None:
    model = nn.Linear(3, 2)
    average, naive = EMA(model, decay), model.weight.detach().clone()
    for step in range(30):
        moved(model, step)
        average.update(model, step)
        now = min(decay, (1 + step) / (10 + step))
        naive = now * naive + (1 - now) * model.weight.detach()
        torch.testing.assert_close(average.tensors["weight"], naive)


def test_counters_are_copied_and_the_models_own_weights_left_alone() -> None:
    model = nn.BatchNorm1d(4)
    average = EMA(model, 0.9)
    model(torch.randn(8, 4) + 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average.update(model, 100)
    assert average.tensors["num_batches_tracked"] == 1
    torch.testing.assert_close(average.tensors["running_mean"], 0.1 * before["running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_saved_average_goes_on_where_it_was_and_keeps_its_layout() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    first, second = EMA(model, 0.9), EMA(model, 0.9)
    moved(model, 0)
    first.update(model, 50)
    second.load({name: tensor.contiguous() for name, tensor in first.tensors.items()})
    assert second.tensors["weight"].is_contiguous(memory_format=torch.channels_last)
    moved(model, 1)
    for average in (first, second):
        average.update(model, 51)
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
