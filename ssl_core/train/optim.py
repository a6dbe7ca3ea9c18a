"""Optimizers and the learning-rate schedule.

LARS: You, Gitman, Ginsburg 2017, https://arxiv.org/abs/1708.03888. Linear scaling and warm-up: Goyal et al. 2017,
https://arxiv.org/abs/1706.02677. Cosine: Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.sgd import sgd

from ssl_core.errors import InputError
from ssl_core.train.run import Optim, Train


class LARS(Optimizer):
    """Momentum SGD whose step is scaled per layer by ||w|| / (||g|| + decay * ||w||), as in algorithm 1 of the paper.

    The learning rate is inside the momentum (v = m v + lr * ratio * (g + decay w); w -= v). Groups with adapt=False
    (biases, norms) take the plain momentum step.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the current gradients."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights)

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        decay, grads = group["weight_decay"], [weight.grad for weight in weights if weight.grad is not None]
        moves = torch._foreach_add(grads, weights, alpha=decay) if decay else torch._foreach_mul(grads, 1.0)
        if group["adapt"]:
            torch._foreach_mul_(moves, _trust_ratios(weights, grads, decay, group["trust"]))
        torch._foreach_mul_(moves, group["lr"])
        velocities = [self._velocity(weight) for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, moves)
        torch._foreach_sub_(weights, velocities)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        return velocity


def _trust_ratios(weights: list[Tensor], grads: list[Any], decay: float, trust: float) -> list[Tensor]:
    """Local learning rate per layer, eq. 6; 1 where a norm is zero and the ratio means nothing."""
    weight_norms = torch._foreach_norm(weights)
    grad_norms = torch._foreach_norm(grads)
    return [
        torch.where((weight > 0) & (grad > 0), trust * weight / (grad + decay * weight), 1.0)
        for weight, grad in zip(weight_norms, grad_norms, strict=True)
    ]


class OnePassSGD(SGD):
    """PyTorch's SGD for CPUs, in one pass over memory.

    The fused kernel copies tensors that are not contiguous. For the weights of a channels_last network this takes three
    times as long as the step itself, so the kernel gets contiguous views of them.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the current gradients."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            sgd(
                [_in_order(weight) for weight in weights],
                [_in_order(weight.grad) for weight in weights],
                [_in_order(self._momentum_buffer(weight)) if group["momentum"] else None for weight in weights],
                fused=True,
                **{key: group[key] for key in ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")},
            )

    def _momentum_buffer(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _in_order(tensor: Tensor) -> Tensor:
    """A view whose axes are in the order of memory."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 and tensor.stride(1) == 1 else tensor


def make_optimizer(optim: Optim, model: nn.Module) -> Optimizer:
    """The optimizer over the model's trainable parameters, fused where the device supports it; lr is set per step."""
    groups = parameter_groups(model, optim.weight_decay)
    if optim.name == "adamw":
        return AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    if optim.name == "lars":
        return LARS(groups, lr=optim.lr, momentum=optim.momentum, trust=optim.trust)
    plain = [{key: value for key, value in group.items() if key != "adapt"} for group in groups]
    kind = OnePassSGD if next(model.parameters()).device.type == "cpu" else SGD
    return kind(plain, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels, which decay (and adapt under LARS), and biases, norms and scalars, which do neither."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trainable if weight.ndim > 1]
    others = [weight for weight in trainable if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "adapt": True},
        {"params": others, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


def lr_schedule(optim: Optim, train: Train, steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Step (from 0) -> learning rate of that step: linear warm-up, then cosine or constant.

    Raises:
        InputError: the warm-up is as long as the run.
    """
    peak = optim.lr * (train.batch_size / 256 if optim.scale_lr else 1.0)
    warmup = optim.warmup_steps or round(optim.warmup_epochs * steps_per_epoch)
    if warmup and warmup >= steps:
        raise InputError(
            f"The warm-up takes {warmup} steps and the whole run {steps}; lower optim.warmup_steps or "
            "optim.warmup_epochs, or train longer."
        )

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if optim.schedule == "constant":
            return peak
        done = (step - warmup) / max(1, steps - warmup)
        return peak * (optim.final_lr + (1 - optim.final_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2)

    return lr


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of every group for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
