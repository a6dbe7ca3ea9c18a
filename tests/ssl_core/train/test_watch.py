"""Collapse measures where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_core.train.meter import Meter
from ssl_core.train.team import Team
from ssl_core.train.watch import all_finite, spread_and_rank


def test_one_point_has_no_spread_and_a_line_has_rank_one() -> None:
    assert spread_and_rank(torch.ones(64, 8))[0] == pytest.approx(0, abs=1e-12)
    line = torch.ones(64, 8) + torch.linspace(-0.1, 0.1, 64)[:, None] * torch.eye(8)[0]
    spread, rank = spread_and_rank(line)
    assert 0 < spread < 0.1 and rank == pytest.approx(1, abs=0.1)


def test_directions_spread_over_the_sphere_have_full_spread_and_rank() -> None:
    spread, rank = spread_and_rank(torch.cat([torch.eye(8), -torch.eye(8)]))
    assert spread == pytest.approx(1) and rank == pytest.approx(8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found_among_many(bad: float) -> None:
    tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.full((2, 2), 3e38)]
    assert all_finite(tensors)
    assert not all_finite([*tensors, torch.tensor([1.0, bad])])


def test_a_meter_weighs_by_examples_and_starts_anew_after_reading() -> None:
    meter, alone = Meter(), Team(0, 1, torch.device("cpu"))
    meter.add({"loss": torch.tensor([1.0, 2.0, 3.0])})
    meter.add({"loss": torch.tensor([10.0])})
    assert meter.read(alone) == {"loss": 4.0}
    assert meter.read(alone) == {}
