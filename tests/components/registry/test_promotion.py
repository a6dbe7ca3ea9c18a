"""The decision, as a table."""

from __future__ import annotations

import math

import pytest

from components.registry.promotion import promotion
from ssl_core.probes.intervals import Interval


@pytest.mark.parametrize(
    ("candidate", "champion", "gain", "margin", "collapse", "verdict"),
    [
        (1, None, None, 0.0, "", "promote"),  # the first version
        (1, None, None, 0.0, "all points are one", "keep"),  # not even the first where it is useless
        (2, 1, None, 0.0, "", "evaluate"),  # nobody has compared them
        (2, 1, Interval(3.0, 1.0, 5.0), 0.0, "", "promote"),
        (2, 1, Interval(3.0, 1.0, 5.0), 0.5, "", "promote"),
        (2, 1, Interval(3.0, 1.0, 5.0), 1.0, "", "keep"),  # exceeds, not equals
        (2, 1, Interval(3.0, -0.1, 6.1), 0.0, "", "keep"),  # better on average, perhaps by chance
        (2, 1, Interval(-2.0, -3.0, -1.0), 0.0, "", "keep"),
        (2, 1, Interval(0.0, 0.0, 0.0), 0.0, "", "keep"),  # the same twice
        (2, 1, Interval(-0.1, -0.4, 0.2), -0.5, "", "promote"),  # a margin below zero: no worse is good enough
        (2, 1, Interval(math.nan, math.nan, math.nan), 0.0, "", "keep"),
        (2, 1, Interval(math.inf, math.inf, math.inf), 0.0, "", "keep"),
        (2, 2, Interval(9.0, 8.0, 10.0), 0.0, "", "keep"),  # is the champion
        (2, 1, Interval(9.0, 8.0, 10.0), 0.0, "all points are one", "keep"),
    ],
)
def test_only_a_sure_gain_over_the_margin_promotes(
    candidate: int, champion: int | None, gain: Interval | None, margin: float, collapse: str, verdict: str
) -> None:
    decision = promotion(candidate, champion, gain, margin, collapse)
    assert decision.verdict == verdict and decision.promoted == (verdict == "promote")
    assert decision.reason and "\n" not in decision.reason
