import pytest
import torch
from sklearn.cluster import KMeans

from ssl_core.nn import clusters


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_nearest_centre_is_that_of_all_distances():
    x, centres = torch.randn(500, 7, generator=generator()), torch.randn(40, 7, generator=generator(1))
    index, distance = clusters.nearest(x, centres)
    every = torch.cdist(x.double(), centres.double()).square()
    assert torch.equal(index, every.argmin(1))
    assert torch.allclose(distance.double(), every.amin(1), atol=1e-5)


def test_pieces_and_autocast_change_nothing(monkeypatch):
    x, centres = torch.randn(500, 7, generator=generator()), torch.randn(40, 7, generator=generator(1))
    index, distance = clusters.nearest(x, centres)
    monkeypatch.setattr(clusters, "_AT_ONCE", 40 * 33)
    with torch.autocast("cpu", torch.bfloat16):
        again, same = clusters.nearest(x, centres)
    assert torch.equal(index, again) and torch.allclose(distance, same, atol=1e-5)


def test_either_library_finds_the_same(monkeypatch):
    x, centres = torch.randn(500, 7, generator=generator()), torch.randn(40, 7, generator=generator(1))
    ours = clusters.closeness(x, centres)
    monkeypatch.setattr(clusters, "_has_onednn", lambda: False)
    assert torch.allclose(ours, clusters.closeness(x, centres), atol=1e-5)


def test_blobs_are_found():
    places = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    x = places.repeat(40, 1) + torch.randn(120, 2, generator=generator())
    found = min((clusters.k_means(x, 3, generator(seed)) for seed in range(5)), key=lambda found: float(found[1]))
    assert torch.cdist(places, found[0]).amin(1).max() < 1
    assert found[1].item() == pytest.approx(2, abs=0.6)


def test_it_is_as_good_as_a_library():
    x = torch.randn(2000, 8, generator=generator()) @ torch.randn(8, 8, generator=generator(1))
    _, spread = clusters.k_means(x, 30, generator())
    library = KMeans(30, n_init=1, init="random", max_iter=25, random_state=0).fit(x.numpy())
    assert spread.item() < 1.05 * library.inertia_ / len(x)


def test_a_centre_that_nobody_is_nearest_to_starts_again():
    """As many centres as different vectors: each finds its own only because the lost ones move."""
    x = torch.arange(6.0).view(6, 1).repeat(5, 1)
    centres, spread = clusters.k_means(x, 6, generator(), rounds=200)
    assert spread == 0 and sorted(centres[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_the_seed_makes_the_centres():
    x = torch.randn(300, 4, generator=generator())
    first, again, other = (clusters.k_means(x, 9, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match="7 centres were requested and there are 6"):
        clusters.k_means(torch.zeros(6, 2), 7, generator())
