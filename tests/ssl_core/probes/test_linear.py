"""The linear and few-shot probes against scikit-learn, and what they promise about draws and time."""

import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssl_core.probes import logistic
from ssl_core.probes.intervals import wilson
from ssl_core.probes.linear import Standardiser, draw_shots, few_shot, linear_probe
from ssl_core.probes.logistic import fit, fit_in_span


@pytest.fixture(scope="module")
def digits():
    """Pixels in float64: train x, y, test x, y."""
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    return x[:1347], y[:1347].long(), x[1347:], y[1347:].long()


def test_the_optimum_is_scikit_learns(digits):
    x, y, test, _ = digits
    scale = Standardiser.of(x)
    ours = fit(scale(x)[None], y[None], 10, 5.0, tolerance=1e-8, steps=1000)
    peer = LogisticRegression(C=1 / 5.0, tol=1e-9, max_iter=5000).fit(scale(x), y)
    assert np.abs(ours.weight[0].T.numpy() - peer.coef_).max() < 1e-4
    assert (ours.predict(scale(test))[0].numpy() == peer.predict(scale(test))).all()


def test_standardising_is_scikit_learns(digits):
    x, _, test, _ = digits
    peer = StandardScaler().fit(x)
    varies = peer.var_ > 0
    ours = Standardiser.of(x)(test).numpy()
    assert np.allclose(ours[:, varies], peer.transform(test)[:, varies])
    assert (ours[:, ~varies] == 0).all()


def test_chunks_of_rows_change_nothing(digits, monkeypatch):
    x, y, _, _ = digits
    x = Standardiser.of(x)(x)
    whole = fit(x[None], y[None], 10, 1.0, tolerance=1e-7, steps=500)
    monkeypatch.setattr(logistic, "_CHUNK_ROWS", 100)
    parts = fit(x[None], y[None], 10, 1.0, tolerance=1e-7, steps=500)
    assert (whole.weight - parts.weight).abs().max() < 1e-4


def test_problems_solved_together_equal_problems_solved_alone_and_in_their_span(digits):
    x, y, _, _ = digits
    x = Standardiser.of(x)(x)
    chosen = draw_shots(y, 10, 3, draws=4, seed=0)
    together = fit_in_span(x[chosen], y[chosen], 10, 1.0, tolerance=1e-6)
    for i, rows in enumerate(chosen):
        alone = fit(x[rows][None], y[rows][None], 10, 1.0, tolerance=1e-8)
        assert (together.weight[i] - alone.weight[0]).abs().max() < 2e-3


def test_few_shot_accuracy_is_scikit_learns(digits):
    x, y, test, test_y = digits
    chosen = draw_shots(y, 10, 1, draws=20, seed=0)
    ours = (few_shot(x.float(), y, test.float(), chosen, classes=10) == test_y).double().mean(1)
    scale = StandardScaler().fit(x).transform
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peers = [
            LogisticRegression(max_iter=2000).fit(scale(x[rows]), y[rows]).score(scale(test), test_y) for rows in chosen
        ]
    assert np.abs(ours.numpy() - peers).max() < 0.01


def test_the_linear_probe_reads_the_digits(digits):
    x, y, test, test_y = digits
    probed = linear_probe(x.float(), y, test.float(), classes=10)
    assert (probed.predictions == test_y).double().mean() > 0.9
    assert 0.9 < probed.holdout <= 1


def test_the_linear_probe_of_1347_x_512_is_quick(digits):
    x, y, test, _ = digits
    mix = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    started = time.thread_time()
    linear_probe((x.float() @ mix).relu(), y, (test.float() @ mix).relu(), classes=10)
    assert time.thread_time() - started < 10  # about 1 s on a free core


def test_the_same_call_gives_the_same_answer(digits):
    x, y, test, _ = digits
    first, second = (linear_probe(x[:300].float(), y[:300], test.float(), classes=10) for _ in range(2))
    assert torch.equal(first.predictions, second.predictions) and first.holdout == second.holdout


def test_draws_depend_on_labels_and_seed_alone_and_take_each_class_equally():
    y = torch.tensor([0] * 30 + [1] * 30 + [2] * 3)
    draws = draw_shots(y, 3, 5, draws=20, seed=1)
    assert torch.equal(draws, draw_shots(y, 3, 5, draws=20, seed=1))
    assert not torch.equal(draws, draw_shots(y, 3, 5, draws=20, seed=2))
    for rows in draws:
        assert torch.bincount(y[rows]).tolist() == [5, 5, 3]
        assert len(rows.unique()) == len(rows)


def test_labels_that_say_nothing_give_chance():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 20, generator=rng), torch.randint(4, (600,), generator=rng)
    probed = linear_probe(x[:400], y[:400], x[400:], classes=4)
    right = int((probed.predictions == y[400:]).sum())
    assert wilson(right, 200).low < 0.25 < wilson(right, 200).high


def test_too_little_to_evaluate_is_said():
    with pytest.raises(ValueError, match="at least 2 labelled samples"):
        linear_probe(torch.ones(1, 3), torch.zeros(1, dtype=torch.long), torch.ones(2, 3), classes=1)
