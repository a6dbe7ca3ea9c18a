"""kNN against scikit-learn and against a loop over samples."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from ssl_core.probes import knn as probe
from ssl_core.probes.knn import knn, leave_one_out, neighbours


@pytest.fixture
def blobs():
    """Three overlapping classes in 16 dimensions: train x, y and test x."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=rng)
    y = torch.arange(240) % 3
    x = centres[y] + 1.5 * torch.randn(240, 16, generator=rng)
    return x[:180], y[:180], x[180:]


def test_plain_knn_equals_scikit_learn(blobs):
    x, y, test = blobs
    peer = KNeighborsClassifier(7, metric="cosine").fit(x, y).predict(test)
    assert knn(x, y, test, classes=3, k=7, temperature=None).tolist() == peer.tolist()


def test_weighted_knn_equals_the_papers_equation_sample_by_sample(blobs):
    x, y, test = blobs
    expected = []
    for row in test.numpy().astype(np.float64):
        cosine = np.array([row @ key / np.linalg.norm(row) / np.linalg.norm(key) for key in x.numpy()])
        near = np.argsort(-cosine)[:20]
        expected.append(np.argmax([np.exp(cosine[near] / 0.07)[y.numpy()[near] == c].sum() for c in range(3)]))
    assert knn(x, y, test, classes=3).tolist() == expected


def test_leaving_one_out_is_knn_on_the_others(blobs):
    x, y, _ = blobs
    alone = [
        knn(torch.cat([x[:i], x[i + 1 :]]), torch.cat([y[:i], y[i + 1 :]]), x[i : i + 1], classes=3).item() == y[i]
        for i in range(len(x))
    ]
    assert leave_one_out(x, y, classes=3).tolist() == alone


def test_neighbours_do_not_depend_on_the_chunk(blobs, monkeypatch):
    x, _, test = blobs
    whole = neighbours(test, x, 5)
    monkeypatch.setattr(probe, "_CHUNK_BYTES", 4 * len(x) * 7)
    assert torch.equal(neighbours(test, x, 5).ids, whole.ids)


def test_more_neighbours_than_samples_means_all_samples():
    x = F.normalize(torch.randn(4, 3), dim=1)
    assert neighbours(x, x, 20).ids.sort(1).values.tolist() == [[0, 1, 2, 3]] * 4
    others = neighbours(x, x, 20, exclude_self=True).ids.sort(1).values.tolist()
    assert others == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_no_samples_to_search_is_said():
    with pytest.raises(ValueError, match="There are 1 samples"):
        neighbours(torch.ones(1, 3), torch.ones(1, 3), 5, exclude_self=True)
