"""What the loop watches: numbers that are none, and means over examples."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_core.train.collapse import all_finite
from ssl_core.train.meter import Meter
from ssl_core.train.ranks import Ranks


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found_among_many(bad: float) -> None:
    tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.full((2, 2), 3e38)]
    assert all_finite(tensors)
    assert not all_finite([*tensors, torch.tensor([1.0, bad])])


def test_a_meter_weighs_by_examples_and_starts_anew_after_reading() -> None:
    meter, alone = Meter(), Ranks(0, 1, torch.device("cpu"))
    meter.add({"loss": torch.tensor([1.0, 2.0, 3.0])})
    meter.add({"loss": torch.tensor([10.0])})
    assert meter.read(alone) == {"loss": 4.0}
    assert meter.read(alone) == {}
