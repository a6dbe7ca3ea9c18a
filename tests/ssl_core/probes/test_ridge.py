"""Ridge regression against scikit-learn, and its leave-one-out errors against leaving rows out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as PeerRidge
from sklearn.linear_model import RidgeCV

from ssl_core.probes.ridge import PENALTIES, Ridge


def made(n, d, noise=0.5, seed=0):
    """Features of unequal spread away from 0, two quantities of them, and unseen features."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, d)
    x, test = ((3 + torch.randn(m, d, generator=rng)) * spread for m in (n, 50))
    y = x @ torch.randn(d, 2, generator=rng) + noise * torch.randn(n, 2, generator=rng)
    return x, y, test


@pytest.mark.parametrize(("n", "d"), [(80, 12), (30, 120)])
def test_the_optimum_is_scikit_learns(n, d):
    x, y, test = made(n, d)
    for penalty in (1e-3, 1.0, 50.0):
        peer = PeerRidge(penalty, solver="svd").fit(x.double().numpy(), y.double().numpy())
        ours = Ridge.of(x).fit(y, penalty)
        assert ours.weight.T.numpy() == pytest.approx(peer.coef_, abs=1e-7)
        assert ours(test).numpy() == pytest.approx(peer.predict(test.double().numpy()), abs=1e-7)


@pytest.mark.parametrize(("n", "d", "noise"), [(80, 12, 0.1), (80, 12, 10.0), (30, 120, 0.5)])
def test_the_penalty_is_the_one_that_scikit_learn_chooses_by_leaving_one_out(n, d, noise):
    x, y, _ = made(n, d, noise)
    x, y = x.double(), y.double()
    peer = RidgeCV(np.array(PENALTIES) * n, scoring="neg_mean_squared_error").fit(x.numpy(), y.numpy())
    assert Ridge.of(x).choose(y) == pytest.approx(peer.alpha_)


@pytest.mark.parametrize(("n", "d"), [(20, 6), (12, 30)])
def test_leaving_rows_out_in_closed_form_equals_leaving_them_out(n, d):
    x, y, _ = made(n, d)
    counts = torch.rand(n, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    ridge, penalties = Ridge.of(x, counts), [0.01, 2.0]
    found = ridge.leave_one_out(y, penalties)
    assert found.shape == (2, n, 2)
    for row in (0, 7, n - 1):
        others = torch.arange(n) != row
        for penalty, mine in zip(penalties, found):
            left = Ridge.of(x[others], counts[others]).fit(y[others], penalty)
            assert mine[row].numpy() == pytest.approx(left(x[row : row + 1])[0].numpy(), abs=1e-7)


def test_counts_are_repetitions_and_a_row_without_one_says_nothing():
    x, y, test = made(40, 5)
    counts = torch.randint(0, 4, (40, 1), generator=torch.Generator().manual_seed(2))
    again = torch.repeat_interleave(torch.arange(40), counts.flatten())
    weighted, repeated = Ridge.of(x, counts).fit(y, 1.0), Ridge.of(x[again]).fit(y[again], 1.0)
    assert weighted(test).numpy() == pytest.approx(repeated(test).numpy(), abs=1e-9)
    y[counts.flatten() == 0] = 1e6
    assert Ridge.of(x, counts).fit(y, 1.0).weight.numpy() == pytest.approx(weighted.weight.numpy(), abs=1e-9)


def test_a_feature_that_does_not_vary_and_one_that_is_there_twice_are_harmless():
    x, y, test = made(40, 5)
    flat, flat_test = (torch.cat([part, torch.full((len(part), 1), 7.0), part[:, :1]], 1) for part in (x, test))
    found = Ridge.of(flat)
    fitted = found.fit(y, found.choose(y))
    assert torch.isfinite(fitted(flat_test)).all()
    assert fitted.weight[5].abs().max() < 1e-9 and torch.allclose(fitted.weight[0], fitted.weight[6], atol=1e-7)
