"""The decisions, as tables."""

from __future__ import annotations

import math

import pytest

from components.policy import is_stale, oldest_run, promotion
from ssl_core.probes.intervals import Interval


@pytest.mark.parametrize(
    ("candidate", "champion", "gain", "margin", "collapse", "verdict"),
    [
        (1, None, None, 0.0, "", "promote"),  # the first version
        (1, None, None, 0.0, "all points are one", "keep"),  # not even the first where it is useless
        (2, 1, None, 0.0, "", "judge"),  # nobody has compared them
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


@pytest.mark.parametrize(
    ("beat_minutes_ago", "started_minutes_ago", "stale"),
    [(0, 100, False), (14.9, 100, False), (15.1, 100, True), (None, 14, False), (None, 16, True), (-3, 100, False)],
)
def test_a_run_is_dead_after_its_last_sign_of_life(
    beat_minutes_ago: float | None, started_minutes_ago: float, stale: bool
) -> None:
    now = 1_700_000_000_000
    beat = None if beat_minutes_ago is None else now - int(beat_minutes_ago * 60_000)
    assert is_stale(beat, now - int(started_minutes_ago * 60_000), now, minutes=15) is stale


def test_every_process_picks_the_same_of_several_runs() -> None:
    assert oldest_run([]) is None
    assert oldest_run([(5, "b"), (3, "z"), (3, "a")]) == "a"
