"""Heads: shapes, where batch norm sits, and refusals."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score
from torch import nn

from ssl_core.nn.heads import ClassifierHead, ProjectionHead, Weighted, r_squared, regress
from ssl_core.train.optim import parameter_groups


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_projection_has_the_layers_it_is_asked_for(layers):
    head = ProjectionHead(12, hidden=20, out=5, layers=layers)
    assert head(torch.randn(4, 12)).shape == (4, 5)
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == layers


def test_a_projection_that_ends_in_a_norm_centres_every_channel():
    out = ProjectionHead(12, hidden=20, out=5, last_norm=True)(torch.randn(64, 12))
    torch.testing.assert_close(out.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(5), atol=1e-2, rtol=0)


def test_the_norm_at_a_projection_s_end_learns_a_scale_and_no_shift():
    head = ProjectionHead(12, hidden=20, out=5, last_norm=True)
    (head(torch.randn(64, 12)) * torch.rand(64, 5)).sum().backward()
    last = head.mlp[-1]
    assert last.weight.requires_grad and last.weight.grad.abs().min() > 0
    assert last.bias.grad is None and last.bias.abs().max() == 0
    assert not any(weight is last.bias for group in parameter_groups(head, 0.1) for weight in group["params"])
    assert any(weight is last.weight for weight in parameter_groups(head, 0.1)[1]["params"])  # which does not decay


def test_a_projection_without_norm_keeps_samples_apart():
    head, x = ProjectionHead(12, hidden=20, out=5, norm=False), torch.randn(4, 12)
    torch.testing.assert_close(head(x)[:1], head(x[:1]))


def test_a_classifier_starts_near_uniform_and_may_have_hidden_layers():
    assert ClassifierHead(512, 4)(torch.randn(16, 512)).softmax(1).sub(0.25).abs().max() < 0.25
    assert ClassifierHead(12, 4, (30, 20), norm=True, dropout=0.5)(torch.randn(8, 12)).shape == (8, 4)


def test_empty_layers_are_refused():
    with pytest.raises(ValueError, match="layers=0"):
        ProjectionHead(12, layers=0)
    with pytest.raises(ValueError, match="12, 0, 4 channels"):
        ClassifierHead(12, 4, (0,))


def test_explained_variance_is_scikit_learns_and_its_mean_counts_weights():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(40, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5])
    outputs = targets + torch.randn(40, 3, generator=generator)
    theirs = r2_score(targets, outputs, multioutput="variance_weighted")
    loss, metrics = regress(outputs, targets)
    assert metrics["r2"].mean().item() == pytest.approx(theirs, abs=1e-5)
    assert loss.mean().item() == pytest.approx(mean_squared_error(targets, outputs), abs=1e-5)
    first = torch.tensor([1.0, 0, 0])
    loss, metrics = regress(outputs, Weighted(targets, first))
    assert metrics["r2"].mean().item() == pytest.approx(r2_score(targets[:, 0], outputs[:, 0]), abs=1e-5)
    assert loss.mean().item() == pytest.approx(mean_squared_error(targets[:, 0], outputs[:, 0]), abs=1e-5)


def test_targets_that_do_not_vary_are_explained_by_nothing():
    same = torch.ones(4, 2)
    assert r_squared(torch.zeros(4, 2), same).tolist() == [0] * 4
