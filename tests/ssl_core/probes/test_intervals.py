"""Intervals against SciPy's, and against how often they hold the truth."""

import numpy as np
import pytest
import torch
from scipy import stats

from ssl_core.probes.intervals import (
    bootstrap_means,
    normal_mean,
    over_draws,
    paired_bootstrap,
    percentiles,
    wilson,
)


def test_intervals_are_those_of_the_textbook():
    bounds = stats.binomtest(437, 450).proportion_ci(method="wilson")
    ours = wilson(437, 450)
    assert (ours.low, ours.high) == pytest.approx((bounds.low, bounds.high), abs=1e-12)
    values = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert over_draws(values)[1:] == pytest.approx((low, high), abs=1e-5)
    for n in (2, 3, 4, 5, 8):
        low, high = stats.t.interval(0.95, n - 1, 0, 1 / np.sqrt(n))
        scaled = torch.linspace(-1, 1, n, dtype=torch.float64)
        ours = over_draws(scaled / scaled.std())
        assert ours.high == pytest.approx(high, rel=2e-3)


def test_the_paired_bootstrap_finds_a_small_gain_that_unpaired_intervals_hide():
    champion = (torch.arange(450) % 10 > 0).double()
    candidate = champion.clone()
    candidate[torch.arange(0, 450, 30)] = 1
    gain = paired_bootstrap(candidate - champion)
    assert gain == paired_bootstrap(candidate - champion)
    assert 0 < gain.low < gain.mean < gain.high and gain.mean == pytest.approx(15 / 450)
    assert wilson(int(candidate.sum()), 450).low < wilson(int(champion.sum()), 450).high
    spread = normal_mean(candidate - champion)
    assert (gain.low, gain.high) == pytest.approx((spread.low, spread.high), abs=4e-3)


@pytest.mark.parametrize("right", [0, 1, 5, 10])
def test_a_share_stays_between_nothing_and_all_and_inside_its_interval(right):
    found = wilson(right, 10)
    assert found.mean == right / 10 and 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low > 0.2, "ten samples never make one sure"


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_wilson_holds_the_truth_in_about_19_of_20_experiments(share):
    right = np.random.default_rng(0).binomial(60, share, 4000)
    held = [found.low <= share <= found.high for found in (wilson(int(count), 60) for count in right)]
    assert 0.92 < np.mean(held) < 0.99


def test_a_normal_mean_is_the_textbooks():
    values = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    low, high = stats.norm.interval(0.95, values.mean(), values.numpy().std() / np.sqrt(50))
    assert tuple(normal_mean(values)) == pytest.approx((float(values.mean()), low, high))


def test_columns_are_resampled_together_also_over_calls_and_pieces():
    values = torch.rand(40, 3, generator=torch.Generator().manual_seed(2))
    together = bootstrap_means(values, 500, seed=4)
    for column in range(3):
        assert torch.equal(
            together[:, column : column + 1], bootstrap_means(values[:, column : column + 1], 500, seed=4)
        )
    assert not torch.equal(together, bootstrap_means(values, 500, seed=5))
    assert together.mean(0) == pytest.approx(values.double().mean(0), abs=0.01)
    assert together.std(0) == pytest.approx(values.double().std(0, correction=0) / 40**0.5, rel=0.1)


def test_percentiles_are_those_of_the_resamples():
    resampled = torch.arange(1001, dtype=torch.float64)
    assert percentiles(7.0, resampled[torch.randperm(1001)]) == pytest.approx((7.0, 25.0, 975.0))


def test_too_little_for_an_interval_is_said():
    with pytest.raises(ValueError, match="no test samples"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="at least 2 of them"):
        over_draws(torch.ones(1))
    with pytest.raises(ValueError, match="no samples to compare"):
        paired_bootstrap(torch.ones(0))
