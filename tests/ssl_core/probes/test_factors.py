"""What the factor probes say where the answer is known: factors that features hold, hide, or hold on a circle."""

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from ssl_core.probes.factors import best_layers, on_circle, read_out
from ssl_core.probes.intervals import bootstrap_means, wilson

N, M = 400, 300


@pytest.fixture(scope="module")
def made():
    """Features [N + M, 24] in which a quantity, an angle and a name lie, and the factors, some of them nowhere."""
    rng = torch.Generator().manual_seed(0)
    n = N + M
    angle, quantity, noise = 360 * torch.rand(n, generator=rng), *torch.randn(2, n, 1, generator=rng).unbind(0)
    name, lot = torch.randint(4, (2, n), generator=rng)
    inside = torch.cat([on_circle(angle, 360).float(), quantity, torch.nn.functional.one_hot(name, 4)], 1)
    features = inside @ torch.randn(7, 24, generator=rng) + 0.02 * torch.randn(n, 24, generator=rng)
    factors = {"quantity": quantity.double(), "angle": on_circle(angle, 360), "name": name}
    return features, factors | {"noise": noise.double(), "lot": lot, "degrees": angle.double().unsqueeze(1)}


def halves(features, factors):
    return features[:N], {k: y[:N] for k, y in factors.items()}, features[N:], {k: y[N:] for k, y in factors.items()}


def test_a_factor_that_features_hold_is_told_and_one_that_they_do_not_is_not(made):
    scores = read_out(*halves(*made))
    assert list(scores) == list(made[1])
    assert scores["quantity"].mean > 0.99 and scores["angle"].mean > 0.99 and scores["name"].mean > 0.99
    assert abs(scores["noise"].mean) < 0.05 and scores["noise"].low < 0.01 and scores["noise"].high > -0.01
    assert scores["lot"].low < 0.25 < scores["lot"].high
    assert scores["degrees"].mean < 0.75  # 359 and 0 degrees are neighbours on the circle alone
    assert all(score.low <= score.mean <= score.high for score in scores.values())


def test_the_explained_share_is_scikit_learns(made):
    x, known, test_x, asked = halves(*made)
    hidden = {"mixed": known["quantity"] + 2 * known["noise"]}, {"mixed": asked["quantity"] + 2 * asked["noise"]}
    scale = StandardScaler().fit(x.double().numpy())
    peer = RidgeCV(np.logspace(-5, 2, 15) * N).fit(scale.transform(x.double().numpy()), hidden[0]["mixed"].numpy())
    expected = r2_score(hidden[1]["mixed"].numpy(), peer.predict(scale.transform(test_x.double().numpy())))
    assert 0.1 < expected < 0.3
    assert read_out(x, hidden[0], test_x, hidden[1])["mixed"].mean == pytest.approx(expected, abs=1e-6)


def test_names_have_the_interval_of_wilson_and_one_that_was_never_shown_is_wrong(made):
    x, known, test_x, asked = halves(*made)
    right = int((read_out(x, {"name": known["name"]}, test_x, {"name": asked["name"]})["name"].mean * M) + 0.5)
    strange = asked["name"].clone()
    strange[:100] = 9
    lost = read_out(x, {"name": known["name"]}, test_x, {"name": strange})["name"]
    assert lost == wilson(round(lost.mean * M), M)
    assert right - 100 <= round(lost.mean * M) <= 200


def test_the_interval_of_an_explained_share_holds_the_truth_about_as_often_as_it_says():
    """95 % of intervals should hold the share of endless data, here 0.5."""
    held = 0
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(2200, 1, generator=rng)
        y = (x + torch.randn(2200, 1, generator=rng)).double()
        score = read_out(x[:2000], {"y": y[:2000]}, x[2000:], {"y": y[2000:]}, seed)["y"]
        held += score.low < 0.5 < score.high
    assert 180 <= held <= 198


def test_the_layer_is_the_one_that_tells_the_factor_best_and_the_deepest_of_equals(made):
    features, factors = made
    rng = torch.Generator().manual_seed(1)
    layers = {"noisy": features + 3 * torch.randn(features.shape, generator=rng), "clear": features, "last": features}
    known = {name: factors[name] for name in ("quantity", "angle", "name")}
    assert best_layers(layers, known) == dict.fromkeys(known, "last")
    assert best_layers({"clear": features, "noisy": layers["noisy"]}, known) == dict.fromkeys(known, "clear")
    assert best_layers({"only": features}, known) == dict.fromkeys(known, "only")


def test_the_layer_does_not_depend_on_the_samples_being_sorted(made):
    features, factors = made
    order = factors["name"].argsort(stable=True)
    layers = {
        "clear": features[order],
        "blind": torch.randn(features.shape, generator=torch.Generator().manual_seed(2)),
    }
    assert best_layers(layers, {"name": factors["name"][order]}) == {"name": "clear"}


def test_the_same_seed_gives_the_same_scores(made):
    parts = halves(*made)
    assert read_out(*parts) == read_out(*parts)
    assert read_out(*parts)["noise"].low != read_out(*parts, seed=1)["noise"].low


def test_means_of_resamples_spread_as_theory_says():
    values = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = bootstrap_means(values, 4000, seed=3)
    assert means.shape == (4000, 2)
    assert means.mean(0).numpy() == pytest.approx(values.mean(0).numpy(), abs=0.005)
    assert means.std(0).numpy() == pytest.approx((values.std(0) / 500**0.5).numpy(), rel=0.05)
    assert torch.allclose(means[:, 1:], bootstrap_means(values[:, 1:], 4000, seed=3), rtol=0, atol=1e-12)


def test_seven_factors_of_a_layer_take_seconds():
    rng = torch.Generator().manual_seed(0)
    x, test_x = torch.randn(2000, 512, generator=rng), torch.randn(1000, 512, generator=rng)
    known, asked = (
        {str(i): x[:, i : i + 1].double() for i in range(5)} | {name: torch.randint(8, (len(x),)) for name in "ab"}
        for x in (x, test_x)
    )
    began = time.process_time()
    read_out(x, known, test_x, asked)
    assert time.process_time() - began < 20
