"""Optimizers against naive writings of their papers, and the learning rate's course."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from ssl_core.train.optim import LARS, OnePassSGD, lr_schedule, make_optimizer, parameter_groups, set_lr
from ssl_core.train.run import Optim, Train


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


def _backward(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    model.zero_grad()
    model(torch.randn(6, 3, 8, 8)).pow(2).mean().backward()


def test_lars_is_algorithm_1_of_the_paper_with_biases_and_norms_left_out() -> None:
    ours, naive = _model(), _model()
    optimizer = make_optimizer(Optim(name="lars", lr=0.5, weight_decay=1e-2, trust=0.02), ours)
    velocity = {name: torch.zeros_like(weight) for name, weight in naive.named_parameters()}
    for step in range(4):
        lr = 0.5 / (step + 1)
        set_lr(optimizer, lr)
        _backward(ours, step)
        _backward(naive, step)
        optimizer.step()
        with torch.no_grad():
            for name, weight in naive.named_parameters():
                assert weight.grad is not None
                local, decay = 1.0, 0.0
                if weight.ndim > 1:
                    decay = 1e-2
                    local = 0.02 * weight.norm() / (weight.grad.norm() + decay * weight.norm())
                velocity[name] = 0.9 * velocity[name] + lr * local * (weight.grad + decay * weight)
                weight -= velocity[name]
    for mine, theirs in zip(ours.parameters(), naive.parameters()):
        assert torch.allclose(mine, theirs, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_in_one_pass_takes_the_steps_of_torch(momentum: float) -> None:
    ours, theirs = (_model().to(memory_format=torch.channels_last) for _ in range(2))  # type: ignore[call-overload]
    nesterov = momentum > 0
    optimizer = make_optimizer(Optim(name="sgd", lr=0.3, weight_decay=0.01, momentum=momentum, nesterov=nesterov), ours)
    assert isinstance(optimizer, OnePassSGD)
    plain = SGD(parameter_groups(theirs, 0.01), lr=0.3, momentum=momentum, nesterov=nesterov, foreach=False)
    for step in range(4):
        for group in plain.param_groups:
            group["lr"] = 0.3 / (step + 1)
        set_lr(optimizer, 0.3 / (step + 1))
        for model, one in ((ours, optimizer), (theirs, plain)):
            _backward(model, step)
            one.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-7) and mine.stride() == other.stride()


def test_lars_moves_a_layer_of_zeros() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([{"params": [weight]}], lr=0.1).step()
    assert torch.allclose(weight, torch.full((2, 2), -0.1))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_only_matrices_decay(name: str) -> None:
    model = _model()
    optimizer = make_optimizer(Optim(name=name, weight_decay=0.1), model)  # type: ignore[arg-type]
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert all(decays[id(weight)] == (0.1 if weight.ndim > 1 else 0) for weight in model.parameters())
    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert parameter_groups(frozen, 0.1) == []


def test_the_learning_rate_scales_with_the_batch_warms_up_and_follows_a_cosine() -> None:
    lr = lr_schedule(Optim(lr=0.2, warmup_epochs=2, final_lr=0.1), Train(batch_size=512), steps=110, steps_per_epoch=5)
    assert lr(0) == pytest.approx(0.04) and lr(9) == pytest.approx(0.4) and lr(10) == pytest.approx(0.4)
    assert lr(60) == pytest.approx(0.4 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))
    assert lr(110) == pytest.approx(0.04)
    plain = lr_schedule(Optim(lr=0.2, scale_lr=False, schedule="constant"), Train(batch_size=512), 100, 5)
    assert plain(0) == plain(99) == 0.2


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="warm-up takes 50 steps and the whole run 20"):
        lr_schedule(Optim(warmup_epochs=10), Train(), steps=20, steps_per_epoch=5)
