"""RankMe, alignment, uniformity and the collapse gate against naive numpy."""

import numpy as np
import pytest
import torch

from ssl_core.probes.rank import alignment, collapse, rank_me, uniformity


def naive_rank_me(x):
    singular = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    return np.exp(-(p * np.log(p)).sum())


def naive_uniformity(x, t=2.0):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    kernel = [np.exp(-t * ((x[i] - x[j]) ** 2).sum()) for i in range(len(x)) for j in range(i)]
    return np.log(np.mean(kernel))


@pytest.mark.parametrize("shape", [(300, 20), (40, 100)])
def test_rank_me_is_the_papers_equation(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) ** 3 + 1
    assert rank_me(torch.from_numpy(x)) == pytest.approx(naive_rank_me(x), rel=1e-3)


def test_rank_me_counts_the_dimensions_in_use():
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    for rank in (1, 5, 64):
        x = basis[:, :rank] @ basis[:rank, :] if rank < 64 else basis
        assert rank_me(x) == pytest.approx(rank, rel=2e-3)


def test_alignment_and_uniformity_are_the_papers_equations():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 8)), rng.normal(size=(50, 8))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    expected = np.mean([((a - b) ** 2).sum() for a, b in zip(*unit)])
    assert alignment(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected)
    assert uniformity(torch.from_numpy(x)) == pytest.approx(naive_uniformity(x))


def test_their_extremes_are_known():
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-6)
    assert alignment(x, -x) == pytest.approx(4, abs=1e-5)
    assert uniformity(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)
    assert -4 < uniformity(x) < -3


def test_the_gate_sees_a_point_a_line_and_broken_numbers_and_passes_the_rest():
    rng = torch.Generator().manual_seed(0)
    healthy = torch.randn(200, 16, generator=rng)
    point = torch.ones(200, 16) + 1e-4 * healthy
    line = torch.ones(16) + torch.randn(200, 1, generator=rng) * torch.eye(16)[0]
    assert not collapse(healthy).collapsed
    assert "nearly the same" in collapse(point).reason
    assert "one direction only" in collapse(line).reason
    assert "NaN" in collapse(torch.full((4, 4), float("nan"))).reason
    assert collapse(torch.zeros(20, 4)).collapsed


def test_one_sample_has_no_uniformity():
    with pytest.raises(ValueError, match="about pairs"):
        uniformity(torch.ones(1, 4))
