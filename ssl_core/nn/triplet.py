"""Triplet loss with semi-hard negatives: Schroff, Kalenichenko & Philbin 2015 (FaceNet), arXiv:1503.03832."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_core.errors import InputError
from ssl_core.nn.contrast import gather, normalise


def semi_hard_triplet_and_top1(z: Tensor, views: int, margin: float) -> tuple[Tensor, Tensor]:
    """Loss [m] of each vector, and [m] with 1 where one of its positives is nearer than every negative.

    z [m, d], not yet normalised, holds the first view of every image of this rank, then the second, and so on: the
    positives of a vector are the other views of its image, its negatives the vectors of all other images of all ranks.
    With squared distances between unit vectors, a vector's loss is the mean over its positives p of

        max(0, margin + distance(p) - distance(q))

    where q is semi-hard: the nearest negative that is farther than p, or the farthest one if none is.
    """
    m = len(z)
    n = m // views
    if views < 2 or n * views != m:
        raise ValueError(f"A triplet loss got {m} vectors of {views} views; it needs two views or more of each image.")
    z = normalise(z)
    keys, offset = gather(z)
    if len(keys) == views:
        raise InputError("A triplet loss got one image only, so there is no negative; raise train.batch_size.")
    distance = (2 - 2 * z @ keys.T).clamp_min(0)
    row = torch.arange(m, device=z.device).unsqueeze(1)
    same = offset + (row + n * torch.arange(views, device=z.device)) % m  # [m, views], each row's own place first
    positive = distance.gather(1, same[:, 1:])
    with torch.no_grad():
        near, order = distance.scatter(1, same, torch.inf).sort(1)
        place = torch.searchsorted(near, positive, right=True).clamp_max_(len(keys) - views - 1)
        top1 = (positive.amin(1) < near[:, 0]).float()
    negative = distance.gather(1, order.gather(1, place))
    return (margin + positive - negative).clamp_min(0).mean(1), top1
